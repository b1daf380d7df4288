"""One key for all spellings of a recipe: two keys that say the same become equal.

Stored keys stay as they are. Where one differs from that of today's recipe, both are rewritten and compared once more:
defaults are written out, paths are absolute, a list of one is a list. So a key written by an earlier version, or from
a recipe that leaves out what this one says, is still recognised.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from leftover.errors import UserError
from leftover.models.load import make_config
from leftover.objectives import ONLINE
from leftover.recipe.data_section import ENDINGS, DataSection
from leftover.recipe.lol_config import REFERENCE_DEFAULTS, LoLConfig, objective_and_settings
from leftover.recipe.policy_config import cadence
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import EvaluateSection, LoraSection, Recipe, ValueSection
from leftover.runs.names import DECODINGS
from leftover.store.manifest import Key, as_json

# Defaults of earlier versions, which are as good where the recipe leaves the number open.
_EARLIER_SELECTION, _EARLIER_VALUE = 200, 2000
_LISTS = ("path", "hub_split", "hub_data_dir")  # of a data section: one or several


def same_meaning(recipe: Recipe, key: Key) -> Key:
    """A key of a run with all that its recipe may leave unsaid; for comparing, not for storing."""
    found = rewritten(key)
    for holds, part, rewrite in _PARTS:
        if holds <= found.keys() and isinstance(found[part], dict):
            found[part] = rewrite(recipe, found[part])
    if found.keys() >= {"settings", "model", "judges"}:  # earlier versions wrote both
        held = found.get("decodings", DECODINGS)
        found["decodings"] = sorted(recipe.decodings if set(recipe.decodings) <= set(held) else held)
    if found.get("selection") == _EARLIER_SELECTION and recipe.evaluate.max_selection_prompts == "auto":
        found["selection"] = recipe.selection_prompts
    if found.get("transform") == "none":
        found["transform"] = None
    return as_json(found)


def rewritten(value: Any) -> Any:
    """A key, or a part of one, in which the rows that it names have one spelling."""
    if isinstance(value, list):
        return [rewritten(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: rewritten(one) for name, one in value.items()}
    if isinstance(found.get("settings"), dict) and isinstance(found.get("files"), dict):
        found["files"] = {_absolute(path): of for path, of in found["files"].items()}
        found["settings"] = _of_rows(found["settings"])
    return found


def _absolute(path: str) -> str:
    """One spelling of a path; an id of the Hub, which is no path, keeps its parts. Hashes tell contents apart."""
    return str(Path(path).resolve())


def _of_rows(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a data section that rows depend on."""
    whole = _validated(DataSection, settings)
    for name in _LISTS:
        if isinstance(whole.get(name), str):
            whole[name] = [whole[name]]
    paths = whole.get("path") or []
    kinds = {ENDINGS.get(Path(path).suffix) for path in paths}
    if whole.get("format") == "auto" and len(kinds) == 1:
        whole["format"] = kinds.pop() or "auto"
    whole["path"] = [_absolute(path) for path in paths]
    if whole.get("drop_listed"):
        whole["drop_listed"] = _absolute(whole["drop_listed"])
    return whole


def _validated(section: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the section's defaults for those that are missing; as they are if it does not take them."""
    try:
        return section.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return dict(settings)


def _of_policy(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    objective = settings.get("objective", LoLConfig.objective)
    return _of_training(PPOConfig if objective in ONLINE else LoLConfig, recipe, settings)


def _of_reference(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    return _of_training(LoLConfig, recipe, REFERENCE_DEFAULTS | settings | {"objective": "nll"})


def _of_training(config: type[LoLConfig | PPOConfig], recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training with the defaults of its config and of the recipe."""
    whole = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(config)
        if field.init and field.name != "output_dir"
    }
    whole |= recipe.training_defaults | cadence(settings) | settings
    whole = {name: None if value == {} else value for name, value in whole.items()}  # such as lr_scheduler_kwargs
    if config is LoLConfig:
        try:
            objective, own = objective_and_settings(whole)
        except UserError:  # of another version
            return whole
        whole["objective_settings"] = dataclasses.asdict(own)
        if whole["rows"] == "auto":
            whole["rows"] = objective.rows
        if whole["draw"] == "auto" and objective.unit == "completion":
            whole["draw"] = "uniform" if objective.draw_by is None else "priority"
    return whole


def _of_evaluation(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    whole = _validated(EvaluateSection, settings)
    return whole | {"max_new_tokens": whole.get("max_new_tokens") or recipe.max_new_tokens}


def _of_value(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    whole = _validated(ValueSection, settings)
    if whole["num_prompts"] == _EARLIER_VALUE and recipe.value.num_prompts == "auto":
        whole["num_prompts"] = recipe.value_settings.num_prompts
    return whole | {"candidates": sorted({"constant", *whole.get("candidates", ())})}  # which is always tried


def _of_base(recipe: Recipe, base: dict[str, Any]) -> dict[str, Any]:
    """A model of random weights with the defaults of its architecture."""
    return base | {"config": _of_config(recipe, base["config"])} if "config" in base else base


def _of_config(_: Recipe, config: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(make_config(config).to_dict())
    except UserError:
        return config


def _section(section: type[BaseModel]) -> Callable[[Recipe, dict[str, Any]], dict[str, Any]]:
    return lambda _, settings: _validated(section, settings)


# What a key holds that has such a part, the part's name, and how it is rewritten.
_PARTS: list[tuple[set[str], str, Callable[[Recipe, Any], Mapping[str, Any]]]] = [
    ({"settings", "selection", "lora"}, "settings", _of_policy),
    ({"lora", "selection"}, "lora", _section(LoraSection)),
    ({"train", "base"}, "train", _of_reference),
    ({"train", "base"}, "base", _of_base),
    ({"config"}, "config", _of_config),
    ({"settings", "model", "judges"}, "settings", _of_evaluation),
    ({"settings", "targets"}, "settings", _of_value),
]
