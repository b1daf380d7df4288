"""What stages took is in their entries of the manifest, added up over sessions, and decides nothing."""

import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover.monitoring import costs
from leftover.monitoring.memory import MemoryMeter
from leftover.store.manifest import Manifest
from leftover.store.table import Table


def test_a_stage_tells_its_time_its_memory_and_its_machine(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("value", {"seed": 0})
    with mmap.mmap(-1, 40 * 2**20) as pages:  # not from what the allocator keeps of earlier tests
        np.frombuffer(pages, np.uint8)[:] = 1
    later = MemoryMeter()
    time.sleep(0.05)
    manifest.finish("value", rows=3)
    cost = Manifest(tmp_path).cost("value")
    assert 0.05 <= cost["seconds"] < 30 and cost["sessions"] == 1
    later.read()
    if later.counts_anew:
        assert cost["peak_memory"] - later.process > 30 * 2**20, "a later meter makes this one forget nothing"
    [here] = cost["machines"]
    assert here["packages"]["numpy"] == np.__version__ and here["cores"] >= 1
    assert manifest.facts("value") == {"rows": 3}, "costs are no results"


def test_sessions_of_a_resumed_stage_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s to the last save, 5 s that the kill loses, then 20 s on another machine."""
    clock = iter([0.0, 10.0, 100.0, 120.0])
    monkeypatch.setattr(costs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(costs, "machine", lambda: {"gpus": []})
    killed = Manifest(tmp_path)
    killed.begin("value", {"seed": 0})
    killed.note_costs()
    monkeypatch.setattr(costs, "machine", lambda: {"gpus": ["G"]})
    resumed = Manifest(tmp_path)
    assert resumed.begin("value", {"seed": 0}).action == "resumed"
    assert Manifest(tmp_path).cost("value")["seconds"] == 10.0, "a second kill loses no more"
    resumed.finish("value")
    cost = Manifest(tmp_path).cost("value")
    assert (cost["seconds"], cost["sessions"]) == (30.0, 2)
    assert cost["machines"] == [{"gpus": []}, {"gpus": ["G"]}]


def test_a_stage_that_starts_again_under_a_new_key_starts_its_sum_again(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("value", {"seed": 0})
    manifest.note_costs()
    manifest.begin("value", {"seed": 1})
    manifest.finish("value")
    assert manifest.cost("value")["sessions"] == 1


def test_another_machine_makes_nothing_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("value", {"seed": 0})
    manifest.finish("value")
    digest = manifest.digest("value")
    monkeypatch.setattr(costs, "machine", lambda: {"gpus": ["another"]})
    again = Manifest(tmp_path)
    assert again.begin("value", {"seed": 0}).finished and again.digest("value") == digest


def test_an_entry_from_before_costs_were_recorded_is_reused(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("value", {"seed": 0})
    manifest.finish("value")
    del manifest.entries["value"]["cost"]
    assert manifest.begin("value", {"seed": 0}).finished and manifest.cost("value") == {}


def test_a_block_notes_its_cost_at_every_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("leftover.store.table.SHARD_ROWS", 2)
    source, done = datasets.Dataset.from_dict({"n": [0, 1, 2, 3]}), list[int]()

    def compute(shard: Any, _: Path, __: int) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(len(shard))
        return {"twice": [2 * n for n in shard["n"]]}

    with pytest.raises(KeyboardInterrupt):
        Table(tmp_path).write_columns("twice", {}, source, compute)
    assert Table(tmp_path).manifest.cost("twice")["seconds"] > 0
    done.clear()
    Table(tmp_path).write_columns("twice", {}, source, compute)
    assert Table(tmp_path).manifest.cost("twice")["sessions"] == 2
