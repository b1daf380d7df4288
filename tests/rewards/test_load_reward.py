"""`load_reward`: the forms of a specification, and refusals that name the key, the remedy and the place in a recipe."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from leftover.errors import UserError
from leftover.recipe.files import load_recipe, make_recipe
from leftover.rewards import SumReward, load_reward
from leftover.runs.run import Run

LENGTH = {"type": "text", "function": "length"}
RECIPE = {"name": "x", "output_dir": "run", "model": {"path": "x"}, "data": {"path": "x"}}


def refusal(spec: Any) -> str:
    with pytest.raises(UserError) as error:
        load_reward(spec)
    return str(error.value)


# forms


def test_a_list_is_the_functions_of_a_sum():
    assert load_reward([LENGTH | {"weight": 0.5}])(["p"], ["one two"]) == [1.0]


def test_the_section_of_a_recipe_is_a_sum_too():
    reward = load_reward({"functions": [LENGTH], "transform": {"scale": 2.0}})
    assert isinstance(reward, SumReward) and reward(["p"], ["one two"]) == [4.0]


@pytest.mark.parametrize(
    "content",
    [
        LENGTH | {"weight": 2},
        [LENGTH | {"weight": 2}],
        {"functions": [LENGTH], "transform": {"scale": 2.0}},
        RECIPE | {"reward": {"functions": [LENGTH | {"weight": 2}]}},
    ],
    ids=["an entry", "a list", "a section", "a recipe"],
)
@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_is_read_as_a_yaml_file(content, as_path, tmp_path):
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(content))
    reward = load_reward(as_path(tmp_path / "reward.yaml"))
    assert isinstance(reward, SumReward) and reward(["p"], ["one two"]) == [4.0]


def test_a_file_is_named_with_the_entry_at_fault(tmp_path):
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump([LENGTH, LENGTH | {"name": "b", "n": 3}]))
    assert refusal(tmp_path / "reward.yaml") == (
        f"{tmp_path}/reward.yaml: functions[1]: text reward 'length': unknown key 'n'; valid here: none"
    )
    (tmp_path / "reward.yaml").write_text("functons: []")
    message = refusal(tmp_path / "reward.yaml")
    assert "reward.yaml: sum reward: " in message and "unknown key 'functons'; did you mean 'functions'?" in message
    (tmp_path / "reward.yaml").write_text("3")
    assert "reward.yaml: " in refusal(tmp_path / "reward.yaml")
    assert "no YAML file at 'none.yaml'" in refusal("none.yaml")


@pytest.mark.parametrize("spec", [None, 3, True, {"a"}])
def test_anything_else_is_refused_with_what_it_takes(spec):
    assert all(part in refusal(spec) for part in (repr(spec), "type", "list", "YAML file"))


# refusals


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ({}, ["missing key 'type'", "text, classifier"]),
        ({"type": "python"}, ["python reward", "missing key 'function'", "my_module:my_score"]),
        ({"type": "python", "function": None}, ["missing key 'function'"]),
        ({"type": "python", "function": 3}, ["3 is not of the form module:function"]),
        ({"type": "text"}, ["missing key 'function'", "length, ngram_diversity"]),
        ({"type": "http"}, ["http reward", "missing key 'url'"]),
        ({"type": "sum"}, ["sum reward", "missing key 'functions'"]),
        ({"type": "sum", "functions": []}, ["sum reward: functions:", "at least 1"]),
        ([], ["sum reward: functions:", "at least 1"]),
        ([3], ["functions[0]", "dictionary (got 3)"]),
        ([LENGTH, LENGTH], ["functions[1]", "'length'", "`name`"]),
        ([LENGTH | {"name": 7}], ["functions[0]: name:", "quotes (got 7)"]),
        ([LENGTH | {"weight": float("nan")}], ["functions[0]: weight: Input should be a finite number"]),
        ([LENGTH | {"normalise": {"skale": 1}}], ["functions[0]: normalise.skale:", "'scale' or 'offset'"]),
        ({"type": "column", "new_completions": {"type": "texd"}}, ["new_completions:", "did you mean 'text'?"]),
    ],
)
def test_a_faulty_key_is_named_with_the_remedy(spec, parts):
    assert [part for part in parts if part not in refusal(spec)] == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"label": [0, 1]}, "label: Input should be a valid integer or a valid string (got [0, 1])"),
        ({"device": [0]}, "device: Input should be a valid string or a valid integer (got [0])"),
        ({"turns": [1]}, "turns: Input should be a text or a mapping (got [1])"),
        ({"turns": {"user": ["x"]}}, "turns.user: Input should be a valid string (got ['x'])"),
    ],
    ids=lambda setting: next(iter(setting)) if isinstance(setting, dict) else "",
)
def test_a_value_of_none_of_several_types_is_one_line(setting, expected):
    assert refusal({"type": "classifier", "model": "x"} | setting) == f"classifier reward: {expected}"


def test_null_means_the_default_size_of_an_ngram():
    default, null = (load_reward({"type": "text", "function": "ngram_diversity"} | n) for n in ({}, {"n": None}))
    assert null(["p"], ["a b a b"]) == default(["p"], ["a b a b"]) == [2 / 3]
    assert null.identity() == default.identity()


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"type": "classifier", "model": 7}, "model"),
        ({"type": "linear", "path": 2024}, "path"),
        ({"type": "linear", "fit": {"path": 2024}}, "path"),
        ({"type": "fine_tuned", "fit": "rows", "model": 2024}, "model"),
        ({"type": "column", "column": 7}, "column"),
        ({"type": "classifier", "model": "x", "turns": {"user": 3}}, "turns.user"),
    ],
)
def test_a_number_where_a_text_is_meant_is_to_be_quoted(spec, key):
    assert f"{key}: Input should be a valid string: put it in quotes (got " in refusal(spec)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": 7}, "name"),
        ({"output_dir": 2024}, "output_dir"),
        ({"model": {"path": 2024}}, "model.path"),
        ({"data": {"path": ["x", 2024]}}, "data.path[1]"),
        ({"data": {"path": "x", "columns": {"reward": True}}}, "data.columns.reward"),
        ({"policies": {1: {"objective": "nll"}}}, "policies.1"),
    ],
)
def test_a_recipe_too_says_to_quote_a_number(change, key):
    with pytest.raises(UserError, match=r"put it in quotes \(got ") as error:
        make_recipe(RECIPE | change)
    assert str(error.value).startswith(f"recipe: {key}: ")


# places in a recipe


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"type": "text", "function": "length", "n": 3}, "unknown key 'n'"),
        ({"type": "classifier", "model": 7}, "put it in quotes"),
        ({"type": "python", "function": "nothing_of_this_name:f"}, "cannot be loaded: ModuleNotFoundError"),
        ({"type": "http", "url": "localhost"}, "url is not of the form"),
        ({"type": "linear", "fit": {"pth": "x"}}, "unknown key 'pth'"),
        ({"type": "nonsense"}, "unknown reward type 'nonsense'"),
        ({"type": "text", "function": "length", "weight": "heavy"}, "weight: Input should be a valid number"),
    ],
    ids=lambda entry: entry["type"] if isinstance(entry, dict) else "",
)
def test_a_faulty_reward_or_judge_is_named_with_its_file_and_entry(entry, fault, tmp_path):
    path = tmp_path / "recipe.yaml"
    functions, judges = {"functions": [LENGTH, {"name": "b"} | entry]}, {"judges": [{"name": "c"} | entry]}
    path.write_text(yaml.safe_dump(RECIPE | {"reward": functions}))
    with pytest.raises(UserError, match=fault) as error:
        _ = Run(load_recipe(path)).reward
    assert str(error.value).startswith(f"{path}: reward.functions[1]: ")
    path.write_text(yaml.safe_dump(RECIPE | {"evaluate": judges}))
    with pytest.raises(UserError, match=fault) as error:
        _ = Run(load_recipe(path)).judges
    assert str(error.value).startswith(f"{path}: evaluate.judges[0]: ")


def test_an_empty_list_of_functions_is_refused_with_the_recipe():
    with pytest.raises(UserError, match=r"recipe: reward\.functions: .*at least 1"):
        make_recipe(RECIPE | {"reward": {"functions": []}})


def test_a_transform_may_be_none_and_has_no_other_keys_than_scale_and_offset():
    assert load_reward({"type": "sum", "functions": [LENGTH], "transform": "none"})(["p"], ["a"]) == [1.0]
    with pytest.raises(UserError, match=r"reward\.transform\.skale: .*'scale' or 'offset'"):
        make_recipe(RECIPE | {"reward": {"transform": {"skale": 2}}})
