"""What the dry run says of scorers that a run fine-tunes first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from leftover.commands.dry_run.estimate import estimate_run
from leftover.commands.dry_run.trace import Live
from leftover.recipe.files import make_recipe
from leftover.rewards import load_reward
from tests.rewards.reward_rows import planted_rows, write

EPOCHS, BATCH = 2, 8


def fine_tuned(folder: Path, start: str, **settings: Any) -> dict[str, Any]:
    train = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH}
    path = write(folder / "labels.jsonl", planted_rows("label", 40))
    return {"type": "fine_tuned", "model": start, "fit": {"path": path}, "train": train, **settings}


def recipe(content: dict[str, Any], *scorers: dict[str, Any], judges: tuple = ()) -> Any:
    return make_recipe(content | {"reward": {"functions": list(scorers)}, "evaluate": {"judges": list(judges)}})


def test_steps_rows_and_memory_are_those_of_the_fit(tmp_path: Path, tiny_recipe: Callable, tiny_gpt2_path: str) -> None:
    spec = fine_tuned(tmp_path, tiny_gpt2_path)
    judge = spec | {"name": "held_out", "seed": 1}
    estimate = estimate_run(recipe(tiny_recipe(tmp_path), spec | {"name": "good"}, judges=(judge,)))
    facts = load_reward(spec).fit(tmp_path)
    rows = facts["rows_fitted"] - facts["rows_choosing"]
    lines = {line.what: line for line in estimate.work}
    assert facts["steps"] == EPOCHS * -(-rows // BATCH)
    assert lines["fit reward good"].amount == f"at most {facts['steps']:,} steps over {rows:,} rows"
    assert "fit judge held_out" in lines and "rewards of the rows" in lines
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    held = next(memory for memory in estimate.memory if memory.stage == "fit reward good")
    assert held.weights == sum(p.nbytes for p in model.parameters()) and held.optimizer == 2 * held.weights
    reward = load_reward(spec)
    longest = max(len(reward_ids) for reward_ids in token_ids(reward, tmp_path))
    for parameter in model.parameters():
        parameter.grad = None
    with Live(model.train()) as live:
        ids = torch.ones(BATCH, longest, dtype=torch.int64)
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    assert held.passing == pytest.approx(live.peak, rel=0.15)
    scored = [memory for memory in estimate.memory if memory.stage == "evaluation"]
    assert scored[0].rewards == pytest.approx(2 * held.weights, rel=0.01), "reward and judge are two models"


def token_ids(reward: Any, folder: Path) -> list[list[int]]:
    """Of all rows that the fit learns from."""
    from leftover.rewards.examples import hold_out, read_examples

    examples, _ = read_examples(reward.data, None, "auto")
    plan = reward.plan(folder, examples.take(~hold_out(examples, 0.2, 0)), *reward.start(weights=False))
    return [text["input_ids"] for row in plan.train for text in row[0]]


def test_a_start_that_is_not_here_is_to_be_downloaded_and_its_fit_unknown(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    spec = fine_tuned(tmp_path, "some-owner/some-encoder", name="good")
    estimate = estimate_run(recipe(tiny_recipe(tmp_path), spec))
    assert ("reward", "some-owner/some-encoder", "to download") in [
        (s.purpose, s.name, s.state) for s in estimate.sources
    ]
    assert {line.what: line.amount for line in estimate.work}["fit reward good"] == "unknown"
