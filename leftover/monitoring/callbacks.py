"""What every training keeps on disk: its metrics, what it wrote at every evaluation, and what it has cost so far."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from leftover.monitoring.finite import json_line
from leftover.monitoring.training_display import Completion


class _StepLines(TrainerCallback):
    """Writes JSON lines with their `step`; on resume, lines past the checkpoint are dropped."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step(line) <= state.global_step and state.global_step > 0]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, state: TrainerState, records: Iterable[Mapping[str, Any]]) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(json_line({"step": state.global_step, **record}) + "\n" for record in records)


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
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # the half line of a killed run


class CostSoFar(TrainerCallback):
    """Calls `note_costs` of a manifest at every checkpoint, in case the run is killed."""

    def __init__(self, note_costs: Callable[[], None]):
        self.note_costs = note_costs

    def on_save(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.is_world_process_zero:
            self.note_costs()
