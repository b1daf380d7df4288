"""The training settings of a recipe (train, reference.train and every policy), checked when it is read."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from leftover.errors import UserError, closest, nearest
from leftover.objectives import OBJECTIVES
from leftover.objectives.online import ONLINE
from leftover.recipe.lol_config import LoLConfig, objective_and_settings
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe

Fields = Mapping[str, Any]

_RESERVED = {
    "output_dir": "the run's own folder is used",
    "seed": "set 'seeds'",
    "hub_token": "it would be saved with the run; set the environment variable HF_TOKEN, or run `hf auth login`",
} | dict.fromkeys(
    ("hub_strategy", "hub_always_push", "hub_revision"),
    "a policy is pushed once, when the run is finished, without its checkpoints",
)


def check_training_fields(recipe: Recipe, where: str) -> None:
    """Refuse unknown settings and values that a setting cannot have; `where`: the recipe's file, for messages."""
    _Section(where, "train", recipe.train, OBJECTIVES).check()
    reference = recipe.reference.train
    _Section(where, "reference.train", reference, OBJECTIVES).check(reference | {"objective": "nll"})
    if not recipe.policies:
        raise UserError(f"{where}: 'policies' names no policy to train")
    for name, fields in recipe.policies.items():
        check_policy(fields, recipe.train, where, f"policies.{name}")


def check_policy(fields: Fields, shared: Fields, where: str, section: str = "") -> None:
    """The same for one policy and the settings that it shares with the others; `section`: its key in the recipe."""
    _Section(where, section, fields, (*OBJECTIVES, *ONLINE)).check({**shared, **fields})


def own_fields() -> list[str]:
    """PPO's own settings, which other policies do not have."""
    shared = {field.name for field in dataclasses.fields(PolicyConfig)} | {"objective"}
    return [field.name for field in dataclasses.fields(PPOConfig) if field.name not in shared]


@dataclass(frozen=True)
class _Section:
    """One section of training settings, and how messages name them."""

    where: str
    section: str
    fields: Fields
    objectives: Collection[str]

    def check(self, policy: Fields | None = None) -> None:
        """`policy`: all settings of the policy that the section is of, shared ones included."""
        objective = self._objective(self.fields if policy is None else policy)
        config = PPOConfig if objective in ONLINE else LoLConfig
        defaults = {field.name: field.default for field in dataclasses.fields(config) if field.init}
        for name, value in self.fields.items():
            if name in _RESERVED:
                raise self._error(name, f"cannot be set here: {_RESERVED[name]}")
            if name in ("push_to_hub", "hub_model_id", "hub_private_repo") and self.section == "reference.train":
                raise self._error(name, "is not for the reference: policies are pushed, under 'policies' or 'train'")
            if name not in defaults:
                hint = self._hint(name, objective, list(defaults), is_policy=policy is not None)
                raise UserError(f"{self.where}: unknown key '{self._key(name)}'{hint}")
            if name in config.CHOICES:
                self._check_choice(name, value, config.CHOICES[name])
            is_number = isinstance(defaults[name], (int, float)) and not isinstance(defaults[name], bool)
            if is_number and isinstance(value, str):
                raise self._error(name, f"is a number, got the text {value!r}")
        if policy is not None and config is LoLConfig:
            objective_and_settings(policy, f"{self.where}: {self._key('objective_settings')}")

    def _key(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name

    def _error(self, name: str, fault: str) -> UserError:
        return UserError(f"{self.where}: '{self._key(name)}' {fault}")

    def _objective(self, policy: Fields) -> str:
        objective = str(policy.get("objective", LoLConfig.objective))
        for name in (str(self.fields.get("objective", objective)), objective):
            self._check_choice("objective", name, self.objectives)
        return objective

    def _check_choice(self, name: str, value: object, choices: Collection[str]) -> None:
        if value not in choices:
            raise self._error(name, f"is {value!r}{nearest(str(value), choices)}; one of {', '.join(choices)}")

    def _hint(self, name: str, objective: str, valid: list[str], is_policy: bool) -> str:
        """Where a setting belongs that the trainer does not have."""
        ppo = own_fields()
        if objective in ONLINE and name == "objective_settings":
            return self._ppo_hint(ppo)
        if objective in ONLINE:
            return nearest(name, valid) or f"; it takes the fields of PPOConfig, its own being {', '.join(ppo)}"
        settings = {o: list(vars(entry.settings)["__dataclass_fields__"]) for o, entry in OBJECTIVES.items()}
        owners = [owner for owner, own in settings.items() if name in own]
        if is_policy and objective in owners:
            owners = [objective]
        if owners:
            place = "" if is_policy and objective not in owners else f"; {self._place(name, name)}"
            return f": it is a setting of {', '.join(owners)}{place}"
        if name in ppo:
            return ": it is a setting of ppo, which stands on a policy with `objective: ppo`"
        if close := nearest(name, valid):
            return close
        if is_policy and (meant := closest(name, settings[objective])):
            return f"; did you mean '{meant}'? That is a setting of {objective}: {self._place(name, meant)}"
        return "; it takes the fields of LoLConfig (a TrainingArguments)"

    def _place(self, name: str, meant: str) -> str:
        """Where to write the objective's setting `meant`, given here as `name`."""
        if not self.section:
            return f"name it objective_settings.{meant}"
        return f"give it under '{self._key('objective_settings')}', as {{{meant}: {self.fields[name]}}}"

    def _ppo_hint(self, ppo: list[str]) -> str:
        """PPO has no objective_settings: where to write those that were meant."""
        given = self.fields["objective_settings"]
        first = str(next(iter(given), "")) if isinstance(given, Mapping) else ""
        if close := closest(first, ppo):
            return f": PPO's settings stand on the policy itself, '{first}' as '{self._key(close)}'"
        return f": PPO's settings stand on the policy itself, as '{self._key('kl_coef')}' does: {', '.join(ppo)}"
