"""Every objective through the trainer: from raw rows, in any split into micro-batches, resumed, and from a recipe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from leftover import LoLConfig, LoLTrainer
from leftover.data.collate import Collator
from leftover.demo.grammar import score_answers
from leftover.errors import UserError
from leftover.models.logprobs import completion_logprobs
from leftover.models.reference import reference_pass
from leftover.objectives import OBJECTIVES
from leftover.pipeline import run
from leftover.prepare.constants import Reference
from leftover.prepare.extras import mismatch, mismatched_logprobs
from leftover.recipe.files import make_recipe
from leftover.recipe.needs import needs_of
from leftover.runs.claim import open_run
from leftover.training.draws import DrawOrder
from tests.conftest import scored_rows
from tests.recipe.test_recipes import OF_THE_PAPER
from tests.training.test_trainer import parameters, prepared_rows

GROUP = 3
# Those that no other test trains from a recipe.
NEW = [name for name in OBJECTIVES if name not in OF_THE_PAPER]


def score(prompts: Any, completions: Any) -> list[float]:
    """The score of the grammar, lifted above 0, and a little more for longer answers, so that few are equal."""
    scores = score_answers(prompts, completions)
    return [s + 2 + len(c) / 1000 for s, c in zip(scores, completions, strict=True)]


def grouped_rows(num_prompts: int) -> list[dict[str, Any]]:
    """Three completions of every prompt: its own, and those of two others."""
    rows = scored_rows(num_prompts)
    made = [
        {"prompt": row["prompt"], "completion": rows[(i + j) % num_prompts]["completion"]}
        for i, row in enumerate(rows)
        for j in range(GROUP)
    ]
    rewards = score([row["prompt"] for row in made], [row["completion"] for row in made])
    return [row | {"reward": reward} for row, reward in zip(made, rewards, strict=True)]


def complete_rows(path: str, tokenizer: Any) -> datasets.Dataset:
    """Eight prompts of three completions, with every column that any objective reads."""
    rows = prepared_rows(path, tokenizer)
    group = np.repeat(np.arange(8), GROUP)
    prompts = [rows["prompt_ids"][i - i % GROUP] for i in range(len(rows))]
    partner = mismatch(group, 0)
    completions = rows["completion_ids"][:]
    mismatched = [completions[i] for i in partner]
    model = AutoModelForCausalLM.from_pretrained(path)
    rng = np.random.default_rng(1)
    reference = Reference(lambda: (model, tokenizer), None, 8, 0)
    lists = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompts, completions, strict=True)]
    logprobs, features = reference_pass(model, tokenizer, lists)
    return datasets.Dataset.from_dict(
        {
            **{name: rows[name][:] for name in ("completion_ids", "reward", "value", "advantage")},
            "prompt_ids": prompts,
            "reference_logprobs": logprobs,
            "prompt_features": features,
            "group": group,
            "reward_quantile": rng.uniform(0, 1, len(rows)),
            "mismatched_ids": mismatched,
            "mismatched_reference_logprob": mismatched_logprobs(reference, prompts, mismatched),
        }
    )


@pytest.fixture(scope="module")
def rows(tiny_llama_path: str, tokenizer: Any) -> datasets.Dataset:
    return complete_rows(tiny_llama_path, tokenizer)


def make_trainer(path: str, tokenizer: Any, dataset: Any, folder: Path, **settings: Any) -> LoLTrainer:
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
    }
    args = LoLConfig(output_dir=str(folder), **(defaults | settings))
    return LoLTrainer(AutoModelForCausalLM.from_pretrained(path), args, dataset, processing_class=tokenizer)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_trains_from_raw_rows_without_a_recipe(
    objective: str, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    args = LoLConfig(
        output_dir=str(tmp_path),
        objective=objective,
        max_steps=2,
        logging_steps=1,
        disable_tqdm=True,
        reference_samples=2,
        max_completion_length=48,
        value_targets="recorded",
    )
    trainer = LoLTrainer(tiny_llama_path, args, grouped_rows(6), processing_class=tokenizer, reward_funcs=score)
    before = parameters(trainer.model)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
    assert not torch.equal(parameters(trainer.model), before)


# Groups stay whole, and what is estimated over a batch (var, kto) is estimated over the whole step.


@pytest.mark.parametrize("objective", NEW)
def test_the_gradient_is_the_same_under_a_split_into_micro_batches(
    objective: str, tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from leftover.training import trainer as module

    cuts = [0, 3, 9, 12]
    order = DrawOrder(np.arange(12), np.array(cuts))
    monkeypatch.setattr(module, "run_order", lambda *_: (order, 1))
    options: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0, "gradient_accumulation_steps": len(cuts) - 1}
    # At step 0 the reference point of kto is 0 in every batch: these rows have one of their own each.
    shifted = np.array(rows["mismatched_reference_logprob"]) - np.linspace(0, 60, len(rows))
    rows = rows.remove_columns("mismatched_reference_logprob").add_column("mismatched_reference_logprob", shifted)
    trainer = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path, objective=objective, max_steps=1, **options)
    start = parameters(trainer.model)
    batch = Collator(0)([rows[i] for i in range(12)])
    logprobs = completion_logprobs(trainer.model, batch)
    whole = trainer.with_extras(trainer.model, batch, trainer.completion_batch(logprobs, batch))
    trainer.objective.loss(whole, trainer.settings).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    trainer.model.zero_grad()
    trainer.trained_along.zero_grad()
    trainer.train()
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close((start - parameters(trainer.model)) / 1e-2, expected, atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("objective", ["dpo", "pro", "grpo_offline"])
def test_batches_hold_whole_groups_and_of_those_the_usable_rows(
    objective: str, tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path, objective=objective, max_steps=6)
    order, group = trainer.draw_order, np.array(rows["group"])
    assert order.num_batches == 6 and trainer.selection_facts == {"groups": 8, "groups_left_out": 0}
    size = 2 if objective == "dpo" else GROUP
    for i in range(6):
        drawn = group[order.batch(i)]
        assert len(drawn) == 4 * size and set(np.unique(drawn, return_counts=True)[1]) == {size}
    epoch = order.indices[: 8 * size]
    assert len(set(epoch)) == 8 * size, "every group comes once an epoch"
    drawn_by_weight = make_trainer(
        tiny_llama_path, tokenizer, rows, tmp_path, objective=objective, max_steps=6, draw="priority"
    )
    assert (drawn_by_weight.draw_order.indices == order.indices).all(), "groups have no weight to be drawn by"


def test_lone_completions_and_ties_are_left_out_and_counted(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO", "leftover")
    reward = np.array(rows["reward"])
    reward[:GROUP] = 0.5
    changed = rows.remove_columns("reward").add_column("reward", reward).select(range(7))
    trainer = make_trainer(tiny_llama_path, tokenizer, changed, tmp_path, objective="dpo")
    assert trainer.selection_facts == {"groups": 1, "groups_left_out": 2}
    assert "dpo: 1 prompts" in caplog.text and "2 dropped" in caplog.text
    assert set(trainer.draw_order.indices) < {3, 4, 5} and trainer.num_selected == 2
    with pytest.raises(UserError, match="in none of the 1 prompts do they differ"):
        make_trainer(tiny_llama_path, tokenizer, changed.select(range(3)), tmp_path, objective="dpo")


def test_nll_top_takes_the_share_of_highest_reward(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    reward = np.array(rows["reward"])
    for percent, count in ((25.0, 6), (10.0, 2)):
        trainer = make_trainer(
            tiny_llama_path, tokenizer, rows, tmp_path, objective="nll_top", top_percent=percent, max_steps=12
        )
        assert set(trainer.draw_order.indices) == set(np.argsort(-reward)[:count])


SAMPLERS = {
    "priority": ({}, True, True),
    "priority, unweighted": ({"draw": "priority_unweighted"}, True, True),
    "leftover, uniform (good random)": ({"draw": "uniform"}, False, True),
    "all rows, uniform": ({"draw": "uniform", "rows": "all"}, False, False),
    "all rows, priority: never those of weight 0": ({"rows": "all"}, True, True),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_reachable(name: str, tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    settings, by_weight, leftover_only = SAMPLERS[name]
    trainer = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path, max_steps=500, **settings)
    advantage = np.array(rows["advantage"])
    counts = np.bincount(trainer.draw_order.indices, minlength=len(rows))
    possible = advantage > 0 if leftover_only else np.ones(len(rows), bool)
    assert ((counts > 0) == possible).all()
    if by_weight:
        assert np.corrcoef(counts[possible], advantage[possible])[0, 1] > 0.95
    else:
        assert np.ptp(counts[possible]) <= 1


def test_the_help_names_every_sampler() -> None:
    said = " ".join(LoLConfig.__dataclass_fields__[name].metadata["help"] for name in ("rows", "draw"))
    for name in ("priority", "priority_unweighted", "uniform", "leftover", "top", "all", "good random"):
        assert name in said


def test_the_reference_point_of_kto_starts_at_zero_and_follows_the_policy(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path, objective="kto", max_steps=3)
    trainer.train()
    batch = Collator(0)([rows[i] for i in range(6)])
    found = trainer.providers["mismatched_logratio"](trainer.model, batch, None)
    pairs = [{"prompt_ids": rows[i]["prompt_ids"], "completion_ids": rows[i]["mismatched_ids"]} for i in range(6)]
    logprob = completion_logprobs(trainer.model, Collator(0)(pairs)).sum(1)
    expected = logprob.detach() - torch.tensor(rows["mismatched_reference_logprob"][:6])
    torch.testing.assert_close(found, expected.mean().float(), atol=1e-4, rtol=0)
    assert not found.requires_grad and found.abs() > 1e-3
    assert trainer.state.log_history[0]["kto/kl"] == pytest.approx(0, abs=1e-4)
    labels = [entry["kto/frac_desirable"] for entry in trainer.state.log_history if "kto/frac_desirable" in entry]
    drawn = np.array(rows["advantage"])[trainer.draw_order.indices].reshape(3, 4)
    np.testing.assert_allclose(labels, (drawn > 0).mean(1), atol=1e-6)


def test_mismatched_completions_are_of_other_prompts_and_spread() -> None:
    rng = np.random.default_rng(0)
    for groups in (rng.integers(0, 9, 60), np.array([0] * 50 + [1, 2, 3]), np.arange(5), np.array([4, 4, 7])):
        partner = mismatch(groups, 3)
        assert (groups[partner] != groups).all()
        if np.bincount(groups).max() <= len(groups) / 2:
            assert sorted(partner) == list(range(len(groups))), "each is used once"
    assert (mismatch(np.arange(50), 1) != mismatch(np.arange(50), 2)).any()
    with pytest.raises(UserError, match="all training rows share one prompt"):
        mismatch(np.zeros(4), 0)


def test_the_value_of_dro_is_trained_saved_and_resumed(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    settings = {"objective": "dro", "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    settings |= {"objective_settings": {"value_learning_rate": 0.1}}
    whole = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path / "whole", **settings)
    start = [p.detach().clone() for p in whole.trained_along.parameters()]
    assert start[1].item() == pytest.approx(np.mean(rows["reward"]), abs=1e-6)
    whole.train()
    trained = list(whole.trained_along.parameters())
    assert (trained[0] - start[0]).abs().max() > 0.05 and (trained[1] - start[1]).abs() > 1e-3
    again = make_trainer(tiny_llama_path, tokenizer, rows, tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    for ours, theirs in zip(again.trained_along.parameters(), trained, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(parameters(again.model), parameters(whole.model))


def test_the_value_of_dro_takes_the_step_of_its_own_gradient(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    """The Trainer clears the policy's gradients alone: had those of the value been kept, its steps would add up."""
    settings = {"objective_settings": {"value_learning_rate": 0.5}, "optim": "sgd", "learning_rate": 0.0}
    trainer = make_trainer(
        tiny_llama_path, tokenizer, rows, tmp_path, objective="dro", max_steps=3, max_grad_norm=0, **settings
    )
    bias = trainer.trained_along["soft_value"][1].bias.item()
    weight = torch.zeros_like(trainer.trained_along["soft_value"][1].weight)
    for i in range(3):  # the policy stays: D = 0, and dL/dV = V - R
        batch = Collator(0)([rows[int(j)] for j in trainer.draw_order.batch(i)])
        features = torch.nn.functional.layer_norm(batch["prompt_features"], batch["prompt_features"].shape[1:])
        error = (features @ weight.T).squeeze(1) + bias - batch["reward"]
        weight = weight - 0.5 * (error[:, None] * features).mean(0)
        bias = bias - 0.5 * error.mean().item()
    trainer.train()
    torch.testing.assert_close(trainer.trained_along["soft_value"][1].weight, weight, atol=1e-4, rtol=1e-3)
    assert trainer.trained_along["soft_value"][1].bias.item() == pytest.approx(bias, abs=1e-4)


