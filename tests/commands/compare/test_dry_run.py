"""`leftover compare --dry-run`: updates, trials, costs and refusals, from the recipe and the rows alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from leftover import cli
from leftover.commands.compare.jobs import counted
from leftover.commands.dry_run.show import plain_table, print_tables
from tests.conftest import scored_rows


@pytest.fixture
def said(tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any, capsys: Any) -> Callable[..., str]:
    """`said(*options, rows=None, **sections)`: what the dry run prints, or the error that it exits with."""
    monkeypatch.setattr("leftover.commands.dry_run.memory.try_to_trace", lambda *args: None)

    def run(*options: str, rows: Any = None, **sections: Any) -> str:
        content = tiny_recipe(tmp_path, rows=grouped() if rows is None else rows, **sections)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        try:
            cli.main(["compare", str(tmp_path / "recipe.yaml"), *options, "--dry-run"])
        except SystemExit as exit_:
            assert exit_.code == 2
            return capsys.readouterr().err
        return capsys.readouterr().out

    return run


def grouped() -> list[dict[str, Any]]:
    """Two completions a prompt."""
    return [row | change for row in scored_rows(30) for change in ({}, {"completion": " It.", "reward": 0.0})]


def row_of(text: str, name: str) -> list[str]:
    """The cells of the comparison's row of a method."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


STEPS = {"max_steps": 16, "per_device_train_batch_size": 4, "learning_rate": 1e-3}


def test_work_memory_and_the_values_of_the_trials_are_told(said: Callable) -> None:
    text = said("--methods", "a_lol_seq,nll", "--grid", "declared", "--seeds", "2", train=STEPS)
    # Two methods, three further trials and two seeds each, 16 steps a run.
    assert "train policies" in text and "160 steps" in text and "together" in text
    assert "Memory on the device" in text and "10 runs in all, seeds 0, 1." in text
    assert (
        "Trials of a_lol_seq: its settings as they are; learning_rate 0.000333; learning_rate 0.003; clip 0.2." in text
    )
    assert (
        "Trials of nll: its settings as they are; learning_rate 0.000333; learning_rate 0.003; learning_rate 0.01"
        in text
    )


def test_the_papers_budget_scales_what_is_known_and_bounds_the_rest(said: Callable) -> None:
    methods = {"nll": "16", "top": "4", "nll_top10": "2", "a_lol_seq": "at most 16", "dpo": "at most 16"}
    top = {"top": {"objective": "nll_top"}}  # 25 % by default
    text = said("--methods", ",".join(methods), "--budget", "paper", train=STEPS, policies=top)
    assert {name: row_of(text, name)[3] for name in methods} == methods
    assert "- At most:" in text and "share of rows" in text


def test_the_released_code_takes_fewer_updates_than_can_be_told(said: Callable) -> None:
    policies = {"ours": {"objective": "a_lol"}, "theirs": {"objective": "a_lol", "released_code": True}}
    text = said(train=STEPS, policies=policies | {"all": {"objective": "r_lol", "released_code": True}})
    assert row_of(text, "ours")[3] == "16" and row_of(text, "theirs")[3] == "at most 16"
    assert row_of(text, "theirs")[4].startswith("at most about ") and row_of(text, "all")[3] == "16"
    assert "released_code" in text and "fewer updates" in text


def test_of_ppo_completions_and_whole_steps_are_told(said: Callable) -> None:
    text = said(train=STEPS | {"max_steps": 17}, policies={"p": {"objective": "ppo", "num_rollouts_per_step": 8}})
    cells = row_of(text, "p")
    assert cells[2].startswith("8 completions every 8") and cells[3] == "24"


def test_a_set_that_the_rows_cannot_serve_is_refused(said: Callable) -> None:
    text = said("--methods", "dpo,pro", rows=scored_rows(20))
    assert "none of the methods" in text and "pro: " in text


def test_a_negative_recorded_reward_rules_out_what_needs_none(said: Callable) -> None:
    rows = [row | {"reward": row["reward"] - 1} for row in grouped()]
    recorded = {"rows": rows, "reward": {"functions": [{"type": "column"}]}}
    text = said("--methods", "nll,wbc,r_gold", **recorded)
    assert re.search(r"- wbc: n/a, .*rewards >= 0", text) and "- r_gold: n/a" in text and "- nll" not in text
    shifted = {"functions": [{"type": "column"}], "transform": "minmax"}
    assert "n/a" not in said("--methods", "nll,wbc,r_gold", rows=rows, reward=shifted)


@pytest.mark.parametrize(
    ("methods", "grid", "expected"),
    [
        ("dpo", "beta=0.1,0.5", "grid of 'dpo': .*'beta'.*objective_settings"),
        ("dpo,a_lol_seq", "objective_settings.beta=0.1,0.5", "grid of 'a_lol_seq': objective_settings"),
        ("dpo", "objective_settings.beta=abc", r"grid of 'dpo': objective_settings\.beta"),
        ("nll", "learning_rate_factor=abc", "grid of 'nll': learning_rate_factor .*'abc'"),
    ],
)
def test_a_grid_of_a_setting_that_a_method_has_not_names_the_method(
    methods: str, grid: str, expected: str, said: Callable
) -> None:
    text = said("--methods", methods, "--grid", grid)
    assert re.search(expected, text) and "trial-" not in text


def test_no_word_of_the_tables_is_broken() -> None:
    rows = [("reference log-probabilities", "148 KiB", "295 KiB", "57.3 MiB", "57.4 MiB")]
    table = plain_table("Memory", "", "weights", "optimizer", "passing", "together", rows=rows)
    terminal = Console(width=64)
    with terminal.capture() as printed:
        print_tables(terminal, [table])
    assert "log-probabilities" in printed.get().split()


def test_runs_are_counted_in_words() -> None:
    assert (counted(1), counted(2), counted(0)) == ("1 run", "2 runs", "0 runs")
