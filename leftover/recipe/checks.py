"""The training settings of a recipe (train, reference.train and every policy), checked when it is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from leftover.errors import UserError, nearest
from leftover.recipe.sections import Recipe

_PUSHED = "a policy is pushed once, when the run is finished, without its checkpoints"
_RESERVED = {
    "output_dir": "the run's own folder is used",
    "seed": "set 'seeds'",
    "hub_token": "it would be kept with the run; set the environment variable HF_TOKEN, or run `hf auth login`",
} | dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), _PUSHED)


def check_training_fields(recipe: Recipe, where: str) -> None:
    """Refuse settings that no trainer has, and values that they cannot have; `where`: the file, for messages."""
    from leftover.objectives import OBJECTIVES

    _Fields(where, "train", recipe.train, list(OBJECTIVES)).check()
    reference = recipe.reference.train
    _Fields(where, "reference.train", reference, list(OBJECTIVES)).check(reference | {"objective": "nll"})
    if not recipe.policies:
        raise UserError(f"{where}: 'policies' names no policy to train")
    for name, fields in recipe.policies.items():
        check_policy(fields, recipe.train, where, f"policies.{name}")


def check_policy(fields: dict[str, Any], shared: dict[str, Any], where: str, section: str = "") -> None:
    """The same for one policy and the settings that it shares with the others; `section`: its place in the recipe."""
    from leftover.objectives import OBJECTIVES, ONLINE

    _Fields(where, section, fields, [*OBJECTIVES, *ONLINE]).check(shared | fields)


class _Fields:
    """The settings of one section, and how they are named in messages."""

    def __init__(self, where: str, section: str, fields: dict[str, Any], objectives: list[str]):
        self.where, self.section, self.fields, self.objectives = where, section, fields, objectives

    def check(self, effective: Mapping[str, Any] | None = None) -> None:
        """`effective`: of a policy, its settings with those that it shares."""
        from leftover.objectives import ONLINE
        from leftover.recipe.offline import LoLConfig, declared
        from leftover.recipe.online import PPOConfig

        objective = self._objective(effective or self.fields)
        online = objective in ONLINE
        config = PPOConfig if online else LoLConfig
        defaults = {field.name: field.default for field in dataclasses.fields(config) if field.init}
        for name, value in self.fields.items():
            if name in _RESERVED:
                raise self._error(name, f"cannot be set here: {_RESERVED[name]}")
            if name in ("push_to_hub", "hub_model_id", "hub_private_repo") and self.section == "reference.train":
                raise self._error(name, "is not for the reference: policies are pushed, under 'policies' or 'train'")
            if name not in defaults:
                hint = self._hint(name, value, objective, list(defaults), effective is not None)
                raise UserError(f"{self.where}: unknown key '{self._key(name)}'{hint}")
            self._check_value(config, name, defaults[name])
        if effective is not None and not online:
            declared(effective, f"{self.where}: {self._key('objective_settings')}")

    def _key(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name

    def _error(self, name: str, what: str) -> UserError:
        return UserError(f"{self.where}: '{self._key(name)}' {what}")

    def _objective(self, effective: Mapping[str, Any]) -> str:
        from leftover.recipe.offline import LoLConfig

        objective = effective.get("objective", LoLConfig.objective)
        for name in map(str, (self.fields.get("objective", objective), objective)):
            if name not in self.objectives:
                close = nearest(name, self.objectives)
                raise self._error("objective", f"is '{name}'{close}; objectives: {', '.join(self.objectives)}")
        return str(objective)

    def _check_value(self, config: Any, name: str, default: Any) -> None:
        value, choices = self.fields[name], config.CHOICES.get(name, ())
        if choices and value not in choices:
            raise self._error(name, f"is {value!r}{nearest(str(value), choices)}; one of {', '.join(choices)}")
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and isinstance(value, str):
            raise self._error(name, f"is a number, got the text {value!r}")

    def _hint(self, name: str, value: Any, objective: str, valid: list[str], is_policy: bool) -> str:
        """Where a setting belongs that is none of the trainer's."""
        from leftover.objectives import OBJECTIVES, ONLINE

        ppo = own_fields()
        if objective in ONLINE:
            if name == "objective_settings":
                return _ppo_hint(value, self._key, ppo)
            return nearest(name, valid) or f"; it takes the fields of PPOConfig, its own being {', '.join(ppo)}"
        settings = {o: list(vars(entry.settings)["__dataclass_fields__"]) for o, entry in OBJECTIVES.items()}
        owners = [owner for owner, own in settings.items() if name in own]
        if is_policy and objective in owners:
            return f": it is a setting of {objective}; {self._place(name, value)}"
        if owners:
            return f": it is a setting of {', '.join(owners)}{'' if is_policy else '; ' + self._place(name, value)}"
        if name in ppo:
            return ": it is a setting of ppo, which stands on a policy with `objective: ppo`"
        if close := nearest(name, valid):
            return close
        if is_policy and (close := nearest(name, settings[objective])):
            return f"{close} That is a setting of {objective}: {self._place(_named(close), value)}"
        return "; it takes the fields of LoLConfig (a TrainingArguments)"

    def _place(self, name: str, value: Any) -> str:
        if not self.section:
            return f"name it objective_settings.{name}"
        return f"give it under '{self._key('objective_settings')}', as {{{name}: {value}}}"


def own_fields() -> list[str]:
    """PPO's own settings, beside those that all policies have."""
    from leftover.recipe.online import PPOConfig
    from leftover.recipe.policy import PolicyConfig

    names = [field.name for field in dataclasses.fields(PPOConfig) if field.name in PPOConfig.__annotations__]
    shared = {field.name for field in dataclasses.fields(PolicyConfig)}
    return [name for name in names if name not in shared and name != "objective"]


def _named(hint: str) -> str:
    """The name in a hint of `nearest`."""
    return hint.split("'")[1]


def _ppo_hint(given: Any, key: Callable[[str], str], own: list[str]) -> str:
    """PPO has no objective_settings: where those that were meant stand."""
    first = next(iter(given), "") if isinstance(given, Mapping) else ""
    close = nearest(str(first), own)
    remedy = (
        f"'{first}' as '{key(_named(close))}'" if close else f"as '{key('kl_coef')}' does; there are {', '.join(own)}"
    )
    return f": PPO's settings stand on the policy itself, {remedy}"
