"""The training settings of a recipe (train, reference.train and every policy), checked when it is read."""

import dataclasses
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, NoReturn, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from leftover.errors import UserError, closest, nearest
from leftover.objectives import OBJECTIVES, ONLINE
from leftover.recipe.eval_metrics import COMPLETION_METRICS, DIVERGENCE_METRICS, ROW_METRICS, produced_metric
from leftover.recipe.lol_config import LoLConfig, objective_and_settings
from leftover.recipe.policy_config import PolicyConfig, faulty_numbers
from leftover.recipe.ppo_config import ONE_RULE, PPOConfig
from leftover.recipe.sections import Recipe

Fields = Mapping[str, Any]
_IN_WORDS = {"bool": "true or false", "bool | None": "true or false", "str": "a text", "str | None": "a text"}

RESERVED = {
    "output_dir": "the run's own folder is used",
    "seed": "set 'seeds'",
    "columns": "set data.columns",
    "labels": "set data.labels",
    "on_bad_row": "set data.on_bad_row",
    "data_options": "set these keys under data",
    "unfinished": "set evaluate.unfinished, which holds for every method",
    "eval_engine": "set evaluate.engine",
    "eval_vllm": "set evaluate.vllm",
    "eval_max_batch_tokens": "set evaluate.max_batch_tokens",
    "resume_from_checkpoint": "a run goes on from its own checkpoints",
    "local_rank": "the launcher tells it to each process",
    "neftune_noise_alpha": "with noise the policy is not the reference at step 0",
    "enable_jit_checkpoint": "set save_on_signal, which is on by default",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "the command says what is done"),
    "hub_token": "it would be saved with the run; set the environment variable HF_TOKEN, or run `hf auth login`",
} | dict.fromkeys(
    ("hub_strategy", "hub_always_push", "hub_revision"),
    "a policy is pushed once, when the run is finished, without its checkpoints",
)


def check_training_fields(recipe: Recipe, where: str) -> None:
    """Refuse unknown settings and values that a setting cannot have; `where`: the recipe's file, for messages."""
    _check(where, "train.", recipe.train, OBJECTIVES)
    reference = recipe.reference.train
    _check(where, "reference.train.", reference, OBJECTIVES, reference | {"objective": "nll"})
    if not recipe.policies:
        raise UserError(f"{where}: 'policies' names no policy to train")
    for name, fields in recipe.policies.items():
        check_policy(fields, recipe.train, where, f"policies.{name}.")
        if fields.get("missing_eos_penalty") is not None and recipe.evaluate.unfinished != "score":
            raise UserError(f"{where}: 'policies.{name}.missing_eos_penalty' and {ONE_RULE}")


def check_policy(fields: Fields, shared: Fields, where: str, prefix: str = "") -> None:
    """The same for one policy and the settings that it shares with the others; `prefix`: its place in the recipe."""
    _check(where, prefix, fields, (*OBJECTIVES, *ONLINE), {**shared, **fields})


def own_fields() -> list[str]:
    """PPO's own settings, which other policies do not have."""
    shared = {field.name for field in dataclasses.fields(PolicyConfig)} | {"objective"}
    return [field.name for field in dataclasses.fields(PPOConfig) if field.name not in shared]


