"""Trackers of `report_to`: refused early where one is missing, a run of its own for every training, completions."""

import contextlib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from leftover.errors import UserError, nearest
from leftover.monitoring.terminal import is_main_process
from leftover.monitoring.training_display import Completion

# Name in `report_to` -> (module, package to install); what transformers supports beside these is passed on as it is.
PACKAGES = {
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "azure_ml": ("azureml", "azureml-mlflow"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "flyte": ("flytekit", "flytekit"),
}
_COLUMNS = ("step", "prompt", "completion", "reward")


def asked_for(report_to: Any) -> list[str]:
    """The trackers that a value of `report_to` names; "all" names those that are installed."""
    names = [] if report_to is None else [report_to] if isinstance(report_to, str) else list(report_to)
    return [name for name in names if name not in ("none", "all")]


def missing_packages(report_to: Any) -> list[str]:
    """Packages that have to be installed first."""
    found = []
    for name in asked_for(report_to):
        module, package = PACKAGES.get(name, (name, name))
        if importlib.util.find_spec(module) is None:
            found.append(package)
    return found


def check_trackers(report_to: Any, key: str = "report_to") -> None:
    """UserError for a tracker that transformers does not know, or whose package is missing."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as KNOWN

    for name in asked_for(report_to):
        if name not in KNOWN:
            raise UserError(f"{key}: '{name}'{nearest(str(name), list(KNOWN))} is no tracker; {', '.join(KNOWN)} are")
        for package in missing_packages(name):
            raise UserError(f"{key}: {name} needs the package {package}: pip install {package}")


class CompletionTables(TrainerCallback):
    """What the policy made of the evaluation prompts, as a table in every tracker that has them."""

    def __init__(self, handler: Any):
        self.handler = handler  # of the Trainer, whose TensorBoardCallback holds the writer

    def on_evaluate(self, args: Any, state: Any, control: Any, completions: Any = (), **kwargs: Any) -> None:
        if state.is_world_process_zero and completions:
            for name in args.report_to:
                if name in _WRITERS:
                    _WRITERS[name](self.handler, _rows(completions, state.global_step))


def add_completion_tables(trainer: Any) -> None:
    """Give a Trainer the callback, where it reports to a tracker with tables."""
    if _WRITERS.keys() & set(trainer.args.report_to):
        trainer.add_callback(CompletionTables(trainer.callback_handler))


def _rows(completions: Sequence[Completion], step: int) -> list[tuple[int, str, str, float]]:
    return [(step, *completion) for completion in completions]


def _to_wandb(handler: Any, rows: list[tuple]) -> None:
    import wandb

    table = wandb.Table(columns=list(_COLUMNS), data=[list(row) for row in rows])
    wandb.log({"completions": table, "train/global_step": rows[0][0]})


def _to_trackio(handler: Any, rows: list[tuple]) -> None:
    import pandas
    import trackio

    table = trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(_COLUMNS)))
    trackio.log({"completions": table, "train/global_step": rows[0][0]})


def _to_mlflow(handler: Any, rows: list[tuple]) -> None:
    import mlflow

    # Its bars would be drawn into a log, or across the live display.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    # One file for all evaluations, which it appends to: it remembers every table file in one tag of limited length.
    mlflow.log_table(columns, artifact_file="completions.json")


def _to_tensorboard(handler: Any, rows: list[tuple]) -> None:
    (writer,) = [callback.tb_writer for callback in _tensorboards(handler)]
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- " * len(_COLUMNS) + "|"]
    lines += [f"| {step} | {_cell(prompt)} | {_cell(text)} | {reward:.4g} |" for step, prompt, text, reward in rows]
    writer.add_text("completions", "\n".join(lines), rows[0][0])
    writer.flush()


def _tensorboards(handler: Any) -> list[Any]:
    from transformers.integrations import TensorBoardCallback

    return [callback for callback in handler.callbacks if isinstance(callback, TensorBoardCallback)]


def _cell(text: str) -> str:
    """Text in a Markdown table: what Markdown or HTML would read as theirs becomes a character reference."""
    references = re.sub(r"[^\w\s.,;:?'-]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"\s*\n\s*", "<br>", references.strip())


_WRITERS: dict[str, Callable[[Any, list[tuple]], None]] = {
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
}

# Module -> whether it has a run under way, and how to end it.
_RUNS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, bool], Any]]] = {
    "wandb": (lambda wandb: wandb.run, lambda wandb, ok: wandb.finish(exit_code=0 if ok else 1)),
    "trackio": (lambda trackio: trackio.context_vars.current_run.get(), lambda trackio, ok: trackio.finish()),
    "mlflow": (lambda mlflow: mlflow.active_run(), lambda mlflow, ok: mlflow.end_run("FINISHED" if ok else "FAILED")),
}


@contextlib.contextmanager
def own_run(trainer: Any, folder: Path) -> Iterator[None]:
    """Inside, what `trainer` reports is a run of its own: one process trains several policies after one another.

    transformers ends no W&B run, and none after an error, so that the next training would go on in it. A run that the
    user has begun is left to the user. TensorBoard's files go to `folder`, or where TENSORBOARD_LOGGING_DIR says.
    """
    for callback in _tensorboards(trainer.callback_handler):
        shared = os.environ.get("TENSORBOARD_LOGGING_DIR")
        callback.logging_dir = str(Path(shared) / trainer.args.run_name if shared else folder / "tensorboard")
    modules = [importlib.import_module(name) for name in trainer.args.report_to if name in _RUNS]
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
