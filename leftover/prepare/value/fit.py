"""Choosing and fitting the value estimate: the constant, ridge on pooled features, or the attention head."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from leftover.objectives.advantage import advantage, beyond_rounding, differ
from leftover.prepare.value.head import ValueHead, fit_head, predict_head
from leftover.prepare.value.ridge import ALPHAS, CHUNK, fit_ridge
from leftover.recipe.sections import ValueSection

_INNER_FOLDS = 5
# One would take ridge on pure noise in a sixth of all runs.
_STANDARD_ERRORS = 2.0


class Some:
    """Rows of features: `some[rows]` reads these alone, [n, 2 H]."""

    def __init__(self, features: Any, places: np.ndarray):
        self._features, self._places = features, places
        self.shape = (len(places), features.shape[1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._features[self._places[rows]]


class Problem(NamedTuple):
    """N prompts, with what their values are fitted to."""

    features: Any  # [N, 2 H], an array or `Some`
    targets: np.ndarray  # [N] float64: the mean reward of their completions
    families: np.ndarray  # [N] ids, each kept on one side of every inner split
    hidden: Sequence[Tensor] | None = None  # N tensors [L_i, H]; without them the attention head is no candidate

    def take(self, prompts: np.ndarray) -> "Problem":
        """The prompts of a mask, [N] bool."""
        hidden = None if self.hidden is None else [self.hidden[int(i)] for i in np.flatnonzero(prompts)]
        places = np.flatnonzero(prompts)
        return Problem(Some(self.features, places), self.targets[places], self.families[places], hidden)


@dataclass
class FittedValue:
    """One chosen estimate: `predict` gives V for prompts; `scores` has the held-out R2 of every candidate."""

    kind: str
    intercept: float = 0.0  # of the constant, the constant
    coefficients: np.ndarray | None = None  # [2 H], on raw features
    head: ValueHead | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def predict(self, features: Any, hidden: Sequence[Tensor] | None = None) -> np.ndarray:
        """V, [N] float64, from pooled features [N, 2 H] (an array or `Some`); the attention head needs hidden states
        instead."""
        if self.head is not None:
            assert hidden is not None
            return predict_head(self.head, hidden)
        if self.coefficients is None:
            return np.full(features.shape[0], self.intercept)
        size, values = features.shape[0], [np.empty(0)]
        for start in range(0, size, CHUNK):
            rows = features[np.arange(start, min(start + CHUNK, size))]
            values.append(np.asarray(rows, np.float64) @ self.coefficients + self.intercept)
        return np.concatenate(values)


def fit_value(problem: Problem, settings: ValueSection, seed: int) -> FittedValue:
    """Fit every candidate on 80 % of the prompts, choose on the other 20 %, and refit the chosen one on all.

    A candidate is taken over the constant only if its squared error on the choosing prompts is lower by more
    than two standard errors of the paired difference: a constant that is a little wrong does less harm than
    noise in every advantage.
    """
    if len(np.unique(problem.families)) < 2 * _INNER_FOLDS or not differ(problem.targets):
        return _fit("constant", problem, settings, seed)
    choosing = _held_out(problem.families, 0.2, seed)
    fitting, rest = problem.take(~choosing), problem.take(choosing)
    baseline = np.square(rest.targets - fitting.targets.mean())
    chosen, chosen_error, scores = "constant", baseline, {"constant": 0.0}
    for name in settings.candidates:
        if name == "constant" or (name == "head" and problem.hidden is None):
            continue
        predicted = _fit(name, fitting, settings, seed).predict(rest.features, rest.hidden)
        error = np.square(rest.targets - predicted)
        scores[name] = 1 - float(error.mean() / baseline.mean()) if baseline.any() else 0.0
        gain = baseline - error
        better = gain.mean() > _STANDARD_ERRORS * gain.std(ddof=1) / len(gain) ** 0.5
        if better and error.mean() < chosen_error.mean():
            chosen, chosen_error = name, error
    fitted = _fit(chosen, problem, settings, seed)
    fitted.scores = scores
    return fitted


def held_out_r2(problem: Problem, settings: ValueSection, seed: int) -> float:
    """R2 of the whole procedure (fit, choose, refit) on 20 % of the prompts that took no part in it."""
    reporting = _held_out(problem.families, 0.2, seed + 1)
    if reporting.all():
        return float("nan")
    fitting, rest = problem.take(~reporting), problem.take(reporting)
    predicted = fit_value(fitting, settings, seed).predict(rest.features, rest.hidden)
    return r_squared(rest.targets, predicted, float(fitting.targets.mean()))


def r_squared(targets: np.ndarray, predicted: np.ndarray, baseline: float | np.ndarray) -> float:
    """1 - error / error of the baseline that the fitting prompts give (not of the held-out mean).

    NaN for targets that differ from the baseline by rounding at most.
    """
    if not advantage(targets, np.broadcast_to(baseline, targets.shape)).any():
        return float("nan")
    spread = np.square(targets - baseline).sum()
    return 1 - float(np.square(targets - predicted).sum() / spread)


def _fit(name: str, problem: Problem, settings: ValueSection, seed: int) -> FittedValue:
    if name == "constant":
        mean = beyond_rounding(problem.targets.mean(keepdims=True), np.abs(problem.targets).mean(keepdims=True))
        return FittedValue("constant", float(mean[0]))
    if name == "ridge":
        return _ridge(problem)
    assert problem.hidden is not None
    stopping = _held_out(problem.families, 0.15, seed + 2)
    epochs, learning_rate = settings.head_epochs, settings.head_learning_rate
    head, _ = fit_head(problem.hidden, problem.targets, stopping, epochs=epochs, learning_rate=learning_rate, seed=seed)
    return FittedValue("head", head=head)


def _ridge(problem: Problem) -> FittedValue:
    """Closed form on standardised features; the penalty by cross-validation grouped by family."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    size = len(problem.targets)
    folds = GroupKFold(min(_INNER_FOLDS, len(np.unique(problem.families))))
    if size > problem.features.shape[1]:
        fold = np.empty(size, np.int8)
        for number, (_, inside) in enumerate(folds.split(np.empty(size), groups=problem.families)):
            fold[inside] = number
        coefficients, intercept = fit_ridge(problem.features, problem.targets, fold)
        return FittedValue("ridge", intercept, coefficients)
    # Of fewer rows than features, which fit in memory, the dual form is the cheaper one.
    features = np.asarray(problem.features[np.arange(size)], np.float64)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS}, cv=folds, scoring="neg_mean_squared_error"
    )
    search.fit(features, problem.targets, groups=problem.families)
    scaler, ridge = search.best_estimator_[0], search.best_estimator_[1]
    coefficients = ridge.coef_ / scaler.scale_
    return FittedValue("ridge", float(ridge.intercept_ - scaler.mean_ @ coefficients), coefficients)


def family_folds(families: np.ndarray, number: int, seed: int) -> np.ndarray:
    """[N] int: the fold of each prompt, of 0 to `number` - 1; a family is in one."""
    unique, of_prompt = np.unique(families, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(unique)) % number)[of_prompt]


def _held_out(families: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[N] bool: whole families, about `share` of them."""
    unique = np.unique(families)
    chosen = np.random.default_rng(seed).permutation(unique)[: max(1, round(share * len(unique)))]
    return np.isin(families, chosen)
