"""docs/methods.md tells what the code has; that its blocks run is tested in tests/docs."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leftover
from leftover.commands.compare.methods import METHODS
from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, ONLINE, RELEASED
from leftover.recipe.files import make_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.training_fields import own_fields
from tests.conftest import scored_rows
from tests.docs.blocks import ROOT, blocks_of, small_code

TEXT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
ROWS = {cells[0].strip("`"): cells for cells in (line.strip("| ").split(" | ") for line in TEXT.splitlines())}


def as_yaml(name: str, value: Any) -> str:
    """How the file writes a setting with its value."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{name}: {text}`"


def defaults(settings: Any) -> list[str]:
    return [as_yaml(field.name, field.default) for field in dataclasses.fields(settings)]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_stands_with_its_needs_settings_and_defaults(name: str) -> None:
    objective, (_, asks, settings, *_) = OBJECTIVES[name], ROWS[name]
    needs = objective.needs(objective.settings())
    assert all(default in settings for default in defaults(objective.settings))
    assert set(re.findall(r"`(\w+): ", settings)) == {f.name for f in dataclasses.fields(objective.settings)}
    words = re.split(r"[,;] | \(", asks)
    assert ("R ≥ 0" in words) == ("nonnegative_reward" in needs)
    assert ("groups" in words) == (objective.unit == "group")
    assert ("V" in words) == ("value" in needs)
    assert ("reference" in words) == ("reference_logprobs" in needs)
    assert ("a reward that scores new completions" in words) == ("reward_quantile" in needs)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_stands_with_its_settings_own_trial_and_source(name: str) -> None:
    method, (_, _, settings, trial, source) = METHODS[name], ROWS[name]
    given = {key: value for key, value in method.fields.items() if key not in ("objective", "objective_settings")}
    for key, value in (given | method.fields.get("objective_settings", {})).items():
        assert as_yaml(key, value) in settings
    own = [as_yaml(key.removeprefix("objective_settings."), value) for key, value in (method.own_trial or {}).items()]
    assert trial == (", ".join(own) or "learning rate × 10")
    assert set(re.findall(r"\d{4}\.\d{5}", method.source)) <= set(re.findall(r"\d{4}\.\d{5}", source))


def test_the_strengths_of_a_frontier_stand_as_the_methods_declare_them() -> None:
    section = TEXT[TEXT.index("## The frontier") : TEXT.index("## An objective")]
    told: dict[str, tuple[str, list[float]]] = {}
    for knob, values, methods in re.findall(r"^\| (.*?) \| (.*?\d) \| (.*?) \|$", section, flags=re.MULTILINE):
        found = knob.strip("`"), [float(value.strip("× ")) for value in values.split(",")]
        told |= dict.fromkeys(re.findall(r"`(\w+)`", methods) or [methods], found)
    assert set(told) - {"all others"} <= set(METHODS)
    for name, method in METHODS.items():
        key, values = method.knob
        setting = "learning rate" if key == "learning_rate_factor" else key.rpartition(".")[2]
        assert told.get(name, told["all others"]) == (setting, list(values)), name


def test_nothing_stands_there_that_the_code_has_not() -> None:
    table = TEXT[TEXT.index("## The table") : TEXT.index("## Which rows")]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == {*OBJECTIVES, *METHODS, *ONLINE}


def test_the_samplers_and_ppos_settings_stand_with_their_defaults() -> None:
    for name in ("rows", "top_percent", "draw", "whole_groups", "reference_samples"):
        assert as_yaml(name, LoLConfig.__dataclass_fields__[name].default) in TEXT
    ppo = TEXT[TEXT.index("## PPO") :]
    assert all(as_yaml(name, PPOConfig.__dataclass_fields__[name].default) in ppo for name in own_fields())


def test_defaults_of_the_released_code_stand_where_they_differ() -> None:
    paragraph = TEXT[TEXT.index("`released_code: true`") : TEXT.index("## PPO")]
    for name, objective in ((name, entry) for entries in RELEASED.values() for name, entry in entries.items()):
        if objective.settings is not OBJECTIVES[name].settings:
            assert f"`{name}`" in paragraph
            assert all(default in paragraph for default in defaults(objective.settings))


def test_an_objective_of_ones_own_trains_and_is_known_to_recipes(
    tiny_llama_path: str, tmp_path: Path, monkeypatch: Any, tiny_recipe: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"rows": scored_rows(6)}
    (block,) = (b for b in blocks_of(ROOT / "docs/methods.md") if "OBJECTIVES[" in b.text)
    try:
        exec(small_code(block.text, tiny_llama_path, block.name), names)
        trainer = names["trainer"]
        assert trainer.state.global_step == 1 and trainer.settings.power == 3
        own = {"objective": "power_weighted", "objective_settings": {"power": 3}}
        make_recipe(tiny_recipe(tmp_path, policies={"mine": own}))
        with pytest.raises(UserError, match=r"policies\.mine\.objective_settings\.power of power_weighted"):
            make_recipe(tiny_recipe(tmp_path, policies={"mine": own | {"objective_settings": {"power": -1}}}))
    finally:
        OBJECTIVES.pop("power_weighted", None)


def test_ppo_as_an_objective_of_lolconfig_is_told_its_trainer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leftover\.PPOTrainer with leftover\.PPOConfig.* `objective: ppo`"):
        LoLConfig(output_dir=str(tmp_path), objective="ppo")


def test_an_objective_that_is_no_name_is_told_how_to_register_one(tmp_path: Path) -> None:
    def mine(batch: Any, settings: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(UserError, match=r"it takes a name.*OBJECTIVES\['mine'\] = Objective\(loss\)"):
        LoLConfig(output_dir=str(tmp_path), objective=mine)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"OBJECTIVES\['mine'\] is <function .*, not an Objective"):
        OBJECTIVES["mine"] = mine


def test_the_package_lists_what_it_exports() -> None:
    assert {"LoLConfig", "LoLTrainer", "PPOConfig", "PPOTrainer", "load_recipe", "run"} <= set(dir(leftover))
