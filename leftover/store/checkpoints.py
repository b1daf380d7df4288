"""Which checkpoint a training continues from: the newest that can be read whole."""

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leftover.errors import UserError
from leftover.monitoring.continuation import checkpoint_folder
from leftover.monitoring.ranks import is_main_process, wait
from leftover.store.files import read_json, write_json
from leftover.store.sealed import faults, sums

log = logging.getLogger(__name__)

SUMS = "checksums.json"
# What a training reads of its own, each by one of these names: without its state an optimizer would begin anew,
# unnoticed. FSDP writes the second or third, DeepSpeed the fourth, each process a part.
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*/.metadata", "global_step*/*optim_states.pt")
_STATES = (_OPTIMIZER, ("scheduler.pt",), ("rng_state*.pth",))


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that a training can continue from; None if there is none.

    Damaged ones are named in the log. A checkpoint is whole if its own files are, and the weights of the best
    checkpoint so far, which are loaded at the end.
    """
    damaged = False
    for checkpoint in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True):
        fault = next(faults_of_checkpoint(checkpoint), None)
        if fault is None:
            return str(checkpoint)
        log.warning("%s is skipped: %s", checkpoint, fault)
        damaged = True
    if damaged:
        log.warning("%s has no whole checkpoint: this training begins anew", folder)
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def faults_of_checkpoint(checkpoint: Path) -> Iterator[str]:
    """What keeps a training from continuing here."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        best = state.get("best_model_checkpoint")
        state["global_step"]
    except (OSError, ValueError, AttributeError, KeyError):
        yield "trainer_state.json, which is written last, is missing or damaged"
        return
    yield from _faults_of_files(checkpoint)
    yield from _faults_of_weights(checkpoint)
    for patterns in _STATES:
        found = [path for pattern in patterns for path in checkpoint.glob(pattern)]
        if not found:
            yield f"{patterns[0]} is missing"
        for path in found:
            if path.suffix and not zipfile.is_zipfile(path):  # what torch.save wrote
                yield f"{path.name} is damaged"
    if best and (name := Path(best).name) != checkpoint.name:  # its path is that of the folder before a move
        of_best = checkpoint.parent / name
        yield from (
            f"of the best checkpoint so far, {name}, {fault}"
            for fault in (*_faults_of_files(of_best), *_faults_of_weights(of_best))
        )


def _faults_of_files(checkpoint: Path) -> Iterator[str]:
    """Files that are not as they were saved; nothing is known of those that earlier versions saved."""
    path = checkpoint / SUMS
    try:
        saved = read_json(path) if path.is_file() else {}
    except UserError as error:
        yield str(error)
    else:
        yield from (f"{name} {what}" for name, what in faults(checkpoint, saved).items())


class CheckpointSums(TrainerCallback):
    """Writes the SHA-256 of every file of a checkpoint beside them."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        wait()  # each process may have saved a part
        checkpoint = checkpoint_folder(args, state)
        if is_main_process() and checkpoint.is_dir():
            write_json(checkpoint / SUMS, sums(checkpoint, [checkpoint]))


def _faults_of_weights(checkpoint: Path) -> Iterator[str]:
    found = list(checkpoint.glob("*.safetensors"))
    if not any("model" in path.name for path in found) and not list(checkpoint.glob("pytorch_model_fsdp_*/.metadata")):
        yield "the weights are missing"
    for path in found:
        try:
            with safe_open(path, "pt") as file:  # compares the header with the size of the file
                if not all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys()):  # noqa: SIM118
                    yield f"{path.name} holds weights that are not finite numbers"
        except (SafetensorError, OSError) as error:
            yield f"{path.name} is damaged ({error})"
