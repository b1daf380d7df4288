"""A training continues at the newest checkpoint that can be read whole, and says which it skips."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from leftover.store.checkpoints import last_whole_checkpoint


def write_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    """Files as the Trainer leaves them, in miniature."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"w": np.arange(1000.0)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(1000)}, checkpoint / name)
    state = {"global_step": step, "best_model_checkpoint": None if best is None else f"/elsewhere/checkpoint-{best}"}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint


def damage(checkpoint: Path, name: str, keep: int | bytes | None) -> None:
    """Remove a file, keep its first bytes alone, or write others."""
    path = checkpoint / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(keep if isinstance(keep, bytes) else path.read_bytes()[:keep])


DAMAGED: list[tuple[str, int | bytes | None, str]] = [
    ("model.safetensors", 100, "model.safetensors is damaged"),
    ("model.safetensors", 0, "model.safetensors is damaged"),
    ("model.safetensors", None, "the weights are missing"),
    ("optimizer.pt", 0, "optimizer.pt is damaged"),
    ("optimizer.pt", 500, "optimizer.pt is damaged"),
    ("optimizer.pt", None, "optimizer.pt is missing"),
    ("scheduler.pt", 300, "scheduler.pt is damaged"),
    ("rng_state.pth", 500, "rng_state.pth is damaged"),
    ("rng_state.pth", None, "rng_state"),
    ("trainer_state.json", 9, "trainer_state.json"),
    ("trainer_state.json", b"[]", "trainer_state.json"),
    ("trainer_state.json", b"{}", "trainer_state.json"),
    ("trainer_state.json", b"\xff\xfe", "trainer_state.json"),
    ("trainer_state.json", None, "trainer_state.json"),
]


@pytest.mark.parametrize(
    "names",
    [
        ["optimizer.bin"],  # FSDP, whole
        ["optimizer_0/.metadata", "optimizer_0/__0_0.distcp"],  # FSDP, in parts
        ["global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step3/bf16_zero_pp_rank_1_optim_states.pt"],
    ],
    ids=["fsdp", "fsdp in parts", "deepspeed"],
)
def test_states_that_processes_wrote_in_parts_are_whole(names: list[str], tmp_path: Path, caplog: Any) -> None:
    checkpoint = write_checkpoint(tmp_path, 3)
    (checkpoint / "optimizer.pt").unlink()
    assert last_whole_checkpoint(tmp_path) is None
    for name in names:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        with (checkpoint / name).open("wb") as file:
            torch.save({"state": torch.arange(1000)}, file)
    assert last_whole_checkpoint(tmp_path) == str(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert last_whole_checkpoint(tmp_path) is None
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    (checkpoint / "pytorch_model_fsdp_0/.metadata").touch()
    assert last_whole_checkpoint(tmp_path) == str(checkpoint)
    if names[-1].endswith((".pt", ".bin")):
        damage(checkpoint, names[-1], 300)
        assert last_whole_checkpoint(tmp_path) is None
        assert f"{Path(names[-1]).name} is damaged" in caplog.text


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    for step in (2, 10, 4):
        write_checkpoint(tmp_path, step, best=2)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not warnings(caplog)


@pytest.mark.parametrize(("name", "keep", "reason"), DAMAGED)
def test_a_damaged_checkpoint_is_skipped_and_named(
    name: str, keep: int | bytes | None, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 2)
    damage(write_checkpoint(tmp_path, 4), name, keep)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (line,) = warnings(caplog)
    assert "checkpoint-4" in line and reason in line


def test_without_a_whole_checkpoint_the_training_begins_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        damage(write_checkpoint(tmp_path, step), "optimizer.pt", 0)
    assert last_whole_checkpoint(tmp_path) is None
    assert "begins anew" in warnings(caplog)[-1] and len(warnings(caplog)) == 3


def test_the_best_weights_so_far_are_needed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are loaded at the end; the state names them under the path that the run had."""
    damage(write_checkpoint(tmp_path, 2), "model.safetensors", 9)
    write_checkpoint(tmp_path, 4, best=4)
    write_checkpoint(tmp_path, 6, best=2)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert "best" in warnings(caplog)[0] and "checkpoint-2" in warnings(caplog)[0]
