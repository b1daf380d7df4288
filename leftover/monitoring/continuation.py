"""A training that stops and goes on as if nothing had happened: on a signal it saves, and sums go with checkpoints."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leftover.monitoring.ranks import is_main_process, processes, rank, told
from leftover.monitoring.signals import Asked, Interrupted

log = logging.getLogger(__name__)

_SUMS = "sums-{}.json"  # of a process: what it has summed since the last line of the log
# Empty files in a checkpoint: it was saved where an evaluation was to come first; it was saved for a signal alone.
_DUE, _BY_SIGNAL = "evaluation_due", "by_signal"


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Where the Trainer saves the step that it is at."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class Continuation(TrainerCallback):
    """Saves and stops where a signal asks for it, and takes up what a checkpoint of the Trainer does not hold.

    Must be the last callback: the others have done their part of a checkpoint when this one stops the training.
    """

    def __init__(self, trainer: Any):  # a FiniteTrainer
        self.trainer = trainer
        self.asked = Asked()
        self.took_up = False  # losses since the first step are known
        self._stops, self._due, self._by_signal = 0, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.took_up, self._stops, self._due, self._by_signal = False, 0, False, False
        if state.global_step == 0:
            return
        folder = Path(self.trainer.resumed_from or checkpoint_folder(args, state))
        self._take_up(folder)
        if told((folder / _DUE).is_file()):
            trainer = self.trainer
            trainer._determine_best_metric(metrics=trainer._evaluate(None, None), trial=None)
            if told((folder / _BY_SIGNAL).is_file()):  # no checkpoint is due here
                return
            if is_main_process():
                (folder / _DUE).unlink()
            trainer._load_rng_state(str(folder))  # the Trainer loads it later, and it is saved again here
            trainer._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(args, state, control)

    @property
    def may_defer(self) -> bool:
        """Whether an evaluation may be left for later. One that may stop the training early must come before a step."""
        callbacks = self.trainer.callback_handler.callbacks
        return not any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self._agreed()
        if not asked or not self.trainer.may_stop_here:
            return
        self._stops, self._by_signal = asked, not control.should_save
        if self.may_defer:
            self._due, control.should_evaluate = control.should_evaluate, False
        control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops and control.should_training_stop and state.global_step < state.max_steps:
            log.warning("the training stops early here, so that nothing is lost: once more stops at once")
        elif self._stops:
            raise Interrupted(self._stops, f"stopped at step {state.global_step} of {state.max_steps}, which is saved")

    def save_during_evaluation(self, error: Interrupted) -> None:
        """Save the step whose evaluation was interrupted; raises `Interrupted` again."""
        trainer = self.trainer
        self._stops, self._due, self._by_signal = error.number, True, not trainer.control.should_save
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
            "skipped_steps": trainer.skipped_steps,
            "metrics": trainer.sums.state() if trainer.sums else None,
        }
        (folder / _SUMS.format(rank())).write_text(json.dumps(content), encoding="utf-8")
        if is_main_process():
            for name, is_so in ((_DUE, self._due), (_BY_SIGNAL, self._by_signal)):
                (folder / name).touch() if is_so else (folder / name).unlink(missing_ok=True)
            # transformers would take one for the best if the best evaluation was at its step: without the signal it
            # would not be there.
            for other in folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if other != folder and (other / _BY_SIGNAL).is_file():
                    shutil.rmtree(other)

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
        trainer.skipped_steps = saved[0].get("skipped_steps", 0)
        if trainer.sums:
            trainer.sums.restore([one["metrics"] for one in saved], rank(), number)
