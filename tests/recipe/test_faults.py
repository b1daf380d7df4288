"""Where a recipe is refused: the file, the whole key as the user wrote it, and what to do."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from leftover.errors import UserError
from leftover.recipe.files import load_recipe, make_recipe

MINIMAL: dict[str, Any] = {"name": "t", "output_dir": "run", "model": {"path": "m"}, "data": {"path": "d.jsonl"}}


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_recipe(MINIMAL | sections, where="r.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", ["str", "int", "float", "bool", "dict[any]", "a text", "a list", "function-after[f]"])
def test_a_name_of_the_users_stays_in_the_place_of_a_fault(name: str) -> None:
    """pydantic calls the branches of a union so; a policy may be called so too."""
    assert refusal(policies={name: 5}).startswith(f"r.yaml: policies.{name}: ")
    assert refusal(data={"path": "d", "labels": {name: "good"}}).startswith(f"r.yaml: data.labels.{name}: ")


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"data": {"path": ["a.jsonl", ["b.jsonl"]]}}, "data.path[1]"),
        ({"reward": {"transform": {"scale": "two"}}}, "reward.transform.scale"),
        ({"model": {"path": "m", "tokenizer": {"vocab_size": 3}}}, "model.tokenizer.vocab_size"),
        ({"compare": {"grid": {"nll": 3}}}, "compare.grid.nll"),
        ({"data": {"path": "d", "labels": {1: "good"}}}, "data.labels.1"),
        ({"seeds": [0, "x"]}, "seeds[1]"),
    ],
)
def test_branches_of_a_union_are_no_part_of_the_place(section: dict[str, Any], place: str) -> None:
    assert refusal(**section).startswith(f"r.yaml: {place}: ")


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    """Of two equal keys YAML takes the last in silence: a policy would be lost."""
    path = tmp_path / "r.yaml"
    text = yaml.safe_dump(MINIMAL) + "policies:\n  a: {objective: nll}\n  b: {objective: nll}\n"
    path.write_text(text)
    assert list(load_recipe(path).policies) == ["a", "b"]
    path.write_text(text + "  a: {objective: wbc}\n")
    with pytest.raises(UserError, match=rf"r\.yaml: .*'a' stands twice.*line {len(text.splitlines()) + 1}"):
        load_recipe(path)


def test_a_missing_key_is_named_whole() -> None:
    assert refusal(data={}) == "r.yaml: missing key 'data.path'"


def test_a_policy_cannot_have_the_name_of_the_reference() -> None:
    found = refusal(policies={"p": {"objective": "nll"}, "reference": {"objective": "nll"}})
    assert found.startswith("r.yaml: policies: ") and "'reference'" in found and "another name" in found


@pytest.mark.parametrize(
    "name",
    ["../../../precious", "/precious", "a/b", "..", ".hidden", "", "a\nb", "a\x1b[2J", "a/trial-x", "a\\b", "x" * 101],
)
def test_a_policys_name_is_no_path(name: str) -> None:
    assert "letters, digits" in refusal(policies={name: {"objective": "nll"}})


NAMES = {
    "name": lambda *names: {"name": names[0]},
    "policies": lambda *names: {"policies": {name: {"objective": "nll"} for name in names}},
    "reward.functions": lambda *names: {"reward": {"functions": scorers(*names)}},
    "evaluate.judges": lambda *names: {"evaluate": {"judges": scorers(*names)}},
}


def scorers(*names: str) -> list[dict[str, Any]]:
    return [{"type": "text", "function": "length", "name": name} for name in names]


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("name", ["A-LoL 0.9", "größe_2", "-x", ".x", "a/b", "../a", "a:b", "a<b", "x" * 101, "a\n"])
def test_names_are_letters_digits_and_three_marks(name: str, key: str) -> None:
    found = refusal(**NAMES[key](name))
    assert found.startswith(f"r.yaml: {key}: ") and "letters, digits" in found


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("name", ["A-LoL_0.9", "2", "_x", "x" * 100])
def test_other_names_are_taken(name: str, key: str) -> None:
    assert make_recipe(MINIMAL | NAMES[key](name)).name in ("r", name, MINIMAL["name"])


@pytest.mark.parametrize("key", [key for key in NAMES if key != "name"])
def test_names_that_differ_in_case_alone_are_refused(key: str) -> None:
    """Some file systems hold them for one."""
    found = refusal(**NAMES[key]("Good", "good"))
    assert found.startswith(f"r.yaml: {key}: 'Good' and 'good'") and "rename one" in found


@pytest.mark.parametrize("name", ["data", "Data", "Reference"])
def test_a_policy_cannot_have_the_name_of_another_row_of_the_results(name: str) -> None:
    assert f"'{name}' stands for" in refusal(policies={name: {"objective": "nll"}})


def test_a_policy_called_as_an_objective_trains_by_it() -> None:
    """Reports show a policy by its name."""
    assert "policies.nll.objective" in refusal(policies={"nll": {}})
    assert "policies.dpo.objective" in refusal(policies={"dpo": {"objective": "nll"}})
    for policies, train in (({"nll": {}}, {"objective": "nll"}), ({"a_lol_seq": {}, "mine": {"objective": "nll"}}, {})):
        assert list(make_recipe(MINIMAL | {"policies": policies, "train": train}).policies) == list(policies)


def test_names_of_earlier_versions_are_read_from_the_folder_of_their_run_alone(tmp_path: Path) -> None:
    names = ["A-LoL 0.9", "größe_2", "nll/trial-3", "data", "Größe_2"]
    functions = [{"type": "text", "function": "length", "name": "how long?"}]
    policies = {name: {"objective": "nll"} for name in names}
    content = MINIMAL | {"name": "my run", "policies": policies, "reward": {"functions": functions}}
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    assert list(load_recipe(tmp_path).policies) == names
    assert load_recipe(tmp_path, ["train.max_steps=3"]).name == "my run"
    for overrides in ([], ["policies.b c.objective=nll"]):
        with pytest.raises(UserError, match="letters, digits"):
            load_recipe(tmp_path if overrides else tmp_path / "recipe.yaml", overrides)
    content["policies"] = {"../x": {"objective": "nll"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match="letters, digits"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_data_file_is_no_recipe(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text('{"prompt": "p"}\n{"prompt": "q"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"data file, not a recipe.*leftover init .*leftover inspect"):
        load_recipe(path)


@pytest.mark.parametrize("extra", [{"lora": {}}, {"lora": {"r": 4}, "quantization": "nf4"}])
def test_an_adapter_on_random_weights_is_refused(extra: dict[str, Any]) -> None:
    """Its base would be stored nowhere, so that nobody could load it."""
    random = {"config": {"model_type": "gpt2"}, "tokenizer": {"vocab_size": 1000}}
    assert "an adapter needs a model to stand on" in refusal(model=random | extra)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 2020-99-99", "none of its kind"),
        ("seed: !!int abc", "none of its kind"),
        ("seed: !!bool abc", "none of its kind"),
        ("seed: !!timestamp abc", "none of its kind"),
        ("seed: " + "9" * 5000, "none of its kind"),
        ("seed: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("seed: &a [*a]", "more than 100,000 values"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(7)
        ) + "name: *h", "more than 100,000 values"),
    ],
)  # fmt: skip
def test_yaml_that_no_recipe_holds_is_refused_at_once(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"recipe\.yaml: not valid YAML.*{expected}"):
        load_recipe(tmp_path / "recipe.yaml")
    assert time.monotonic() - began < 5
