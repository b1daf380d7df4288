"""A training stops at the first number that is not finite: nothing spoilt is evaluated, saved, chosen or kept."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from leftover.errors import UserError
from leftover.monitoring.continuation import Continuation, checkpoint_folder
from leftover.monitoring.ranks import processes
from leftover.monitoring.room import OutOfMemory
from leftover.monitoring.signals import Interrupted, asked_by_signals

log = logging.getLogger(__name__)

_ROWS_NAMED = 8
# Of `on_nonfinite: skip`: more steps than either end a training.
_FEW_SKIPPED, _SHARE_SKIPPED = 10, 0.1


class FiniteTrainer(Trainer):
    """A Trainer that raises UserError at the first loss, gradient norm or weight that is NaN or infinite.

    Losses and norm of an optimizer step are read together, just before the optimizer moves. The Trainer's own filter
    would wait for the GPU at every micro-batch, to hide such a loss in a mean.
    """

    args: Any
    optimizer: Any
    _tr_loss: Any
    retries_smaller = False  # whether out of memory is for a subclass to deal with
    sums: Any = None  # of a PolicyTrainer: what is logged of its steps
    _evaluates = False
    skipped_steps = 0
    may_stop_here = True  # whether a training can go on from the end of this step
    accelerator: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False
        self.resumed_from: str | None = None
        self.continuation = Continuation(self)
        self.add_callback(self.continuation)
        self._step_losses: list[Tensor] = []  # of the micro-batches of the optimizer step in progress

    def rows_of_step(self, micro_batch: int | None = None) -> Sequence[str]:
        """Where the rows of the optimizer step in progress come from (of one micro-batch of this process)."""
        return ()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`. SIGTERM and Ctrl-C end it after a step, which is saved, by raising `Interrupted`."""
        self._step_losses = []
        self.remove_callback(self.continuation)
        self.add_callback(self.continuation)  # as the last
        self.resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        with asked_by_signals(getattr(self.args, "save_on_signal", True)) as self.continuation.asked:
            try:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
            except Interrupted as error:
                if not error.where and self._evaluates and self.state.global_step:
                    self.leave_evaluation()
                    self.continuation.save_during_evaluation(error)
                raise
        self.check_weights()
        return result

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # What an evaluation has measured is lost with it, so that it is not waited for. Several processes could not
        # leave it together.
        self._evaluates = self.continuation.asked.at_once = processes() == 1 and self.continuation.may_defer
        found = super()._evaluate(*args, **kwargs)
        self.continuation.asked.at_once = self._evaluates = False  # in this order: at once only where it is saved
        return found

    def leave_evaluation(self) -> None:
        """Make the model again what it was before an evaluation that was interrupted anywhere."""

    @property
    def _skips(self) -> bool:
        return getattr(self.args, "on_nonfinite", "stop") == "skip"

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.sums and not self._step_losses:
            self.sums.mark()
        try:
            loss = super().training_step(*args, **kwargs)
        except OutOfMemory as error:
            if self.retries_smaller:
                raise
            raise UserError(
                "training: out of memory: lower per_device_train_batch_size, raise gradient_accumulation_steps by as "
                "much, or set gradient_checkpointing: true"
            ) from error
        self._step_losses.append(loss)
        return loss.where(loss.isfinite(), 0.0) if self._skips else loss  # the sum for the log

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        losses, self._step_losses = self._step_losses, []
        size = 0.0 if norm is None else float(norm)
        finite = math.isfinite(size + float(torch.stack(losses).sum()))
        if self._skips and self.args.world_size > 1:  # all or none of the processes
            finite = bool(self.accelerator.gather(torch.tensor([finite], device=self.args.device)).all())
        if finite:
            return norm
        end = self._skip if self._skips else self._stop
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                return end(f"the loss is {float(loss)}", self.rows_of_step(i), losses)
        scaler = self.accelerator.scaler  # of fp16: it skips steps and lowers its scale until gradients are finite
        if scaler is not None and scaler.get_scale() >= 1:
            return norm
        return end(f"the norm of the gradient is {size}", self.rows_of_step(), losses)

    def _skip(self, what: str, rows: Sequence[str], losses: Sequence[Tensor]) -> Tensor:
        """Leave a step out: without gradients an optimizer moves nothing. Too many end the training."""
        self.skipped_steps += 1
        if self.skipped_steps > max(_FEW_SKIPPED, _SHARE_SKIPPED * self.state.max_steps):
            self._stop(f"{self.skipped_steps} steps had to be left out, the last because {what}", rows)
        log.warning("step %d is left out: %s%s", self.state.global_step + 1, what, _on(rows))
        self._tr_loss -= torch.stack([loss.where(loss.isfinite(), 0.0) for loss in losses]).sum()
        self.forget_step()
        return torch.zeros((), device=self.args.device)

    def forget_step(self) -> None:
        """Drop what the step in progress has added to gradients and sums."""
        # accelerate's zero_grad does nothing before the last micro-batch of a step.
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            parameter.grad = None
        if self.sums:
            self.sums.back_to_mark()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._evaluates:  # its numbers are written once: from here on it is waited for
            self.continuation.asked.at_once = False
        if "train_loss" in logs and self.continuation.took_up:  # the Trainer's is of the steps since it went on
            logs["train_loss"] = self._total_loss_scalar / self.state.global_step
        super().log(logs, start_time)

    def check_weights(self) -> None:
        """Raises UserError if a trained weight is not finite."""
        if self.optimizer is None:
            return
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            if not parameter.detach().isfinite().all():
                self._stop("weights are no finite numbers any more")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.is_in_train:
            self.check_weights()
        return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        self.continuation.write(checkpoint_folder(self.args, self.state))
        super()._save_checkpoint(*args, **kwargs)

    def _stop(self, what: str, rows: Sequence[str] = (), losses: Sequence[Tensor] = ()) -> NoReturn:
        raise UserError("".join(self._reasons(what, rows)))

    def _reasons(self, what: str, rows: Sequence[str]) -> Iterator[str]:
        args, done = self.args, self.state.global_step
        yield f"training stopped at step {done + 1 if rows else done} of {self.state.max_steps}: {what}"
        yield _on(rows)
        clipping = "" if args.max_grad_norm else ", and set max_grad_norm (1.0), which is 0"
        yield f". Lower learning_rate ({args.learning_rate:g}){clipping}"
        yield "; if that does not help, look at these rows" if rows else ""
        folder = Path(str(args.output_dir))
        kept = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: path.stat().st_mtime)
        yield f". The last finite checkpoint is {kept[-1]}" if kept else ". No checkpoint was saved before"


def _on(rows: Sequence[str]) -> str:
    """The rows of a step for a message, each once, though it may be drawn twice; nothing without any."""
    rows = list(dict.fromkeys(rows))
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return f" on {', '.join(rows[:_ROWS_NAMED])}{more}" if rows else ""
