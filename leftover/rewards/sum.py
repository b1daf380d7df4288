"""The reward of a recipe: components, each freed of length, normalised and weighted, summed and transformed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leftover.data.checks import LARGEST_REWARD
from leftover.errors import UserError, located
from leftover.monitoring.ranks import shared
from leftover.recipe.forms import Transform
from leftover.recipe.sections import LengthSection, RewardSection
from leftover.rewards.base import STRICT, ColumnReward, Prompt, Reward, learner, load_reward, make
from leftover.rewards.length import explained, fit_length, text_lengths
from leftover.rewards.python import check_finite
from leftover.rewards.transform import apply_transform, fit_transform, needs_fit

Scores = Mapping[str, Sequence[float | None]] | Mapping[str, np.ndarray]  # by component


class SumSettings(RewardSection):
    functions: list[dict[str, Any]] = Field(min_length=1)


class Component(BaseModel):
    """What a function of a sum may have beside the settings of its type."""

    model_config = STRICT | ConfigDict(extra="allow")

    weight: float = 1.0  # in the sum
    name: str | None = None  # of its column and in tables; default: its type or function
    normalise: Transform | None = None  # of its scores before they are weighted, as reward.transform of the sum


class SumReward:
    """transform(sum of weight x normalise(component less length)); `components` keeps the parts by name.

    Args:
        functions: specifications for `load_reward`, each with a `weight` (1.0), a `name`, and `normalise` (a transform
            of `fit_transform`) beside the settings of its type.
        transform: of the sum, as `fit_transform` takes it.
        missing: for rows that a component has no score for. drop: the row has no reward; impute: the component counts
            with its mean over the training rows; renormalise: the other weights are scaled up to the same sum.
        where: the place of `functions`, for messages.
        length: takes off each component's scores what length explains of them (`without_length`), as `fit` finds it.
    """

    def __init__(
        self,
        functions: list[dict[str, Any]],
        transform: Transform | None = None,
        missing: str = "drop",
        where: str = "functions",
        length: LengthSection | None = None,
    ):
        self.components: dict[str, Reward] = {}
        self.weights: dict[str, float] = {}
        self.normalise: dict[str, Transform | None] = {}
        for i, spec in enumerate(functions):
            place = f"{where}[{i}]"
            component, name = make(place, Component, spec), component_name(spec)
            if name in self.components:
                raise UserError(f"{place}: '{name}' is the name of another function: give each a `name`")
            with located(place):
                self.components[name] = load_reward(component.model_extra or {})
            self.weights[name] = component.weight
            self.normalise[name] = None if component.normalise == "none" else component.normalise
        self.transform, self.missing, self.length = transform, missing, length
        # What needs no fit works from the start, for users outside a run.
        self.state: dict[str, Any] = {
            "components": {
                name: {"transform": fit_transform(normalise, np.empty(0)), "mean": None}
                for name, normalise in self.normalise.items()
                if not needs_fit(normalise)
            },
            "total": None if needs_fit(transform) else fit_transform(transform, np.empty(0)),
        }

    def score_components(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> dict[str, list[float | None]]:
        """The raw scores of every component, by name. Raises UserError for one that is not finite.

        The processes of a launch share the completions (`leftover.monitoring.ranks.shared`).
        """
        scores = {name: shared(reward, prompts, completions) for name, reward in self.components.items()}
        for name, column in scores.items():
            check_finite(f"reward function '{name}'", column, completions)
        return scores

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """The reward of new completions. Raises UserError where `missing: drop` would leave one without."""
        scores = self.score_components(prompts, completions)
        return self.combine(self.without_length(scores, text_lengths(completions)))

    def combine(self, scores: Scores) -> list[float]:
        """The reward of new completions from their components' scores, as `total`."""
        total = self.total(scores)
        if np.isnan(total).any():
            silent = [name for name, column in scores.items() if np.isnan(as_array(column)).any()]
            raise UserError(
                f"no score for {int(np.isnan(total).sum())} of {len(total)} new completions from {', '.join(silent)}: "
                f"{self._remedy()}"
            )
        return total.tolist()

    def _remedy(self) -> str:
        """What helps new completions without a score, of the rules that are not set already."""
        rules = {"drop": ["impute", "renormalise"], "renormalise": ["impute"]}.get(self.missing, [])
        rules = [rule for rule in rules if rule == "impute" or len(self.components) > 1]  # one has no other weights
        return "let the function score every text" + (f", or set reward.missing to {' or '.join(rules)}" * bool(rules))

    def without_length(self, scores: Scores, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Raw scores less what length explains of them; as they are unless the reward has `length`.

        score - f(length) + mean f, so that the mean over the training rows, and the scale, stay (`fit_length`).
        """
        found = {name: as_array(column) for name, column in scores.items()}
        if self.length is None:
            return found
        if "length" not in self.state:
            raise UserError("reward.length is fitted on training rows: use it in a recipe, or call fit")
        return {name: column - explained(self.state["length"][name], lengths) for name, column in found.items()}

    def fit(self, scores: Scores, train: np.ndarray | None = None, lengths: np.ndarray | None = None) -> dict[str, Any]:
        """Fit length, normalisations, means and transform on rows by their raw scores; returns `state`.

        Args:
            train: [N] bool, the rows to fit on; default: all.
            lengths: [N] of the completions (`leftover.rewards.text_lengths`), which `length` needs.
        """
        counted = {name: as_array(scores[name]) for name in self.components}
        train = np.ones(len(next(iter(counted.values()))), bool) if train is None else train
        if self.length is not None:
            if lengths is None:
                raise UserError("reward.length: fit needs `lengths`, as text_lengths(completions) gives them")
            fits = {n: fit_length(self.length.debias, s[train], lengths[train]) for n, s in counted.items()}
            self.state["length"] = fits
            counted = self.without_length(counted, lengths)
        for name, normalise in self.normalise.items():
            training = counted[name][train]
            fitted = fit_transform(normalise, training)
            found = apply_transform(fitted, training[np.isfinite(training)])
            self.state["components"][name] = {"transform": fitted, "mean": float(found.mean()) if len(found) else None}
        self.state["total"] = fit_transform(self.transform, self._sum(counted)[train])
        return self.state

    def total(self, scores: Scores) -> np.ndarray:
        """[N] float64: the reward of rows, from the scores of `without_length` (raw ones give the raw reward); NaN if
        a row has none."""
        summed = self._sum(scores)
        if self.state["total"] is None:
            raise _unfitted("the sum", self.transform)
        total = apply_transform(self.state["total"], summed)
        if (large := np.nanmax(np.abs(total), initial=0.0)) > LARGEST_REWARD:
            raise UserError(
                f"rewards reach {large:g} after weights, normalise and transform, more than can be computed with "
                f"({LARGEST_REWARD:g}): lower reward.functions[].weight or the scale of a transform"
            )
        return total

    def weighted(self, scores: Scores) -> dict[str, np.ndarray]:
        """Each component's part of the sum, [N] float64, NaN if it has no score."""
        parts = {}
        for name, weight in self.weights.items():
            if name not in self.state["components"]:
                raise _unfitted(f"'{name}'", self.normalise[name])
            fitted = self.state["components"][name]["transform"]
            parts[name] = weight * apply_transform(fitted, as_array(scores[name]))
        return parts

    def _sum(self, scores: Scores) -> np.ndarray:
        parts = self.weighted(scores)
        if self.missing == "impute":
            for name, part in parts.items():
                mean = self.state["components"][name]["mean"]
                part[np.isnan(part)] = np.nan if mean is None else self.weights[name] * mean
        stacked = np.stack([*parts.values()])
        if self.missing != "renormalise":
            return stacked.sum(0)
        weights, present = np.array([*self.weights.values()])[:, None], np.isfinite(stacked)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.nansum(stacked, 0) * weights.sum() / (weights * present).sum(0)
        return np.where(present.any(0), scaled, np.nan)

    @property
    def scores_new_completions(self) -> bool:
        return not self.only_recorded

    @property
    def only_recorded(self) -> list[str]:
        """Names of the components that score no new completion: columns without a stand-in."""
        return [name for name, r in self.components.items() if isinstance(r, ColumnReward) and r.stand_in is None]

    @property
    def has_recorded_scores(self) -> bool:
        """Whether the scores of rows come from the data, so that those of a new completion are measured otherwise."""
        return any(isinstance(reward, ColumnReward) for reward in self.components.values())

    def identity(self) -> dict[str, Any]:
        """What the components' scores depend on, for keys."""
        return {name: reward.identity() for name, reward in self.components.items()}


def make_sum_reward(**settings: Any) -> SumReward:
    """The sum by the settings of a recipe's section `reward`. Raises UserError for an unknown one."""
    section = make("sum reward", SumSettings, settings)
    return SumReward(section.functions, section.transform, section.missing, length=section.length)


def as_array(scores: Sequence[float | None] | np.ndarray) -> np.ndarray:
    """Scores as float64, None as NaN; an array of that kind as it is."""
    return np.asarray(scores, np.float64)


def _unfitted(what: str, transform: Transform | None) -> UserError:
    remedy = "use it in a recipe, or call fit"
    return UserError(f"{what} is normalised by {transform}, which is fitted on training rows: {remedy}")


def component_name(spec: dict[str, Any]) -> str:
    """The name of a function of a sum: the one that it has, or what tells most about it."""
    if spec.get("name"):
        return spec["name"]
    named = next((spec[key] for key in ("function", "preset", "model", "path", "column") if spec.get(key)), None)
    return str(named or spec.get("type")).rpartition("/")[2]


def fitted_parts(reward: SumReward) -> list[str]:
    """The parts of a reward that are fitted on rows, for messages."""
    return [name for name, f in reward.components.items() if learner(f)] + reads_scores(reward)


def reads_scores(reward: SumReward) -> list[str]:
    """The transforms and rules of a reward that are fitted on the scores of rows, for messages."""
    fitted = [str(spec) for spec in (*reward.normalise.values(), reward.transform) if needs_fit(spec)]
    return fitted + ["missing: impute"] * (reward.missing == "impute") + ["length"] * (reward.length is not None)


def fresh_reward(reward: SumReward) -> SumReward | None:
    """A reward outside a run; None if all scores are recorded. UserError if some are, or if it is fitted on rows."""
    recorded = reward.only_recorded
    if len(recorded) == len(reward.components):
        return None
    if recorded:
        raise UserError(f"{', '.join(recorded)}: recorded, so that new completions have no such score: leave it out")
    if fitted := fitted_parts(reward):
        raise UserError(f"{', '.join(fitted)}: fitted on the rows of a recipe; give that recipe with --recipe")
    return reward
