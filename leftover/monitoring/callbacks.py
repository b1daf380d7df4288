"""What every training keeps on disk: its metrics, what it wrote at every evaluation, and what it has cost so far."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from leftover.monitoring.continuation import checkpoint_folder
from leftover.monitoring.finite import json_line
from leftover.monitoring.training_display import Completion

log = logging.getLogger(__name__)


class _StepLines(TrainerCallback):
    """Writes JSON lines with their `step`; on resume, lines past the checkpoint are dropped."""

    def __init__(self, path: Path):
        self.path, self.number = path, 0
        self.hash = hashlib.sha256()  # of all lines

    def on_train_begin(self, args: Any, state: TrainerState, control: object, **kwargs: object) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        kept = [line for line in text.splitlines() if _step(line) <= state.global_step and state.global_step > 0]
        counted = self._counted(args, state)
        number, _, digest = counted.read_text(encoding="utf-8").partition(" ") if counted.is_file() else ("", "", "")
        if number:  # those of this step that came after its checkpoint will come again
            kept = kept[: int(number)]
        text = "".join(line + "\n" for line in kept)
        self.path.write_text(text, encoding="utf-8")
        self.number, self.hash = len(kept), hashlib.sha256(text.encode())
        if len(kept) < int(number or 0):
            log.warning("%s is damaged: %d of %s lines are left", self.path, len(kept), number)
        elif digest and digest != self.hash.hexdigest():
            log.warning("%s is damaged (its SHA-256 is not that of what was written): its lines stay so", self.path)

    def on_save(self, args: Any, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.is_world_process_zero:
            self._counted(args, state).write_text(f"{self.number} {self.hash.hexdigest()}", encoding="utf-8")

    def _counted(self, args: Any, state: TrainerState) -> Path:
        """The file in a checkpoint that holds how many lines there were, and their SHA-256 (earlier versions: not)."""
        return checkpoint_folder(args, state) / f"{self.path.stem}.lines"

    def write(self, state: TrainerState, records: Iterable[Mapping[str, Any]]) -> None:
        if state.is_world_process_zero:
            lines = [json_line({"step": state.global_step, **record}) + "\n" for record in records]
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
            self.number += len(lines)
            self.hash.update("".join(lines).encode())


class MetricsFile(_StepLines):
    """Writes every logged dictionary as a line of `metrics.jsonl`."""

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict | None = None, **kwargs: object
    ) -> None:
        self.write(state, [logs] if logs else [])


class EvaluationsFile(_StepLines):
    """Writes the record of every completion of an evaluation as a line of `evaluations.jsonl`."""

    def on_evaluate(
        self,
        args: object,
        state: TrainerState,
        control: object,
        completions: Sequence[Completion] = (),
        **kwargs: object,
    ) -> None:
        self.write(state, (completion.record for completion in completions))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")  # the half line of a killed run


class CostSoFar(TrainerCallback):
    """Calls `note_costs` of a manifest at every checkpoint, in case the run is killed."""

    def __init__(self, note_costs: Callable[[], None]):
        self.note_costs = note_costs

    def on_save(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.is_world_process_zero:
            self.note_costs()