def _check(where: str, prefix: str, fields: Fields, objectives: Collection[str], policy: Fields | None = None) -> None:
    """Check one section; `policy`: all settings of the policy that it belongs to, shared ones included."""

    def refuse(name: str, fault: str) -> NoReturn:
        raise UserError(f"{where}: '{prefix}{name}' {fault}")

    def check_choice(name: str, value: object, choices: Collection[str]) -> None:
        if value not in choices:
            close = nearest(str(value), choices)
            refuse(name, f"is {value!r}{close}{' Choices' if close else '; choices'}: {', '.join(choices)}")

    objective = str((fields if policy is None else policy).get("objective", LoLConfig.objective))
    for given in (str(fields.get("objective", objective)), objective):
        check_choice("objective", given, objectives)
    config = PPOConfig if objective in ONLINE else LoLConfig
    defaults = {field.name: field.default for field in dataclasses.fields(config) if field.init}
    for name, value in fields.items():
        if name in RESERVED:
            refuse(name, f"cannot be set here: {RESERVED[name]}")
        if name in ("push_to_hub", "hub_model_id", "hub_private_repo") and prefix == "reference.train.":
            refuse(name, "is not for the reference: policies are pushed, under 'policies' or 'train'")
        if name not in defaults:
            hint = _hint(prefix, name, value, objective, defaults, is_policy=policy is not None)
            raise UserError(f"{where}: unknown key '{prefix}{name}'{hint}")
        if name == "metric_for_best_model":
            measured = (*ROW_METRICS, *COMPLETION_METRICS, *DIVERGENCE_METRICS)
            produced_metric(str(value), measured, f"{where}: '{prefix}{name}'")
        if name in config.CHOICES:
            check_choice(name, value, config.CHOICES[name])
        if isinstance(defaults[name], (int, float)) and not isinstance(defaults[name], bool) and isinstance(value, str):
            refuse(name, f"is a number, got the text {value!r}")
        for _, fault in faulty_numbers({name: value}, config):
            refuse(name, fault)
        checked = name in config.CHOICES or name in config.RANGES or name == "objective_settings"
        if not checked and (wrong := _faulty_type(config, name, value)):
            refuse(name, wrong)
    if policy is not None and config is LoLConfig:
        objective_and_settings(policy, f"{where}: {prefix}objective_settings")


def _faulty_type(config: type[PolicyConfig], name: str, value: object) -> str | None:
    """What is wrong with a value that the config's own annotation does not allow; None of any other."""
    kind = get_type_hints(config)[name]
    for choices in (part for part in get_args(kind) if isinstance(part, type) and issubclass(part, Enum)):
        names = [str(choice.value) for choice in choices]
        return None if value in names else f"is {value!r:.60}{nearest(str(value), names)}; choices: {', '.join(names)}"
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        plain = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind).replace("typing.", "")
        return f"is {value!r:.60}: it must be {_IN_WORDS.get(str(plain), plain)}"
    return None


def _hint(prefix: str, name: str, value: object, objective: str, valid: Collection[str], is_policy: bool) -> str:
    """Where a setting belongs that the trainer does not have."""

    def place(meant: str) -> str:
        if not prefix:
            return f"name it objective_settings.{meant}"
        return f"give it under '{prefix}objective_settings', as {{{meant}: {value}}}"

    ppo = own_fields()
    if objective in ONLINE and name == "objective_settings":  # PPO has none
        first = str(next(iter(value), "")) if isinstance(value, Mapping) else ""
        meant = closest(first, ppo)
        own = f"'{first}' as '{prefix}{meant}'" if meant else f"as '{prefix}kl_coef' does: {', '.join(ppo)}"
        return f": PPO's settings belong to the policy itself, {own}"
    if objective in ONLINE:
        return nearest(name, valid) or f"; it takes the fields of PPOConfig, its own being {', '.join(ppo)}"
    settings = {o: list(vars(entry.settings)["__dataclass_fields__"]) for o, entry in OBJECTIVES.items()}
    owners = [owner for owner, own in settings.items() if name in own]
    if is_policy and objective in owners:
        owners = [objective]
    if owners:
        remedy = "" if is_policy and objective not in owners else f"; {place(name)}"
        return f": it is a setting of {', '.join(owners)}{remedy}"
    if name in ppo:
        return ": it is a setting of ppo, for a policy with `objective: ppo`"
    if close := nearest(name, valid):
        return close
    if is_policy and (meant := closest(name, settings[objective])):
        return f"; did you mean '{meant}'? That is a setting of {objective}: {place(meant)}"
    return "; it takes the fields of LoLConfig (a TrainingArguments)"
