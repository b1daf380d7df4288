"""The campaigns in full (`make faults`); docs/reliability.md holds what the last one found. SEED=n: another seed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import scored_rows, write_rows
from tests.faults.bad_input import bad_rows, bad_values
from tests.faults.corruptions import corruptions
from tests.faults.disks import disks, may_mount
from tests.faults.kills import kills
from tests.faults.outcome import Outcome
from tests.faults.services import hostile_services

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
SEED = int(os.environ.get("SEED", "0"))


def told(outcome: Outcome, name: str) -> None:
    print(f"\n{name}, seed {SEED}: {dict(outcome)}")
    assert not outcome.bad, "\n".join(outcome.bad)


def test_kills(tiny_recipe: Callable, tmp_path: Path) -> None:
    told(kills(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 200, SEED), "kills")


def test_signals(tiny_recipe: Callable, tmp_path: Path) -> None:
    told(kills(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 40, SEED, signal.SIGTERM), "SIGTERM")


def test_corruptions(tiny_recipe: Callable, tmp_path: Path) -> None:
    told(corruptions(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 120, SEED), "corruptions")


def test_corruptions_of_a_comparison(tiny_recipe: Callable, tmp_path: Path) -> None:
    """Of adapters, with a reward that is fitted on labelled rows."""
    labelled = [row | {"label": int(row["reward"] > 2)} for row in scored_rows(40, 7)]
    fitted = {"type": "linear", "fit": {"path": write_rows(tmp_path / "labelled.jsonl", labelled)}, "name": "fitted"}
    content = tiny_recipe(tmp_path, train=TRAIN, reward={"functions": [fitted]})
    content["model"] |= {"lora": {"r": 2}}
    told(
        corruptions(content, tmp_path, 60, SEED, "compare", "--methods", "a_lol_seq,nll", "--seeds", "1"), "comparisons"
    )


def test_bad_values(tiny_recipe: Callable, tmp_path: Path) -> None:
    told(bad_values(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 400, SEED), "recipe values")


def test_services(tiny_recipe: Callable, tmp_path: Path) -> None:
    told(hostile_services(tiny_recipe(tmp_path), tmp_path, 60, SEED), "hostile services")


def test_disks(tiny_recipe: Callable, tmp_path: Path) -> None:
    if not may_mount(tmp_path / "try"):
        pytest.skip("no right to mount a tmpfs")
    told(disks(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 40, SEED), "full and read-only disks")


def test_bad_rows(tmp_path: Path) -> None:
    told(bad_rows(tmp_path, scored_rows(30), 400, SEED), "malformed rows")


TRAIN = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 4, "save_steps": 2}
TRAIN |= {"eval_steps": 2}
