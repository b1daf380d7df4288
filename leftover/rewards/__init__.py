"""Rewards: callables `(prompts, completions) -> floats`, made from a recipe's specification.

load_reward({"type": "text", "function": "vader"})
load_reward({"type": "sum", "functions": [{"type": "text", "function": "vader", "weight": 0.5}, ...]})
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from leftover.errors import UserError, nearest
from leftover.rewards.classifier import ClassifierReward
from leftover.rewards.python import PythonReward, check_finite
from leftover.rewards.text import TextReward


class Reward(Protocol):
    """A scoring function of completions. `prompts` are strings or message lists, as the user wrote them."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]: ...


class ColumnReward:
    """Scores recorded in the data. They belong to their rows: a new completion has none."""

    def __init__(self, column: str | None = None):
        self.column = column  # None: the one that data.columns.reward names

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        raise UserError(
            f"the column '{self.column or 'reward'}' holds recorded scores, which say nothing of a new completion; "
            "add a reward function (text, classifier, python) to score new ones"
        )

    def identity(self) -> dict[str, Any]:
        return {"type": "column", "column": self.column}


class SumReward:
    """A weighted sum of rewards; `components` keeps them apart by name."""

    def __init__(self, functions: list[dict[str, Any]]):
        if not functions:
            raise UserError("reward.functions is empty: name at least one")
        self.components: dict[str, Any] = {}
        self.weights: dict[str, float] = {}
        for spec in functions:
            spec = dict(spec)
            weight, name = spec.pop("weight", 1.0), spec.pop("name", None) or _default_name(spec)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise UserError(f"reward function '{name}': weight is {weight!r}, not a number")
            if name in self.components:
                raise UserError(f"two reward functions are named '{name}'; set 'name' on each")
            self.components[name], self.weights[name] = load_reward(spec), float(weight)

    def score_components(self, prompts: Sequence[Any], completions: Sequence[str]) -> dict[str, list[float]]:
        """The unweighted scores of every component, by name. Raises UserError for one that is not finite."""
        scores = {name: reward(prompts, completions) for name, reward in self.components.items()}
        for name, column in scores.items():
            check_finite(f"reward function '{name}'", column, completions)
        return scores

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return self.total(self.score_components(prompts, completions))

    def total(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum of the components' scores, completion by completion."""
        weights = [self.weights[name] for name in scores]
        return [sum(w * s for w, s in zip(weights, row, strict=True)) for row in zip(*scores.values(), strict=True)]

    @property
    def scores_new_completions(self) -> bool:
        return not any(isinstance(reward, ColumnReward) for reward in self.components.values())

    def identity(self) -> dict[str, Any]:
        """What the unweighted scores depend on, for keys."""
        return {name: reward.identity() for name, reward in self.components.items()}


def load_reward(spec: dict[str, Any]) -> Any:
    """The reward that `spec` describes: `type` and the settings of that type.

    Types: column (column); text (function: length, ngram_diversity, vader); classifier (model, label, ...);
    python (function: "module:function"); sum (functions: a list of specs, each with `weight` and `name`).
    Raises UserError for an unknown type or setting.
    """
    settings = dict(spec)
    kind = settings.pop("type", None)
    if kind not in REWARDS:
        raise UserError(f"unknown reward type {kind!r}{nearest(str(kind), list(REWARDS))}; types: {', '.join(REWARDS)}")
    try:
        return REWARDS[kind](**settings)
    except TypeError as error:
        raise UserError(f"reward {spec}: {str(error).replace('__init__() ', '').split('.', 1)[-1]}") from error


def _default_name(spec: dict[str, Any]) -> str:
    return str(spec.get("function") or spec.get("model") or spec.get("column") or spec.get("type")).rpartition("/")[2]


REWARDS: dict[str, type] = {
    "column": ColumnReward,
    "text": TextReward,
    "classifier": ClassifierReward,
    "python": PythonReward,
    "sum": SumReward,
}

__all__ = ["REWARDS", "ClassifierReward", "ColumnReward", "PythonReward", "SumReward", "TextReward", "load_reward"]
