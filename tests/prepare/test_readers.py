"""Held-out rows: of a prompt with very many completions some stand for all."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from leftover import pipeline
from leftover.prepare.readers import ROWS_OF_A_PROMPT, rows_of_a_prompt, selection_rows
from leftover.prepare.readers import test_rows as rows_of_test
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.conftest import scored_rows


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("scored", "most"), [(False, 64), (True, 2)])
def test_of_a_prompt_with_many_completions_some_are_drawn(
    scored: bool, most: int, split: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    assert rows_of_a_prompt(scored) == most
    rows = scored_rows(ROWS_OF_A_PROMPT + 40)
    asked = rows[0]["prompt"]
    many = [row | {"prompt": asked, "split": split} for row in rows]
    others = {"train": 60, "validation": 6, "test": 6}
    few = [row | {"split": name} for name, number in others.items() for row in scored_rows(number, seed=number)]
    content = tiny_recipe(tmp_path, rows=many + few, evaluate={"max_selection_prompts": 50, "max_prompts": 50})
    run = open_run(make_recipe(content))
    pipeline.prepare(run, "tokens")
    recipe, table = run.recipe, run.table
    found = selection_rows(recipe, table, most) if split == "validation" else rows_of_test(recipe, table, most)
    counts = Counter(row["prompt"] for row in found)
    assert counts.pop(asked) == most
    assert sum(counts.values()) == others[split]
    places = [int(row["where"].rpartition(":")[2]) for row in found]
    assert places == sorted(places)
    assert max(places[:most]) > most, "drawn, not the first ones"
    run.close()