@pytest.mark.parametrize(
    ("objective", "column"),
    [("kto", "mismatched_ids"), ("dro", "prompt_features"), ("qrpo", "reward_quantile"), ("dpo", "reference_logprobs")],
)
def test_prepared_rows_without_a_column_are_refused_by_name(
    objective: str, column: str, tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"objective '{objective}' needs the column '?{column}"):
        make_trainer(tiny_llama_path, tokenizer, rows.remove_columns(column), tmp_path, objective=objective)


def test_what_a_policy_requires_follows_its_settings(tmp_path: Path, tiny_recipe: Callable) -> None:
    policies = {
        "kto": {"objective": "kto"},
        "labelled": {"objective": "kto", "objective_settings": {"threshold": 0.5}},
        "dpo": {"objective": "dpo", "objective_settings": {"reference_free": True}},
        "leftover": {"objective": "nll", "rows": "leftover"},
    }
    recipe = make_recipe(tiny_recipe(tmp_path, policies=policies))
    assert [name for name in policies if "value" in needs_of(recipe, name)] == ["kto", "leftover"]
    assert "reference_logprobs" not in needs_of(recipe, "dpo")


def test_a_reward_that_equals_all_samples_is_at_the_highest_quantile(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    made = [row | {"reward": reward} for row, reward in zip(grouped_rows(2), (1.0, 0.5, 2.0) * 2, strict=True)]
    args = LoLConfig(
        output_dir=str(tmp_path), objective="qrpo", reference_samples=2, max_completion_length=48, use_cpu=True
    )
    constant = lambda prompts, completions: [1.0] * len(prompts)  # noqa: E731
    trainer = LoLTrainer(tiny_llama_path, args, made, processing_class=tokenizer, reward_funcs=constant)
    assert list(trainer.train_dataset["reward_quantile"]) == [1.0, 0.0, 1.0] * 2


def recipe_of(tiny_recipe: Callable, folder: Path, **more: Any) -> dict[str, Any]:
    reward = {"functions": [{"type": "python", "function": "tests.training.test_methods:score"}]}
    return tiny_recipe(folder, rows=grouped_rows(20), reward=reward, **more)


def test_every_further_objective_trains_from_a_recipe(tmp_path: Path, tiny_recipe: Callable) -> None:
    policies = {name: {"objective": name, "reference_samples": 2} for name in NEW}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    evaluate = {"max_selection_prompts": 1, "max_new_tokens": 4}
    content = recipe_of(tiny_recipe, tmp_path, policies=policies, train=steps, evaluate=evaluate)
    run(make_recipe(content), until="train")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    table = json.loads((tmp_path / "run/table/manifest.json").read_text())
    for name in NEW:
        facts = manifest[f"policy {name}, seed 0"]
        assert facts["steps"] == 2 and ("groups" in facts) == (OBJECTIVES[name].unit == "group")
        assert ("quantile" in facts["key"]["from"]) == (name == "qrpo")
        assert ("mismatched" in facts["key"]["from"]) == (name == "kto")
        saved = load_file(tmp_path / f"run/policies/{name}/seed-0/model.safetensors")
        assert not any("value" in key and "soft" in key for key in saved)
    assert {"quantile", "mismatched"} <= set(table)
    this = open_run(make_recipe(content))
    rows = this.table.open("split", "quantile", "reward", "mismatched")
    train = np.array(rows["split"]) == "train"
    quantile, reward = np.array(rows["reward_quantile"]), np.array(rows["reward"])
    samples = np.array(rows["reference_rewards"])
    assert samples.shape == (60, 2) and np.isnan(quantile[~train]).all()
    np.testing.assert_allclose(quantile[train], (samples[train] <= reward[train][:, None]).mean(1))
    assert [len(ids) > 0 for ids in rows["mismatched_ids"]] == train.tolist()


def test_extra_columns_are_computed_only_where_a_policy_asks(tmp_path: Path, tiny_recipe: Callable) -> None:
    run(make_recipe(recipe_of(tiny_recipe, tmp_path)), until="prepare")
    assert not {"quantile", "mismatched"} & set(json.loads((tmp_path / "run/table/manifest.json").read_text()))


def test_a_recipe_that_cannot_serve_an_objective_is_refused_before_anything_is_computed(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    def refused(message: str, folder: str, **content: Any) -> Path:
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match=message):
            run(make_recipe(tiny_recipe(tmp_path / folder, **content)), until="prepare")
        return tmp_path / folder / "run"

    recorded = {"reward": {"functions": [{"type": "column"}]}}
    left = refused("policy 'q' .*ranks rewards among", "recorded", policies={"q": {"objective": "qrpo"}}, **recorded)
    assert not (left / "table").exists(), "before a row is read"
    left = refused("compares completions of one prompt, and each", "alone", policies={"p": {"objective": "pro"}})
    assert not (left / "table/reward").exists(), "before a row is scored"
    rows = [row | {"reward": 0.0} for row in grouped_rows(20)]
    policies = {"d": {"objective": "dpo"}}
    left = refused("no training prompt has two of different reward", "ties", rows=rows, policies=policies, **recorded)
    assert not (left / "reference").exists(), "before the reference is fitted"
    samples = {"a": {"objective": "qrpo"}, "b": {"objective": "qrpo", "reference_samples": 3}}
    refused("different numbers of reference_samples", "samples", policies=samples)


def test_chosen_and_rejected_pairs_serve_dpo_where_the_others_take_the_chosen(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    singles = scored_rows(40)
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": singles[i - 1]["completion"]}
        for i, row in enumerate(singles)
    ]
    policies = {"dpo": {"objective": "dpo"}, "nll": {"objective": "nll"}}
    content = tiny_recipe(tmp_path, rows=rows, data={"train_on": "chosen"}, policies=policies)
    run(make_recipe(content), until="train")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    pairs, chosen = (manifest[f"policy {name}, seed 0"]["selected_rows"] for name in ("dpo", "nll"))
    assert pairs == 2 * chosen == 2 * manifest["policy dpo, seed 0"]["groups"]
