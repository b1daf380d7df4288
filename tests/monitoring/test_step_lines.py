"""What trainings write step by step: as it was after a kill, without what came past the checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leftover.monitoring.callbacks import EvaluationsFile, MetricsFile
from leftover.monitoring.training_display import Completion


def state(step: int, first: bool = True) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_completion_of_an_evaluation_is_a_line_and_a_resumed_training_drops_those_past_its_checkpoint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policy" / "evaluations.jsonl"
    written = EvaluationsFile(path)
    written.on_train_begin(SimpleNamespace(output_dir=tmp_path), state(0), None)
    completions = [Completion("p", text, 1.0, {"text": text, "reward": float("nan")}) for text in ("a\u2028b", "c")]
    for step in (2, 4, 6):
        written.on_evaluate(None, state(step), None, completions=completions)
        written.on_evaluate(None, state(step, first=False), None, completions=completions)  # another process
    assert steps(path) == [2, 2, 4, 4, 6, 6]
    assert json.loads(path.read_text().splitlines()[0])["text"] == "a\u2028b"
    with path.open("a") as file:
        file.write('{"step": 6, "te')  # of a killed run
    EvaluationsFile(path).on_train_begin(SimpleNamespace(output_dir=tmp_path), state(4), None)
    assert steps(path) == [2, 2, 4, 4]
    EvaluationsFile(path).on_train_begin(SimpleNamespace(output_dir=tmp_path), state(0), None)
    assert steps(path) == []


def test_what_is_logged_is_a_line_of_metrics(tmp_path: Path) -> None:
    written = MetricsFile(tmp_path / "metrics.jsonl")
    written.on_train_begin(SimpleNamespace(output_dir=tmp_path), state(0), None)
    written.on_log(None, state(3), None, logs={"loss": 0.5})
    written.on_log(None, state(3), None, logs={})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 0.5}


def test_lines_that_were_lost_since_a_checkpoint_are_told(tmp_path: Path, caplog: Any) -> None:
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(is_world_process_zero=True, global_step=0)
    (tmp_path / "checkpoint-3").mkdir()
    lines = MetricsFile(tmp_path / "metrics.jsonl")
    lines.on_train_begin(args, state, None)
    for state.global_step in (1, 2, 3):
        lines.on_log(args, state, None, logs={"loss": 1.0})
    lines.on_save(args, state, None)
    lines.path.write_text(lines.path.read_text().split("\n", 1)[1])
    MetricsFile(lines.path).on_train_begin(args, state, None)
    assert f"{lines.path} is damaged: 2 of 3 lines are left" in caplog.text


def test_lines_that_were_changed_since_a_checkpoint_are_told(tmp_path: Path, caplog: Any) -> None:
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(is_world_process_zero=True, global_step=0)
    (tmp_path / "checkpoint-2").mkdir()
    lines = MetricsFile(tmp_path / "metrics.jsonl")
    lines.on_train_begin(args, state, None)
    for state.global_step in (1, 2):
        lines.on_log(args, state, None, logs={"loss": 1.0})
    lines.on_save(args, state, None)
    MetricsFile(lines.path).on_train_begin(args, state, None)
    assert caplog.text == ""
    lines.path.write_text(lines.path.read_text().replace("1.0", "1.5", 1) + "17\n")
    MetricsFile(lines.path).on_train_begin(args, state, None)
    assert f"{lines.path} is damaged (its SHA-256 is not that of what was written)" in caplog.text
    caplog.clear()
    (tmp_path / "checkpoint-2/metrics.lines").write_text("2")  # as earlier versions wrote it
    MetricsFile(lines.path).on_train_begin(args, state, None)
    assert caplog.text == ""


def test_a_line_of_the_same_step_that_came_after_its_checkpoint_comes_again(tmp_path: Path, caplog: Any) -> None:
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(is_world_process_zero=True, global_step=0)
    (tmp_path / "checkpoint-2").mkdir()
    lines = MetricsFile(tmp_path / "metrics.jsonl")
    lines.on_train_begin(args, state, None)
    for state.global_step in (1, 2):
        lines.on_log(args, state, None, logs={"loss": 1.0})
    lines.on_save(args, state, None)
    before = lines.path.read_text()
    lines.on_log(args, state, None, logs={"train_loss": 1.0})  # then it is killed
    MetricsFile(lines.path).on_train_begin(args, state, None)
    assert lines.path.read_text() == before and caplog.text == ""
