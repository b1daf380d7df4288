"""What every training keeps on disk: a file of metrics for people and machines, and whole checkpoints to resume."""

import contextlib
import json
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class MetricsFile(TrainerCallback):
    """Writes every logged dictionary as a line of `metrics.jsonl`; on resume, lines past the checkpoint are dropped."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step(line) <= state.global_step and state.global_step > 0]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict | None = None, **kwargs: object
    ) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # the half line of a killed run


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose trainer state, which is written last, can be read; None where there is none."""
    found = []
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        with contextlib.suppress(OSError, json.JSONDecodeError):
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((state["global_step"], str(checkpoint)))
    return max(found)[1] if found else None
