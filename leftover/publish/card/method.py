"""How a policy was trained: its objective in a sentence, the papers to cite, tags and hyper-parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from leftover.objectives import OBJECTIVES, ONLINE
from leftover.recipe.lol_config import REFERENCE_DEFAULTS, LoLConfig, objective_and_settings
from leftover.recipe.ppo_config import PPOConfig, own_settings
from leftover.recipe.sections import Recipe


class Paper(NamedTuple):
    """A paper by its title and its number on arXiv."""

    title: str
    arxiv: str


A_LOL = Paper("Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models", "2305.14718")

# Objectives of other papers (see docs/paper.md); those not listed are A-LoL's own, or its controls.
OTHERS: dict[str, Paper] = {
    "r_gold": Paper("Text Generation by Learning from Demonstrations", "2009.07839"),
    "dpo": Paper("Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290"),
    "pro": Paper("Preference Ranking Optimization for Human Alignment", "2306.17492"),
    "ppo": Paper("Proximal Policy Optimization Algorithms", "1707.06347"),
    "grpo_offline": Paper(
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300"
    ),
    "awr": Paper("Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning", "1910.00177"),
    "kto": Paper("KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306"),
    "dro": Paper("Offline Regularised Reinforcement Learning for Large Language Models Alignment", "2405.19107"),
    "qrpo": Paper(
        "Quantile Reward Policy Optimization: Alignment with Pointwise Regression and Exact Partition Functions",
        "2507.08068",
    ),
    "var": Paper("RLHF in an SFT Way: From Optimal Solution to Reward-Weighted Alignment", "2502.11026"),
}

_TAGS = {"ppo": ["online-rl", "ppo"], "nll": ["behaviour-cloning"]}  # of objectives that are not offline RL

_OPTIMISER = ("learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps")
_OF_PPO = (
    "num_rollouts_per_step", "num_mini_batches", "ppo_epochs", "kl_coef", "adaptive_kl", "cliprange", "cliprange_value",
    "temperature",
)  # fmt: skip
# Shown if they were given.
_FURTHER = (
    "max_steps", "num_train_epochs", "total_episodes", "top_percent", "reference_samples", "released_code", "bf16",
    "fp16", "weight_decay", "warmup_steps",
)  # fmt: skip
_LENGTHS = ("max_prompt_length", "max_completion_length")


def papers(objective: str) -> list[Paper]:
    """The papers to cite for a policy of this objective, its own first."""
    return [*([OTHERS[objective]] if objective in OTHERS else []), A_LOL]


def tags(objective: str) -> list[str]:
    """The tags of a policy of this objective on the Hub."""
    return ["leftover", *_TAGS.get(objective, ["offline-rl", objective.replace("_", "-")])]


def sentence(objective: str) -> str:
    """An objective in one sentence: the first line of its docstring."""
    if objective in ONLINE:
        return "Proximal policy optimisation on completions that the policy itself writes, scored by the reward."
    return str(OBJECTIVES[objective].loss.__doc__).strip().splitlines()[0]


def settings_of_policy(recipe: Recipe, policy: str | None) -> dict[str, str]:
    """The hyper-parameters of a policy of a recipe, or (None) of the reference that it fits."""
    data, model = recipe.data, recipe.model
    fields: dict[str, Any] = {"max_prompt_length": data.max_prompt_tokens}
    fields["max_completion_length"] = data.max_completion_tokens
    if policy is None:
        fields |= REFERENCE_DEFAULTS | recipe.reference.train | {"objective": "nll"}
    else:
        own = recipe.policies[policy]
        fields |= own_settings(recipe.train, own) if own.get("objective") in ONLINE else recipe.train | own
    found = settings_of_fields(fields)
    if model.lora:
        found["LoRA"] = f"r {model.lora.r}, alpha {model.lora.alpha:g}, dropout {model.lora.dropout:g}"
    if model.quantization:
        found["quantisation of the base"] = model.quantization
    return found


def settings_of_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    """The hyper-parameters in fields of LoLConfig or PPOConfig; fields that were not given have their defaults."""
    objective = str(fields.get("objective", LoLConfig.objective))
    online = objective in ONLINE
    config = PPOConfig if online else LoLConfig
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    values = defaults | dict(fields)
    found = {"objective": objective}
    if not online:
        declared_as, own = objective_and_settings(values)
        found |= {name: _shown(value) for name, value in dataclasses.asdict(own).items()}
        found["rows"] = OBJECTIVES[objective].rows if values["rows"] == "auto" else values["rows"]
        weighed = declared_as.draw_by is not None and declared_as.unit == "completion"
        found["draw"] = values["draw"] if values["draw"] != "auto" else "priority" if weighed else "uniform"
    names = [*(_OF_PPO if online else ()), *_OPTIMISER, *(name for name in _FURTHER if name in fields), *_LENGTHS]
    return found | {name: _shown(values[name]) for name in names if values.get(name) is not None}


def _shown(value: object) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return f"{value:g}" if isinstance(value, float) else str(value)
