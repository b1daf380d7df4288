"""Settings of policies in a recipe: those of an objective and PPO's are found where they belong, and checked early."""

import re
from pathlib import Path
from typing import Any

import pytest

from leftover.errors import UserError, nearest
from leftover.recipe.files import make_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig

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
