"""What one sees of a training: live at a terminal, one line an evaluation elsewhere."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import ProgressCallback, TrainerCallback

from leftover import pipeline
from leftover.cli import main
from leftover.monitoring.training_display import Completion, LiveDisplay, Pace, TrainingProgress, shown
from leftover.recipe.files import dump_recipe, make_recipe
from leftover.recipe.sections import Recipe
from tests.monitoring.test_terminal import FakeTerminal, terminal  # noqa: F401

ARGS = SimpleNamespace(metric_for_best_model="reward/mean", greater_is_better=True, world_size=1)
CONTROL = SimpleNamespace(should_evaluate=False, should_save=False)


def state_of(step: int, **fields: Any) -> SimpleNamespace:
    defaults = {"max_steps": 20, "best_metric": None, "best_global_step": None, "is_world_process_zero": True}
    return SimpleNamespace(global_step=step, **(defaults | fields))


def go(display: TrainingProgress, rewards: list[float], completions: list[Completion], first: int = 0) -> None:
    """A training of as many steps as rewards, each evaluated."""
    display.on_train_begin(ARGS, state_of(first), CONTROL)
    for step, reward in enumerate(rewards, first + 1):
        display.on_step_end(ARGS, state_of(step), CONTROL)
        display.on_log(ARGS, state_of(step), CONTROL, logs={"loss": 1.5})
        display.on_evaluate(ARGS, state_of(step), CONTROL, {"eval_reward/mean": reward}, completions)
    display.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., dict]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("display")
    content = tiny_recipe(folder)
    pipeline.run(make_recipe(dict(content)), until="prepare")
    return content


def recipe_of(content: dict[str, Any], rate: float, **fields: Any) -> Recipe:
    settings = content["train"] | {"learning_rate": rate, "max_steps": 4, "eval_steps": 2, "save_steps": 2} | fields
    return make_recipe(content | {"train": settings})


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The plain lines."""
    return [r.getMessage() for r in caplog.records if r.name == "leftover.monitoring.training_display"]


def train(content: dict[str, Any], rate: float, **fields: Any) -> Path:
    pipeline.run(recipe_of(content, rate, **fields), until="train")
    return Path(content["output_dir"]) / "policies" / "a_lol_seq" / "seed-0"


