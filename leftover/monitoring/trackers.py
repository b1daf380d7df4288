"""Trackers of `report_to`: missing ones are refused early, every training is a separate run, completions are tables."""

import contextlib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback
from transformers.trainer_callback import CallbackHandler, TrainerState

from leftover.errors import UserError, nearest
from leftover.monitoring.ranks import is_main_process
from leftover.monitoring.training_display import Completion

# Names in `report_to` whose module and package are called otherwise.
_PACKAGES = {
    "azure_ml": ("azureml", "azureml-mlflow"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "flyte": ("flytekit", "flytekit"),
}
Row = tuple[int, str, str, float]
_COLUMNS = ("step", "prompt", "completion", "reward")


def _names(report_to: Any) -> list[str]:
    """The trackers that a value of `report_to` names, without "none" and "all", which means those installed."""
    names = [] if report_to is None else [report_to] if isinstance(report_to, str) else list(report_to)
    return [name for name in names if name not in ("none", "all")]


def missing_packages(report_to: Any) -> list[str]:
    """Packages that have to be installed first."""
    packages = [_PACKAGES.get(name, (name, name)) for name in _names(report_to)]
    return [package for module, package in packages if importlib.util.find_spec(module) is None]


def check_trackers(report_to: Any, key: str = "report_to") -> None:
    """Refuse a tracker that transformers does not know, or whose package is missing."""
    known = INTEGRATION_TO_CALLBACK
    for name in _names(report_to):
        if name not in known:
            raise UserError(f"{key}: '{name}'{nearest(str(name), known)} is not one of {', '.join(known)}")
        for package in missing_packages(name):
            raise UserError(f"{key}: {name} needs the package {package}: pip install {package}")


class CompletionTables(TrainerCallback):
    """Gives the completions of the evaluation prompts, as a table, to every tracker that has tables."""

    def __init__(self, handler: CallbackHandler):
        self.handler = handler  # of the Trainer, whose TensorBoardCallback holds the writer

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: object,
        completions: Sequence[Completion] = (),
        **kwargs: object,
    ) -> None:
        if state.is_world_process_zero and completions:
            rows = [(state.global_step, c.prompt, c.text, c.reward) for c in completions]
            for write in (_WRITERS[name] for name in args.report_to or () if name in _WRITERS):
                write(self.handler, rows)


def add_completion_tables(trainer: Trainer) -> None:
    """Give a Trainer the callback if it reports to a tracker with tables."""
    if _WRITERS.keys() & set(trainer.args.report_to or ()):
        trainer.add_callback(CompletionTables(trainer.callback_handler))


def _to_wandb(handler: CallbackHandler, rows: list[Row]) -> None:
    import wandb

    table = wandb.Table(columns=list(_COLUMNS), data=[list(row) for row in rows])
    wandb.log({"completions": table, "train/global_step": rows[0][0]})


def _to_trackio(handler: CallbackHandler, rows: list[Row]) -> None:
    import pandas
    import trackio

    table = trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(_COLUMNS)))
    trackio.log({"completions": table, "train/global_step": rows[0][0]})


def _to_mlflow(handler: CallbackHandler, rows: list[Row]) -> None:
    import mlflow

    # Its bars would go into a log, or across the live display.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    # One file for all evaluations, to which it appends: it lists every table file in one tag of limited length.
    mlflow.log_table(columns, artifact_file="completions.json")


def _to_tensorboard(handler: CallbackHandler, rows: list[Row]) -> None:
    (writer,) = [callback.tb_writer for callback in handler.callbacks if isinstance(callback, TensorBoardCallback)]
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- " * len(_COLUMNS) + "|"]
    lines += [f"| {step} | {_cell(prompt)} | {_cell(text)} | {reward:.4g} |" for step, prompt, text, reward in rows]
    writer.add_text("completions", "\n".join(lines), rows[0][0])
    writer.flush()


def _cell(text: str) -> str:
    """Text in a Markdown table: characters that Markdown or HTML would interpret become references."""
    references = re.sub(r"[^\w\s.,;:?'-]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"\s*\n\s*", "<br>", references.strip())


_WRITERS: dict[str, Callable[[CallbackHandler, list[Row]], None]] = {
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}

# Module -> its current run, and how to end it.
_RUNS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, bool], Any]]] = {
    "wandb": (lambda wandb: wandb.run, lambda wandb, ok: wandb.finish(exit_code=0 if ok else 1)),
    "trackio": (lambda trackio: trackio.context_vars.current_run.get(), lambda trackio, ok: trackio.finish()),
    "mlflow": (lambda mlflow: mlflow.active_run(), lambda mlflow, ok: mlflow.end_run("FINISHED" if ok else "FAILED")),
}


@contextlib.contextmanager
def own_run(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Inside, what `trainer` reports is a separate run: one process trains several policies one after another.

    transformers ends no W&B run, and no run after an error, so that the next training would continue it. A run that the
    user has begun is left open. TensorBoard's files go to `folder`, or to TENSORBOARD_LOGGING_DIR if that is set.
    """
    shared = os.environ.get("TENSORBOARD_LOGGING_DIR")
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(shared) / str(trainer.args.run_name) if shared else folder / "tensorboard")
    modules = [importlib.import_module(name) for name in trainer.args.report_to or () if name in _RUNS]
    ours = [module for module in modules if is_main_process() and _RUNS[module.__name__][0](module) is None]
    ok = False
    try:
        yield
        ok = True
    finally:
        for module in ours:
            active, end = _RUNS[module.__name__]
            if active(module) is not None:
                end(module, ok)
