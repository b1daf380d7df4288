"""Trackers: refused early, one run a training, and the completions that an evaluation sampled."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from leftover import LoLConfig, pipeline
from leftover.commands.dry_run.sources import missing_packages
from leftover.errors import UserError
from leftover.monitoring.trackers import CompletionTables, check_trackers, own_run
from leftover.monitoring.training_display import Completion
from leftover.recipe.files import make_recipe

COMPLETIONS = [Completion("2 + 2?", "4", 1.0), Completion("a | b", "<script>*x*\nand", -0.5)]
ROWS = [[8, "2 + 2?", "4", 1.0], [8, "a | b", "<script>*x*\nand", -0.5]]
FIRST, SECOND = (SimpleNamespace(global_step=8, is_world_process_zero=first) for first in (True, False))


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    gone = ("wandb", "trackio", "mlflow", "comet_ml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else found(name, *a))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def evaluate(tracker: str, state: Any, handler: Any = None, completions: Any = COMPLETIONS) -> None:
    CompletionTables(handler).on_evaluate(SimpleNamespace(report_to=[tracker]), state, None, completions=completions)


@pytest.mark.parametrize("value", ["wandb", ["wandb", "none"]])
def test_a_tracker_that_is_not_installed_is_named_with_its_package(absent: None, value: Any) -> None:
    with pytest.raises(UserError, match=r"train\.report_to: wandb needs the package wandb: pip install wandb"):
        check_trackers(value, "train.report_to")
    with pytest.raises(UserError, match="pip install comet-ml"):
        LoLConfig(output_dir="unused", report_to="comet_ml")


@pytest.mark.parametrize("value", [None, "none", [], "all", ["none"]])
def test_no_tracker_needs_no_package(absent: None, value: Any) -> None:
    check_trackers(value)


def test_a_tracker_that_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        check_trackers("wanddb")


@pytest.mark.parametrize("section", ["train", "reference", "policies"])
def test_a_run_is_refused_before_any_row_is_read(
    absent: None, tiny_recipe: Callable[..., dict], tmp_path: Path, section: str
) -> None:
    fields: dict[str, Any] = {
        "train": {"report_to": "trackio"},
        "reference": {"train": {"report_to": "trackio"}},
        "policies": {"nll": {"objective": "nll", "report_to": ["trackio"]}},
    }[section]
    recipe = make_recipe(tiny_recipe(tmp_path, **{section: fields}))
    with pytest.raises(UserError, match=r"report_to: trackio needs the package trackio: pip install trackio"):
        pipeline.run(recipe)
    assert not (tmp_path / "run" / "table").exists()
    assert missing_packages(recipe) == ["trackio"]  # what --dry-run tells


def test_wandb_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    stand_in(monkeypatch, "wandb", Table=lambda columns, data: (columns, data), log=logged.append)
    evaluate("wandb", FIRST)
    table = (["step", "prompt", "completion", "reward"], ROWS)
    assert logged == [{"completions": table, "train/global_step": 8}]


def test_trackio_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    stand_in(monkeypatch, "trackio", Table=lambda dataframe: dataframe.to_dict("split"), log=logged.append)
    evaluate("trackio", FIRST)
    (line,) = logged
    assert line["train/global_step"] == 8 and line["completions"]["data"] == ROWS
    assert line["completions"]["columns"] == ["step", "prompt", "completion", "reward"]


def test_mlflow_gets_a_table_to_append_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logged: list[Any] = []
    stand_in(monkeypatch, "mlflow", log_table=lambda data, artifact_file: logged.append((data, artifact_file)))
    evaluate("mlflow", FIRST)
    names = ("step", "prompt", "completion", "reward")
    columns = {name: [row[i] for row in ROWS] for i, name in enumerate(names)}
    assert logged == [(columns, "completions.json")]


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_other_processes_than_the_first_log_nothing(monkeypatch: pytest.MonkeyPatch, tracker: str) -> None:
    stand_in(monkeypatch, tracker)  # any use of it would fail
    evaluate(tracker, SECOND)
    evaluate(tracker, FIRST, completions=[])  # and there is no table of nothing


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("of_the_user", [False, True])
def test_every_training_is_a_run_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool, of_the_user: bool
) -> None:
    wandb = stand_in(monkeypatch, "wandb", run="the user's" if of_the_user else None, ended=[])
    wandb.finish = lambda exit_code: wandb.ended.append(exit_code)  # type: ignore[attr-defined]
    trainer = SimpleNamespace(args=SimpleNamespace(report_to=["wandb"]), callback_handler=SimpleNamespace(callbacks=[]))
    try:
        with own_run(trainer, tmp_path):
            wandb.run = wandb.run or "begun by transformers"  # type: ignore[attr-defined]
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert wandb.ended == ([] if of_the_user else [int(fails)])


def test_tensorboard_gets_the_numbers_of_the_metrics_file_and_the_completions(
    tiny_recipe: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    sampled: list[list[Completion]] = []
    keep = CompletionTables.on_evaluate

    def spy(self: Any, *args: Any, completions: Any = (), **kwargs: Any) -> None:
        sampled.append(completions)
        keep(self, *args, completions=completions, **kwargs)

    monkeypatch.setattr(CompletionTables, "on_evaluate", spy)
    settings = {"report_to": "tensorboard", "eval_steps": 2, "save_steps": 2, "logging_steps": 2}
    pipeline.run(make_recipe(tiny_recipe(tmp_path, train=settings)), until="train")
    folder = tmp_path / "run" / "policies" / "a_lol_seq" / "seed-0"
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    own = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        own |= {(_renamed(name), step): value for name, value in line.items()}
    theirs = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert theirs == pytest.approx(own, rel=1e-5, nan_ok=True)
    texts = events.Tensors("completions/text_summary")
    assert [text.step for text in texts] == [2, 4] and len(sampled) == 2
    table = texts[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[0] == "| step | prompt | completion | reward |"
    assert len(table.splitlines()) == 2 + len(sampled[-1]) == 2 + 4  # max_selection_prompts
    assert all(line.count("|") == 5 and line.startswith("| 4 | ") for line in table.splitlines()[2:])


def _renamed(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def test_in_tensorboard_text_is_neither_markdown_nor_html() -> None:
    from transformers.integrations import TensorBoardCallback

    written: list[tuple] = []
    writer = SimpleNamespace(add_text=lambda *args: written.append(args), flush=lambda: None)
    pytest.importorskip("tensorboard")
    callback = TensorBoardCallback(writer)
    evaluate("tensorboard", FIRST, SimpleNamespace(callbacks=[callback]))
    (name, table, step), last = written[0], written[0][1].splitlines()[-1]
    assert (name, step) == ("completions", 8) and table.count("\n") == 3
    assert last == "| 8 | a &#124; b | &#60;script&#62;&#42;x&#42;<br>and | -0.5 |"
