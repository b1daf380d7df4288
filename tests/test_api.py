"""The commands in Python: rows in memory, options by name, results that show themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import leftover
from leftover.errors import UserError
from tests.conftest import scored_rows


def test_a_run_reads_rows_in_memory_and_shows_itself(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(tmp_path, train={"max_steps": 2})
    del recipe["data"]["path"]
    rows = datasets.Dataset.from_list(scored_rows(60))
    assert leftover.run(recipe, "prepare", data=rows) is None
    results = leftover.run(recipe, data=rows, overrides=["train.max_steps=3"])
    assert results is not None and results["main"] == "a_lol_seq" and "a_lol_seq" in str(results)
    assert json.dumps(results) and results._repr_html_().startswith("<pre>")
    assert (tmp_path / "run.rows.jsonl").is_file() and "path" not in recipe["data"]


def test_comparisons_take_the_options_of_the_command(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(tmp_path, train={"max_steps": 2})
    with pytest.raises(UserError, match="no option 'method'; did you mean 'methods'"):
        leftover.compare(recipe, method="nll")
    with pytest.raises(UserError, match="budget: 'none' is not one of 'equal', 'paper'"):
        leftover.compare(recipe, budget="none")
    results = leftover.compare(recipe, methods="nll", seeds=1)
    assert results["budget"] == "equal" and "nll" in str(results)


def test_generated_rows_are_of_prompts_in_memory(tmp_path: Path, tiny_llama_path: str) -> None:
    prompts = [{"prompt": row["prompt"]} for row in scored_rows(3)]
    found = leftover.generate(
        tiny_llama_path, prompts, output=tmp_path / "a.jsonl", n=2, max_new_tokens=4, unfinished="keep"
    )
    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    assert found["rows"] == len(rows) > 0 and f"{len(rows)} rows of 3 prompts" in str(found)


def test_a_judge_needs_a_model(tmp_path: Path, tiny_run: Callable) -> None:
    run = tiny_run(tmp_path)["output_dir"]
    with pytest.raises(UserError, match="model is missing"):
        leftover.judge(run)
    with pytest.raises(UserError, match="no option 'human'"):
        leftover.judge(run, human="page.html")


def test_an_inspection_shows_itself_in_a_notebook(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = scored_rows(20)
    found = leftover.inspect([*rows, rows[0] | {"prompt": rows[0]["prompt"].upper(), "reward": 7.0}])
    shown = found._repr_html_()
    assert (
        "Fix 1 contradiction (2 rows); " in shown
        and "of the scored rows would not train" in shown
        and "<b>" not in shown
    )
    assert found.page.is_file()