def test_elsewhere_than_at_a_terminal_every_evaluation_is_one_plain_line(
    prepared: dict[str, Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    (Path(prepared["output_dir"]).parent / "recipe.yaml").write_text(dump_recipe(recipe_of(prepared, 1e-3)))
    main(["train", str(Path(prepared["output_dir"]).parent / "recipe.yaml")])
    lines = told(caplog)
    assert len(lines) == 2
    number, speed = r"-?\d[\d.]*", r"[\d,]+ tokens/s, [\d.]+ s left"
    form = rf"a_lol_seq-seed-0: step 2/4, held-out reward {number}, best {number} at step 2, {speed}"
    assert re.fullmatch(form, lines[0]), lines[0]
    said = "".join(capfd.readouterr())
    assert "\r" not in said and "\x1b" not in said


def test_at_a_terminal_bar_numbers_and_a_sample_are_shown(
    prepared: dict[str, Any],
    terminal: FakeTerminal,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "leftover.monitoring.training_display")
    train(prepared, 2e-3)
    text = terminal.getvalue()
    for part in ("a_lol_seq-seed-0", "4/4", "left", "tokens/s", "GiB", "held-out reward", "best"):
        assert part in text, part
    assert text.count("  prompt") == text.count("  completion") == 2
    assert not told(caplog)  # the plain lines would say it twice
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_disable_tqdm_gives_plain_lines_at_a_terminal_too(
    prepared: dict[str, Any],
    terminal: FakeTerminal,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "leftover.monitoring.training_display")
    train(prepared, 3e-3, disable_tqdm=True)
    assert "\x1b" not in terminal.getvalue()
    assert len(told(caplog)) == 2


def test_the_numbers_of_a_run_do_not_depend_on_who_watches(
    prepared: dict[str, Any],
    terminal: FakeTerminal,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def metrics(rate: float) -> list[dict[str, Any]]:
        entries = map(json.loads, (train(prepared, rate) / "metrics.jsonl").read_text().splitlines())
        return [entry | {"eval_runtime": None} for entry in entries if "train_runtime" not in entry]

    watched = metrics(4e-3)
    train(prepared, 5e-3)  # another key, so that the first is trained again
    monkeypatch.setenv("CI", "1")
    assert metrics(4e-3) == watched


def test_text_of_models_is_neither_markup_nor_control_sequence(terminal: FakeTerminal) -> None:  # noqa: F811
    plain = LiveDisplay("p[bold]\x1b[2J")
    go(plain, [0.5], [Completion("[red]Q\x1b[2J", "[bold]A[/bold]\x1b[2J\r\x07 " + "y" * 1000, 1.0)])
    text = terminal.getvalue()
    assert r"[red]Q\x1b[2J" in text and r"[bold]A[/bold]\x1b[2J" in text and r"p[bold]\x1b[2J" in text
    assert "\x1b[2J" not in text and "\x07" not in text
    assert "y" * 100 not in text and "…" in text  # cut to the width


def test_the_sample_is_of_the_first_prompt_every_time(terminal: FakeTerminal) -> None:  # noqa: F811
    display = LiveDisplay("policy")
    display.on_train_begin(ARGS, state_of(0), CONTROL)
    for step, answer in ((1, "before"), (2, "after")):
        display.on_step_end(ARGS, state_of(step), CONTROL)
        completions = [Completion("the question", answer, 0.25), Completion("another", "not this", 1.0)]
        display.on_evaluate(ARGS, state_of(step), CONTROL, {"eval_reward/mean": 0.5}, completions)
    display.close()
    text = terminal.getvalue()
    assert "before" in text and "after" in text and "0.25" in text and "another" not in text
    assert text.count("the question") == 2


def test_the_lines_fit_a_narrow_terminal() -> None:
    display = LiveDisplay("a-policy-of-a-long-name-and-seed-12345")
    display.pace = Pace(0, 20_000, None)
    display.pace.stepped(12)
    display.numbers = {"held-out reward": 0.123456, "loss": 12345.678}
    narrow = Console(width=40, file=FakeTerminal())
    lines = narrow.render_lines(display.render(), pad=False)
    assert len(lines) == 2 and all(sum(s.cell_length for s in line) <= 40 for line in lines)


def test_the_best_evaluation_so_far_is_told_with_its_step() -> None:
    display = TrainingProgress("policy")
    go(display, [0.2, 0.7, 0.7, 0.1], [])
    assert display.evaluation_text() == "held-out reward 0.1, best 0.7 at step 2"


def test_of_a_loss_the_lowest_is_best() -> None:
    display = TrainingProgress("reference")
    args = SimpleNamespace(metric_for_best_model="nll", greater_is_better=False, world_size=1)
    for step, nll in ((1, 3.0), (2, 2.0), (3, 2.5)):
        display.on_evaluate(args, state_of(step), CONTROL, {"eval_nll": nll})
    assert display.evaluation_text() == "held-out nll 2.5, best 2 at step 2"


def test_a_resumed_run_counts_the_steps_and_tokens_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(15, 20, lambda: 600)
    now = 106.0
    pace.stepped(17)  # 2 steps in 6 s: 3 are left, in 9 s; 17 steps in 6 s would leave 1 s
    pace.measure_tokens(world_size=2)
    assert pace.seconds_left == 9.0 and pace.tokens_per_second == 200.0  # 2 processes, 600 tokens each, 6 s
    now = 110.0
    pace.paused()
    pace.measure_tokens(world_size=2)
    assert pace.tokens_per_second == 200.0  # an evaluation of 4 s is no training
    now = 113.0
    pace.stepped(18)
    assert pace.seconds_left == pytest.approx(13 / 3 * 2)  # but further ones are to come


def test_a_resumed_run_knows_the_best_of_before() -> None:
    display = TrainingProgress("policy")
    display.on_train_begin(ARGS, state_of(10, best_metric=0.9, best_global_step=8), CONTROL)
    display.on_step_end(ARGS, state_of(11), CONTROL)
    display.on_evaluate(ARGS, state_of(11), CONTROL, {"eval_reward/mean": 0.5})
    assert display.evaluation_text() == "held-out reward 0.5, best 0.9 at step 8"


def test_of_several_processes_only_the_first_says_anything(
    terminal: FakeTerminal,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    second = state_of(1, is_world_process_zero=False)
    for display in (LiveDisplay("policy"), TrainingProgress("policy")):
        display.on_train_begin(ARGS, second, CONTROL)
        display.on_step_end(ARGS, second, CONTROL)
        display.on_evaluate(ARGS, second, CONTROL, {"eval_reward/mean": 0.5}, [Completion("q", "a", 1.0)])
        display.close()
    assert terminal.getvalue() == "" and not caplog.records


def test_an_error_in_training_leaves_the_terminal_in_order(terminal: FakeTerminal) -> None:  # noqa: F811
    callbacks: list[TrainerCallback] = [ProgressCallback()]
    trainer = SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=False),
        add_callback=callbacks.append,
        remove_callback=lambda what: callbacks[:] and callbacks.clear(),
    )
    stderr = sys.stderr
    with pytest.raises(KeyboardInterrupt), shown(trainer, "policy"):
        (display,) = callbacks
        display.on_train_begin(ARGS, state_of(0), CONTROL)
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[?25h") or terminal.getvalue().rindex("\x1b[?25h") > 0
    assert sys.stderr is stderr and not callbacks
