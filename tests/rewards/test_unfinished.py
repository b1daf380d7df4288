"""Completions that ran into the limit count alike everywhere: tests, checkpoints, value targets, quantiles, PPO."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from leftover import LoLConfig, PPOConfig, pipeline
from leftover.errors import UserError
from leftover.evaluation.policy import evaluate_policy, metric_names
from leftover.evaluation.run import Evaluation
from leftover.models.generate import generate, have_ended
from leftover.prepare.constants import Reference
from leftover.prepare.extras import reward_quantiles
from leftover.prepare.value.estimate import RowConstants, estimate_values
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import ValueSection
from leftover.rewards.unfinished import settled, unfinished_text
from leftover.runs.claim import open_run
from leftover.runs.names import read_completions
from leftover.runs.run import Run
from leftover.store.table import column
from leftover.training.run import policy_key
from leftover.training.settings import training_args
from tests.conftest import scored_rows

NAN = float("nan")
LIMIT = 3
PENALTY = {"penalty": 10.0}
RULES = ["score", "drop", PENALTY]


def characters(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in completions]


# The rule.


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("score", [1.0, 2.0]), ("drop", [1.0, NAN]), ({"penalty": 0.5}, [1.0, 1.5]), ({"penalty": 0.0}, [1.0, 2.0])],
)
def test_what_ended_keeps_its_reward_and_what_did_not_counts_by_the_rule(rule: Any, expected: list[float]) -> None:
    np.testing.assert_array_equal(settled([1.0, 2.0], np.array([True, False]), rule), expected)


@pytest.mark.parametrize("rule", ["keep", {"penalty": -1.0}, {"penalty": NAN}, {}, {"fine": 1.0}, None, 3])
def test_a_faulty_rule_is_named_with_what_it_takes(rule: Any, tmp_path: Path, tiny_recipe: Callable) -> None:
    with pytest.raises(UserError, match=r"evaluate\.unfinished"):
        make_recipe(tiny_recipe(tmp_path, evaluate={"unfinished": rule}))
    with pytest.raises(UserError, match=r"unfinished is .*score, drop, or \{'penalty': x\}"):
        LoLConfig(output_dir=str(tmp_path), unfinished=rule)


def test_one_place_decides_it(tmp_path: Path, tiny_recipe: Callable) -> None:
    with pytest.raises(UserError, match=r"missing_eos_penalty and .*set one"):
        PPOConfig(output_dir=str(tmp_path), missing_eos_penalty=1.0, unfinished="drop")
    ppo = {"policies": {"p": {"objective": "ppo", "missing_eos_penalty": 1.0}}, "evaluate": {"unfinished": "drop"}}
    with pytest.raises(UserError, match=r"policies\.p\.missing_eos_penalty' and evaluate\.unfinished"):
        make_recipe(tiny_recipe(tmp_path, **ppo))
    for section in ({"train": {"unfinished": "drop"}}, {"policies": {"p": {"unfinished": "drop"}}}):
        with pytest.raises(UserError, match=r"unfinished' cannot be set here: set evaluate\.unfinished"):
            make_recipe(tiny_recipe(tmp_path, **section))


def test_what_a_rule_did_is_said() -> None:
    assert unfinished_text("score") == "" and "no reward" in unfinished_text("drop")
    assert "loses 0.5" in unfinished_text({"penalty": 0.5})


# Evaluation of a policy, the reference's samples.


@pytest.fixture(scope="module")
def model(tiny_llama_path: str, tokenizer: Any) -> Any:
    """A model of which some completions of `LIMIT` tokens end and some do not."""
    found: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    found.generation_config.eos_token_id = list(range(2, len(tokenizer), 4))
    return found


@pytest.fixture(scope="module")
def table(tokenizer: Any) -> dict[str, Any]:
    prompts = [row["prompt"] for row in scored_rows(12)]
    return {
        "prompt": prompts,
        "conversational": [False] * len(prompts),
        "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts],
        "group": list(range(len(prompts))),
    }


def by_hand(model: Any, tokenizer: Any, table: dict[str, Any], rule: Any, seed: int = 0) -> np.ndarray:
    ids, texts, _ = generate(model, tokenizer, table["prompt_ids"], max_new_tokens=LIMIT, sample=True, seed=seed)
    ended = have_ended(model, ids)
    assert 0 < ended.sum() < len(ended) and [len(i) == LIMIT for i, e in zip(ids, ended, strict=True) if not e]
    lost = {"score": 0.0, "drop": NAN}.get(rule, 10.0) if isinstance(rule, str) else rule["penalty"]
    return np.array([len(text) - (0.0 if e else lost) for text, e in zip(texts, ended, strict=True)])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_checkpoint_is_chosen_by_the_rule(
    rule: Any, model: Any, tokenizer: Any, table: dict[str, Any], tmp_path: Path
) -> None:
    args = LoLConfig(output_dir=str(tmp_path), max_completion_length=LIMIT, seed=0, unfinished=rule, use_cpu=True)
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    metrics, completions = evaluate_policy(model, tokenizer, rows, args, characters)
    expected = by_hand(model, tokenizer, table, rule)
    np.testing.assert_array_equal([c.reward for c in completions], expected)
    assert metrics["reward/mean"] == pytest.approx(np.nanmean(expected))
    assert metrics["reward/std"] == pytest.approx(np.nanstd(expected))
    assert ("completions/ended" in metrics) == (rule != "score")
    assert set(metric_names(rows, characters, args)) >= metrics.keys()


def test_a_policy_that_never_ends_is_never_the_best(
    tiny_llama_path: str, tokenizer: Any, table: dict[str, Any], tmp_path: Path
) -> None:
    endless: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    endless.generation_config.eos_token_id = len(tokenizer) - 1
    args = LoLConfig(output_dir=str(tmp_path), max_completion_length=1, unfinished="drop", use_cpu=True)
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    metrics, _ = evaluate_policy(endless, tokenizer, rows[:2], args, characters)
    assert metrics["completions/ended"] == 0 and metrics["reward/mean"] == -np.inf


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_samples_of_the_reference_count_by_the_rule(
    rule: Any, model: Any, tokenizer: Any, table: dict[str, Any], caplog: Any
) -> None:
    reference = Reference(lambda: (model, tokenizer), None, LIMIT, 0, unfinished=rule)
    found = reference.sampled_rewards(table, np.arange(12), characters, ValueSection(samples_per_prompt=2))
    expected = np.stack([by_hand(model, tokenizer, table, rule, seed) for seed in (0, 1)], 1)
    np.testing.assert_array_equal(found, expected)
    rewards = np.full(12, 5.0)
    sampled, quantile = reward_quantiles(reference, table | {"reward": rewards}, characters, 2, seed=0)
    np.testing.assert_array_equal(sampled, expected)
    known = ~np.isnan(expected)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(quantile, ((expected <= 5) & known).sum(1) / known.sum(1))
    assert ("rows have none" in caplog.text) == bool((~known.any(1)).any())


def constants(num_prompts: int) -> RowConstants:
    rng, ids = np.random.default_rng(0), np.arange(num_prompts)
    features = rng.normal(size=(num_prompts, 4))
    return RowConstants(ids, ids, rng.normal(size=num_prompts), np.ones(num_prompts, bool), features, [[1]] * 30)


def test_a_prompt_none_of_whose_samples_ended_has_no_target(caplog: Any) -> None:
    targets = np.where(np.arange(30) % 3 == 0, NAN, 2.0)
    settings = ValueSection(num_prompts=2000, candidates=["constant", "ridge"])
    values, report = estimate_values(
        constants(30), settings, "reference_samples", seed=0, sample_rewards=lambda rows: targets[rows]
    )
    assert values == pytest.approx(np.full(30, 2.0)) and report["num_prompts"] == 20
    assert report["mean_reward_of_reference"] == 2.0 and "10 of 30 prompts have no target" in caplog.text
    with pytest.raises(UserError, match=r"none of the reference's completions ended .*penalty"):
        estimate_values(
            constants(30), settings, "reference_samples", seed=0, sample_rewards=lambda rows: np.full(len(rows), NAN)
        )


# A recipe.


def rule_recipe(tiny_recipe: Callable, folder: Path, tokenizer: Any, rule: Any) -> Any:
    """Some completions of three tokens end."""
    ends = tokenizer.convert_ids_to_tokens(list(range(10, len(tokenizer), 4)))
    evaluate = {"unfinished": rule, "max_new_tokens": LIMIT, "max_prompts": 30}
    policies = {"a_lol_seq": {"objective": "a_lol_seq"}, "ppo": {"objective": "ppo", "max_steps": 4, "ppo_epochs": 1}}
    value = {"samples_per_prompt": 4}
    settings = {"evaluate": evaluate, "policies": policies, "value": value, "model": {"end_tokens": ends}}
    return make_recipe(tiny_recipe(folder, **settings))


@pytest.mark.parametrize("rule", ["drop", PENALTY], ids=str)
def test_a_run_treats_all_methods_alike(rule: Any, tmp_path: Path, tiny_recipe: Callable, tokenizer: Any) -> None:
    recipe = rule_recipe(tiny_recipe, tmp_path, tokenizer, rule)
    results = pipeline.run(recipe)
    assert results is not None and results["unfinished"] == rule
    folder = tmp_path / "run"
    for name in ("a_lol_seq", "ppo", "reference"):
        records = read_completions(folder, name if name == "reference" else f"{name}-seed-0")
        sampled = [record for record in records if record["decoding"] == "sampled"]
        for record in sampled:
            raw = next(score for key, score in record.items() if key.startswith("reward/"))
            expected = raw if record["ended"] else None if rule == "drop" else raw - 10
            assert record["reward"] == (None if expected is None else pytest.approx(expected))
        known = [record["reward"] for record in sampled if record["reward"] is not None]
        row = results["sampled"]["table"][name]
        assert 0 < row["unended"] < 1 and row["reward"]["mean"] == pytest.approx(np.mean(known))
        assert row["reward"].get("prompts") == (len(known) if len(known) < len(sampled) else None)
        assert training_args(Run(recipe), "ppo", 0).unfinished == rule
    said = unfinished_text(rule)
    assert said in (folder / "report.md").read_text() and said in (folder / "report.html").read_text()
    lines = [json.loads(line) for line in (folder / "policies/ppo/seed-0/metrics.jsonl").open()]
    assert [line for line in lines if "completions/ended" in line and "loss" in line]


def test_the_default_is_in_no_key_and_another_rule_is_in_all_that_it_decides(
    tmp_path: Path, tiny_recipe: Callable, tokenizer: Any
) -> None:
    for rule, there in (("score", False), ("drop", True)):
        recipe = rule_recipe(tiny_recipe, tmp_path, tokenizer, rule)
        run = Run(recipe)
        pipeline.run(recipe, until="prepare") if rule == "score" else None
        keys = [policy_key(run, name, 0)["settings"] for name in recipe.policies]
        assert all(("unfinished" in key) == there for key in keys)
        assert not there or all(key["unfinished"] == rule for key in keys)
        evaluation = Evaluation(run)
        evaluation.subjects["reference"] = (run.reference_path, None, 0)
        key = evaluation.key("reference")
        assert ("unfinished" in key) == there and "unfinished" not in key["settings"]
    assert "unfinished" not in run.table.manifest.entries["value"]["key"]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_that_a_model_has_left_without_an_end_count_by_the_rule(
    rule: Any, tmp_path: Path, tiny_recipe: Callable
) -> None:
    rows = [row | {"sampler_logprobs": [], "ended": i % 4 > 0} for i, row in enumerate(scored_rows(60))]
    content = tiny_recipe(tmp_path, rows, reward={"functions": [{"type": "column"}]}, evaluate={"unfinished": rule})
    run = open_run(make_recipe(content))
    try:
        pipeline.prepare(run, "score")
    finally:
        run.close()
    found = column(run.table.open("reward"), "reward")
    ended = np.array([row["ended"] for row in rows])
    assert found == pytest.approx(settled([row["reward"] for row in rows], ended, rule), nan_ok=True)
    assert ("unfinished" in run.table.manifest.entries["reward"]["key"]) == (rule != "score")


# PPO.


def test_ppo_does_not_train_on_what_has_no_reward(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    from tests.training.ppo.test_trainer import logged, small_run, weights

    common: dict[str, Any] = {"max_completion_length": 2, "total_episodes": 8, "weight_decay": 0.0, "vf_coef": 0.0}
    start = AutoModelForCausalLM.from_pretrained(tiny_llama_path).state_dict()
    dropped = small_run(tiny_llama_path, tokenizer, tmp_path / "a", unfinished="drop", **common)
    (entry,) = logged(dropped)
    assert entry["completions/ended"] == 0, "a random model of thousands of tokens does not end by chance"
    assert all(torch.equal(weight, start[name]) for name, weight in weights(dropped).items() if name in start)
    assert torch.isfinite(dropped.value_head.weight).all() and torch.isfinite(dropped.value_head.bias).all()
    scored = small_run(tiny_llama_path, tokenizer, tmp_path / "b", **common)
    assert any(not torch.equal(weight, start[name]) for name, weight in weights(scored).items() if name in start)
    fined = small_run(tiny_llama_path, tokenizer, tmp_path / "c", unfinished={"penalty": 7.0}, **common)
    plain = logged(scored)[0]["reward/mean"]
    assert logged(fined)[0]["reward/mean"] == pytest.approx(plain - 7)
