"""Settings of policies in a recipe: those of an objective and PPO's are found where they belong, and checked early."""

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from leftover.errors import UserError, nearest
from leftover.recipe.files import make_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.rewards import load_reward

RECIPE = {"name": "t", "output_dir": "run", "model": {"path": "m"}, "data": {"path": "d.jsonl"}}


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as error:
        make_recipe(RECIPE | sections, where="r.yaml")
    return str(error.value)


def of_policy(**fields: Any) -> str:
    return refusal(policies={"x": fields})


def test_a_setting_of_the_objective_beside_it_is_told_its_place():
    said = of_policy(objective="dpo", beta=0.5)
    assert "'policies.x.beta': it is a setting of dpo" in said
    assert "under 'policies.x.objective_settings', as {beta: 0.5}" in said


def test_a_misspelt_setting_of_the_objective_is_told_name_and_place():
    said = of_policy(objective="kto", treshold=0.5)
    assert "did you mean 'threshold'?" in said and "'policies.x.objective_settings', as {threshold: 0.5}" in said


def test_a_setting_of_other_objectives_names_these():
    assert "'policies.x.tau': it is a setting of dro" in of_policy(objective="a_lol_seq", tau=1)
    assert "'policies.x.kl_coef': it is a setting of ppo" in of_policy(objective="nll", kl_coef=0.1)
    assert "a setting of a_lol_kl, dpo" in refusal(train={"beta": 1})


def test_settings_of_ppo_stand_on_the_policy():
    said = of_policy(objective="ppo", objective_settings={"kl_coeff": 0.1})
    assert "belong to the policy itself" in said and "'kl_coeff' as 'policies.x.kl_coef'" in said
    assert "num_rollouts_per_step, " in of_policy(objective="ppo", objective_settings={"zzz": 0.1})
    assert "fields of PPOConfig, its own being num_rollouts_per_step, " in of_policy(objective="ppo", rows="all")


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [
        ("dpo", {"beta": "abc"}, "policies.x.objective_settings.beta of dpo: Input should be a valid number"),
        ("awr", {"temperature": -1}, "policies.x.objective_settings.temperature of awr: Input should be greater"),
        ("dpo", {"betta": 1}, "policies.x.objective_settings: objective 'dpo' has no setting 'betta'; did you mean"),
        ("awr", 3, "policies.x.objective_settings: takes settings"),
    ],
)
def test_values_of_an_objectives_settings_are_checked_when_the_recipe_is_read(objective, given, expected):
    assert expected in of_policy(objective=objective, objective_settings=given)


def test_shared_settings_are_checked_with_every_policy():
    shared = {"objective_settings": {"clip": 0.5}}
    make_recipe(RECIPE | {"train": shared, "policies": {"y": {"objective": "a_lol"}, "p": {"objective": "ppo"}}})
    said = refusal(train=shared, policies={"y": {"objective": "a_lol"}, "x": {"objective": "nll"}})
    assert "policies.x.objective_settings: objective 'nll' has no setting 'clip'" in said
    assert re.search(r"reference\.train\.objective_settings: objective 'nll'", refusal(reference={"train": shared}))


