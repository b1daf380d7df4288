"""The hyper-parameters that matter of a policy, from the fields of its config that were given and their defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from leftover.objectives import OBJECTIVES, ONLINE
from leftover.recipe.lol_config import REFERENCE_DEFAULTS, LoLConfig, objective_and_settings
from leftover.recipe.ppo_config import PPOConfig, own_settings

Settings = dict[str, str]

_OPTIMISER = ("learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps")
_BUDGETS = ("max_steps", "num_train_epochs", "total_episodes")
_LENGTHS = ("max_prompt_length", "max_completion_length")
_OF_PPO = (
    "num_rollouts_per_step", "num_mini_batches", "ppo_epochs", "kl_coef", "adaptive_kl", "cliprange", "cliprange_value",
    "temperature",
)  # fmt: skip
_OF_ROWS = ("top_percent", "reference_samples", "released_code")


def settings_of_policy(recipe: Any, policy: str | None) -> Settings:
    """Of a policy of a recipe, or (None) of the reference that it fits."""
    shared, data, model = recipe.train, recipe.data, recipe.model
    limits: dict[str, Any] = {"max_prompt_length": data.max_prompt_tokens}
    limits["max_completion_length"] = data.max_completion_tokens
    if policy is None:
        fields = limits | REFERENCE_DEFAULTS | recipe.reference.train | {"objective": "nll"}
    else:
        own = recipe.policies[policy]
        online = own.get("objective") in ONLINE
        fields = limits | (own_settings(shared, own) if online else shared | own)
    found = settings_of_fields(fields)
    if model.lora:
        found["LoRA"] = f"r {model.lora.r}, alpha {model.lora.alpha:g}, dropout {model.lora.dropout:g}"
    if model.quantization:
        found["quantisation of the base"] = model.quantization
    return found


def settings_of_fields(fields: Mapping[str, Any]) -> Settings:
    """Of fields of LoLConfig or PPOConfig; those that were not given have their defaults."""
    objective = str(fields.get("objective", LoLConfig.objective))
    config = PPOConfig if objective in ONLINE else LoLConfig
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    values = defaults | dict(fields)
    found = {"objective": objective}
    if objective not in ONLINE:
        declared_as, own = objective_and_settings(values)
        found |= {name: _shown(value) for name, value in dataclasses.asdict(own).items()}
        found["rows"] = OBJECTIVES[objective].rows if values["rows"] == "auto" else values["rows"]
        weighed = declared_as.draw_by is not None and declared_as.unit == "completion"
        found["draw"] = values["draw"] if values["draw"] != "auto" else "priority" if weighed else "uniform"
    names = [*(_OF_PPO if objective in ONLINE else ()), *_OPTIMISER]
    names += [n for n in (*_BUDGETS, *_OF_ROWS, "bf16", "fp16", "weight_decay", "warmup_steps") if n in fields]
    names += _LENGTHS
    found |= {name: _shown(values[name]) for name in names if name in values and values[name] is not None}
    return found


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return f"{value:g}" if isinstance(value, float) else str(value)
