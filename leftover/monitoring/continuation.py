"""A training that stops and goes on as if nothing had happened: on a signal it saves, and sums go with checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leftover.monitoring.ranks import is_main_process, processes, rank, told
from leftover.monitoring.signals import Asked, Interrupted

_SUMS = "sums-{}.json"  # of a process: what it has summed since the last line of the log
_DUE = "evaluation_due"  # an empty file: the checkpoint was saved where an evaluation was to come first


class Continuation(TrainerCallback):
    """Saves and stops where a signal asks for it, and takes up what a checkpoint of the Trainer does not hold.

    Must be the last callback: the others have done their part of a checkpoint when this one stops the training.
    """

    def __init__(self, trainer: Any):  # a FiniteTrainer
        self.trainer = trainer
        self.asked = Asked()
        self.took_up = False  # losses since the first step are known
        self._stops, self._due = 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.took_up, self._stops, self._due = False, 0, False
        if state.global_step == 0:
            return
        folder = Path(self.trainer.resumed_from or _folder(args, state))
        self._take_up(folder)
        if told((folder / _DUE).is_file()):
            trainer = self.trainer
            trainer._determine_best_metric(metrics=trainer._evaluate(None, None), trial=None)
            if is_main_process():
                (folder / _DUE).unlink()
            trainer._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stops = self._agreed()
        if self._stops:
            self._due, control.should_evaluate = control.should_evaluate, False
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops:
            raise Interrupted(self._stops, f"stopped at step {state.global_step} of {state.max_steps}, which is saved")

    def save_during_evaluation(self, error: Interrupted) -> None:
        """Save the step whose evaluation was interrupted; raises `Interrupted` again."""
        trainer = self.trainer
        self._stops, self._due = error.number, True
        trainer._save_checkpoint(trainer.model, None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    def _agreed(self) -> int:
        """The signal that any process has got: all must stop after the same step."""
        if processes() == 1:
            return self.asked.number
        own = torch.tensor([self.asked.number], device=self.trainer.args.device)
        return int(self.trainer.accelerator.gather(own).max())

    def write(self, folder: Path) -> None:
        """Put what this process has summed, and whether an evaluation is due, into the folder of a checkpoint."""
        # transformers asks each process whether the folder of the best checkpoint is there. FSDP writes its parts
        # later: at the end the processes would load an earlier checkpoint, or not the same one.
        folder.mkdir(parents=True, exist_ok=True)
        trainer = self.trainer
        content = {
            "loss": float(trainer._tr_loss),
            "total_loss": float(trainer._total_loss_scalar),
            "last_logged": trainer._globalstep_last_logged,
            "metrics": trainer.sums.state() if trainer.sums else None,
        }
        (folder / _SUMS.format(rank())).write_text(json.dumps(content), encoding="utf-8")
        if self._due and is_main_process():
            (folder / _DUE).touch()

    def _take_up(self, folder: Path) -> None:
        saved = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(_SUMS.format("*")))]
        if not saved:  # of an earlier version
            return
        self.took_up = True
        trainer, number = self.trainer, processes()
        own = saved[rank()] if len(saved) == number else None
        losses = [own["loss"]] if own else [one["loss"] for one in saved]
        trainer._tr_loss += sum(losses) / len(losses)  # it is the mean over the processes that is logged
        trainer._total_loss_scalar = saved[0]["total_loss"]
        trainer._globalstep_last_logged = saved[0]["last_logged"]
        if trainer.sums:
            trainer.sums.restore([one["metrics"] for one in saved], rank(), number)


def _folder(args: Any, state: Any) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