def test_names_are_found_whatever_their_case():
    assert "did you mean 'a_lol_seq'?" in of_policy(objective="A_LOL_SEQ")
    assert nearest("A_LOL_SEQ", ["a_lol", "A_lol_seq"]) == "; did you mean 'A_lol_seq'?"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"model": {"config": {}, "tokenizer": {"vocab_size": 256}}},
            "model.tokenizer.vocab_size: Input should be g",
        ),
        (
            {"model": {"config": {}, "tokenizer": {"vocab_sise": 300}}},
            "'model.tokenizer.vocab_sise'; did you mean 'vo",
        ),
        (
            {"model": {"path": "m", "tokenizer": 3}},
            "model.tokenizer: Input should be a valid string: put it in quotes",
        ),
        ({"reward": {"length": "linear"}}, "reward.length: Input should be keys with values: debias (got 'linear')"),
        ({"data": {"path": [1]}}, "data.path[0]: Input should be a valid string: put it in quotes (got 1)"),
        ({"compare": {"grid": "declred"}}, "compare.grid: Input should be 'none' or 'declared' (got 'declred')"),
        ({"compare": {"grid": {"dpo": 3}}}, "compare.grid.dpo: Input should be a valid list (got 3)"),
    ],
)
def test_of_a_key_of_several_kinds_only_the_fault_of_the_given_kind_is_told(sections: Any, expected: str) -> None:
    said = refusal(**sections)
    assert expected in said and "\n" not in said


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"path": "m", "tokenizer": ["t"]}}, "model.tokenizer: Input should be a text or a mapping"),
        ({"data": {"path": {"a": "b"}}}, "data.path: Input should be a text or a list"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_those_that_the_key_takes(sections: Any, expected: str) -> None:
    said = refusal(**sections)
    assert expected in said and "\n" not in said


@pytest.mark.parametrize("config", [LoLConfig, PPOConfig])
def test_bf16_is_taken_without_a_gpu(config: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    args = config(output_dir=str(tmp_path), bf16=True)
    assert args.use_cpu and args.compute_dtype == "bfloat16"


NUMBERS = [
    ("per_device_train_batch_size", 0), ("per_device_eval_batch_size", -1), ("gradient_accumulation_steps", 0),
    ("max_steps", -3), ("max_steps", 0), ("num_train_epochs", 0), ("num_train_epochs", -1.0),
    ("learning_rate", -1e-5), ("learning_rate", math.nan), ("learning_rate", math.inf), ("warmup_steps", -1),
    ("weight_decay", math.nan), ("adam_beta1", 1.0), ("adam_beta2", -0.1), ("adam_epsilon", math.inf),
    ("max_grad_norm", -1), ("max_grad_norm", math.nan), ("logging_steps", 0), ("eval_steps", 0), ("save_steps", -5),
    ("save_total_limit", 0), ("max_prompt_length", 0), ("max_completion_length", 0), ("dataloader_num_workers", -1),
    ("per_device_train_batch_size", 2.5), ("learning_rate", True),
]  # fmt: skip
OWN = {
    "nll": [("top_percent", 0), ("top_percent", 101), ("reference_samples", 0), ("max_tokens_per_batch", 0),
            ("max_initial_logratio", math.nan), ("value_samples_per_prompt", 0)],
    "ppo": [("ppo_epochs", 0), ("num_mini_batches", -1), ("kl_coef", math.nan), ("gamma", 1.5), ("lam", -0.1),
            ("temperature", 0), ("cliprange_value", math.inf), ("value_learning_rate", -1), ("rollout_batch_size", 0)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_a_number_out_of_range_is_refused_wherever_it_stands(name, value, tmp_path):
    # Unnoticed, a batch size of 0 hangs, and -3 steps are whole epochs.
    assert f"r.yaml: 'train.{name}' is " in refusal(train={name: value})
    assert f"'reference.train.{name}' is " in refusal(reference={"train": {name: value}})
    for objective in ("nll", "ppo"):
        assert f"'policies.x.{name}' is " in of_policy(objective=objective, **{name: value})
    for config in (LoLConfig, PPOConfig):
        with pytest.raises(UserError, match=f"^{name} is "):
            config(output_dir=str(tmp_path), **{name: value})
    if name not in ("max_prompt_length", "max_completion_length", "save_total_limit"):
        with pytest.raises(UserError, match=f"train: .*'{name}' is "):
            load_reward({"type": "fine_tuned", "fit": {"path": "x.jsonl"}, "model": "m", "train": {name: value}})


@pytest.mark.parametrize(("objective", "name", "value"), [(o, *given) for o, of in OWN.items() for given in of])
def test_a_methods_own_number_out_of_range_is_refused_when_the_recipe_is_read(objective, name, value, tmp_path):
    assert f"'policies.x.{name}' is {value:g}: it must be " in of_policy(objective=objective, **{name: value})
    with pytest.raises(UserError, match=f"^{name} is "):
        (PPOConfig if objective == "ppo" else LoLConfig)(output_dir=str(tmp_path), **{name: value})


def test_every_number_of_the_configs_has_a_range():
    for config in (LoLConfig, PPOConfig):
        numbers = {f.name for f in fields(config) if f.init and re.search(r"\b(int|float)\b", str(f.type))}
        without = {"local_rank", "tpu_num_cores", "fsdp_min_num_params", "past_index", "logging_first_step"}
        dictionaries = {f.name for f in fields(config) if "dict" in str(f.type)}
        assert numbers - config.RANGES.keys() - without - dictionaries == set()


@pytest.mark.parametrize(
    "section",
    [
        {"value": {"num_prompts": 0}}, {"value": {"head_learning_rate": math.inf}}, {"value": {"folds": 1}},
        {"value": {"head_learning_rate": math.nan}}, {"evaluate": {"temperature": math.nan}}, {"seeds": [0, -1]},
        {"evaluate": {"temperature": math.inf}}, {"evaluate": {"batch_size": 0}}, {"evaluate": {"max_prompts": -1}},
        {"seed": -1}, {"reward": {"transform": {"scale": math.inf}}},
    ],
)  # fmt: skip
def test_numbers_of_other_sections_have_their_range_too(section):
    (name, inner), *_ = section.items()
    key = f"{name}.{next(iter(inner))}" if isinstance(inner, dict) else name
    assert f"r.yaml: {key}" in refusal(**section)


def test_what_transformers_takes_for_not_set_and_whole_floats_stay(tmp_path):
    args = LoLConfig(output_dir=str(tmp_path), max_steps=-1, save_total_limit=None, eval_steps=None)
    assert args.max_steps == -1
    assert LoLConfig(output_dir=str(tmp_path), max_steps=1e3).max_steps == 1000  # YAML's 1e3
    recipe = RECIPE | {"train": {"max_steps": -1, "warmup_steps": 0.1}, "value": {"bounds": [0.0, math.inf]}}
    assert make_recipe(recipe).value.bounds == (0.0, math.inf)
