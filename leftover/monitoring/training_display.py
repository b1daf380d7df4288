"""Training at the terminal: a live display if somebody watches, else one plain line an evaluation."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from leftover.monitoring.memory import memory_in_use
from leftover.monitoring.terminal import clock, console, is_live, one_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

log = logging.getLogger(__name__)


class Completion(NamedTuple):
    """A policy's completion of an evaluation prompt; a conversation's prompt is the text that the model sees."""

    prompt: str
    text: str
    reward: float
    record: Mapping[str, Any] = MappingProxyType({})  # its `CompletionRecord`


_NAMES = {"reward/mean": "held-out reward", "logratio/rank_correlation": "held-out rank correlation"}


@contextlib.contextmanager
def shown(trainer: Trainer, name: str) -> Iterator[None]:
    """Inside, any Trainer shows its training as `name`, with `disable_tqdm` as plain lines."""
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    sums = getattr(trainer, "sums", None)
    live = is_live() and not trainer.args.disable_tqdm
    display = (LiveDisplay if live else TrainingProgress)(name, sums and sums.tokens_of_this_process)
    trainer.add_callback(display)
    try:
        yield
    finally:  # also after an error or Ctrl-C: the terminal gets its cursor back
        display.close()
        trainer.remove_callback(display)


class Pace:
    """How fast this process goes, by its own steps and tokens, without making a step wait for a GPU."""

    def __init__(self, step: int, max_steps: int, tokens: Callable[[], int] | None):
        self.first_step = self.step = step
        self.max_steps, self.tokens = max_steps, tokens
        self.started = self.mark = time.monotonic()
        self.not_training = 0.0  # seconds of evaluation and saving
        self.seconds_left: float | None = None
        self.tokens_per_second: float | None = None

    def stepped(self, step: int) -> None:
        self.step, self.mark = step, time.monotonic()
        done = step - self.first_step
        self.seconds_left = (self.mark - self.started) / done * (self.max_steps - step) if done else None

    def measure_tokens(self, world_size: int) -> None:
        """Call it where the GPU is waited for anyway. Takes other processes to be as fast as this one."""
        seconds = self.mark - self.started - self.not_training
        if self.tokens is not None and self.step > self.first_step:
            self.tokens_per_second = world_size * self.tokens() / seconds

    def paused(self) -> None:
        """The time since the last step or call was not training."""
        now = time.monotonic()
        self.not_training += now - self.mark
        self.mark = now


class Best(NamedTuple):
    value: float
    step: int


class TrainingProgress(TrainerCallback):
    """Follows a training, and logs one plain line an evaluation: no bar, no carriage return, no ANSI code."""

    def __init__(self, name: str, tokens: Callable[[], int] | None = None):
        self.name, self.tokens = name, tokens
        self.pace = Pace(0, 0, None)
        self.best: Best | None = None
        self.numbers: dict[str, float] = {}  # of the last log line and evaluation, by the names they are shown with

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.pace = Pace(state.global_step, state.max_steps, self.tokens)
        if state.best_metric is not None and state.best_global_step is not None:
            self.best = Best(state.best_metric, state.best_global_step)

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.pace.stepped(state.global_step)

    def on_save(self, *args: object, **kwargs: object) -> None:
        self.pace.paused()

    def on_log(self, args: TrainingArguments, *event: object, logs: dict | None = None, **kwargs: object) -> None:
        if logs and "loss" in logs:
            self.numbers["loss"] = logs["loss"]
            self.pace.mark = time.monotonic()  # the log line has waited for the device
            self.pace.measure_tokens(args.world_size)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: object,
        metrics: dict[str, float] | None = None,
        completions: Sequence[Completion] = (),
        **kwargs: object,
    ) -> None:
        self.pace.measure_tokens(args.world_size)
        self.pace.paused()
        chosen_by = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        for metric in dict.fromkeys([chosen_by, "reward/mean"]):
            value = (metrics or {}).get(f"eval_{metric}")
            if value is None:
                continue
            self.numbers[_NAMES.get(metric, f"held-out {metric}")] = value
            sign = 1 if args.greater_is_better else -1
            if metric == chosen_by and (self.best is None or sign * value > sign * self.best.value):
                self.best = Best(value, state.global_step)
        if state.is_world_process_zero:
            self.show_evaluation(completions)

    def evaluation_text(self) -> str:
        parts = [f"{name} {value:.4g}" for name, value in self.numbers.items() if name != "loss"]
        if self.best is not None:
            parts.append(f"best {self.best.value:.4g} at step {self.best.step}")
        return ", ".join(parts)

    def pace_text(self) -> str:
        rate = self.pace.tokens_per_second
        return "" if rate is None else f"{rate:,.0f} tokens/s"

    def show_evaluation(self, completions: Sequence[Completion]) -> None:
        step = f"step {self.pace.step}/{self.pace.max_steps}"
        left = self.pace.seconds_left
        parts = [step, self.evaluation_text(), self.pace_text(), f"{clock(left)} left" if left else ""]
        log.info("%s: %s", self.name, ", ".join(filter(None, parts)))

    def close(self) -> None:
        """Give the terminal back."""


class LiveDisplay(TrainingProgress):
    """Redraws two lines, and prints above them, at every evaluation, the policy's completion of one prompt."""

    live: "Live | None" = None
    control = TrainerControl()  # of the last step: what comes after it

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        from rich.live import Live

        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.close()
            self.live = Live(console=console(stderr=True), get_renderable=self.render, transient=True)
            self.live.start()

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        super().on_step_end(args, state, control, **kwargs)
        self.control = control

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def render(self) -> "Group":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text
        from tqdm import tqdm

        pace = self.pace
        bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio in (None, 1, None, None):
            bar.add_column(no_wrap=True, ratio=ratio)
        left = "–" if pace.seconds_left is None else tqdm.format_interval(pace.seconds_left)
        bar.add_row(
            Text(one_line(self.name, 40), "bold"),
            ProgressBar(max(1, pace.max_steps), pace.step),
            Text(f"{pace.step}/{pace.max_steps}"),
            Text(f"{tqdm.format_interval(time.monotonic() - pace.started)}, {left} left"),
        )
        loss = f"loss {self.numbers['loss']:.4g}" if "loss" in self.numbers else ""
        control, used = self.control, memory_in_use()
        doing = "evaluating" if control.should_evaluate else "saving" if control.should_save else ""
        memory = "" if used is None else f"{used / 2**30:.1f} GiB"
        parts = [self.evaluation_text(), loss, self.pace_text(), memory, doing]
        numbers = Text("  " + " · ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")
        return Group(bar, numbers)

    def show_evaluation(self, completions: Sequence[Completion]) -> None:
        if self.live is None:  # `evaluate` outside `train`
            return
        from rich.text import Text

        terminal = self.live.console
        headline = Text(f"{one_line(self.name, 40)}, step {self.pace.step}: {self.evaluation_text()}", "bold")
        terminal.print(headline, overflow="ellipsis", no_wrap=True)
        if completions:
            sample = completions[0]  # of the same prompt at every evaluation, so that one sees it change
            width = max(20, terminal.width - len("  completion  "))
            for label, text, keep in (
                ("prompt", sample.prompt, "end"),
                ("completion", sample.text, "start"),
                ("reward", f"{sample.reward:.4g}", "start"),
            ):
                line = Text(f"  {label:<12}", "dim").append(one_line(text, width, keep=keep), "not dim")
                terminal.print(line, no_wrap=True, overflow="ellipsis")
