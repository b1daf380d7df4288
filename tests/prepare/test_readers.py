"""Held-out rows: of a prompt with very many completions some stand for all."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leftover.evaluation.policy
import leftover.evaluation.run
from leftover import pipeline
from leftover.commands.dry_run.estimate import estimate_run
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


@pytest.mark.parametrize(
    ("reward", "train", "while_training", "in_the_test"),
    [
        (
            {"type": "python", "function": "leftover.demo.grammar:score_answers"},
            {},
            {2, 5},
            2,
        ),  # 5: of the reference, which is chosen by NLL
        (
            {"type": "python", "function": "leftover.demo.grammar:score_answers"},
            {"metric_for_best_model": "nll"},
            {5},
            2,
        ),
        ({"type": "column"}, {}, {5}, 5),
    ],
)
def test_policies_read_few_rows_of_a_prompt_where_completions_tell_which_is_best(
    reward: dict[str, Any],
    train: dict[str, Any],
    while_training: set[int],
    in_the_test: int,
    tmp_path: Path,
    tiny_recipe: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = scored_rows(200)
    rows = [row | {name: rows[5 * (i // 5)][name] for name in ("prompt", "family")} for i, row in enumerate(rows)]
    train = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3} | train
    value = {"targets": "group_loo"}
    content = tiny_recipe(tmp_path, rows=rows, reward={"functions": [reward]}, value=value, train=train)
    seen: dict[str, set[int]] = {"policy": set(), "run": set()}
    for module in (leftover.evaluation.policy, leftover.evaluation.run):

        def spy(
            model: Any,
            tokenizer: Any,
            rows: Any,
            *rest: Any,
            of: Callable = module.row_metrics,
            name: str = module.__name__,
            **options: Any,
        ) -> Any:
            seen[name.rpartition(".")[2]] |= set(Counter(row["group"] for row in rows).values())
            return of(model, tokenizer, rows, *rest, **options)

        monkeypatch.setattr(module, "row_metrics", spy)
    recipe = make_recipe(content)
    told = {line.what: line.amount for line in estimate_run(recipe).work}
    pipeline.run(recipe)
    assert seen == {"policy": while_training, "run": {in_the_test}}
    assert told["test: likelihood"].startswith(f"{4 * in_the_test} rows"), told["test: likelihood"]
