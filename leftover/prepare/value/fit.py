"""Choosing and fitting the value estimate: the constant, ridge on pooled features, or the attention head.

Units are prompts: one feature vector, one target (the mean reward of its completions), one family id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from leftover.prepare.value.head import ValueHead, fit_head, predict_head

_ALPHAS = np.logspace(0, 6, 13)
_INNER_FOLDS = 5
# One would take ridge on pure noise in a sixth of all runs.
_STANDARD_ERRORS = 2.0


@dataclass
class FittedValue:
    """One chosen estimate: `predict` gives V for prompts; `scores` has the held-out R2 of every candidate."""

    kind: str
    constant: float
    scores: dict[str, float] = field(default_factory=dict)
    coefficients: np.ndarray | None = None  # [2 H], on raw features
    intercept: float = 0.0
    head: ValueHead | None = None

    def predict(self, features: np.ndarray, hidden: Sequence[Tensor] | None = None) -> np.ndarray:
        """V, [N] float64, from pooled features [N, 2 H]; the attention head needs hidden states instead."""
        if self.kind == "constant":
            return np.full(len(features), self.constant)
        if self.kind == "ridge":
            assert self.coefficients is not None
            return np.asarray(features, np.float64) @ self.coefficients + self.intercept
        assert self.head is not None and hidden is not None
        return predict_head(self.head, hidden)


def fit_value(
    features: np.ndarray,
    targets: np.ndarray,
    families: np.ndarray,
    *,
    candidates: Sequence[str] = ("constant", "ridge", "head"),
    hidden: Sequence[Tensor] | None = None,
    head_epochs: int = 30,
    head_learning_rate: float = 1e-3,
    seed: int = 0,
) -> FittedValue:
    """Fit every candidate on 80 % of the prompts, choose on the other 20 %, and refit the chosen one on all.

    A candidate is taken over the constant only where its squared error on the choosing prompts is lower by more
    than two standard errors of the paired difference: a constant that is a little wrong does less harm than
    noise in every advantage.

    Args:
        features: [N, 2 H]; targets: [N]; families: [N] ids kept on one side of every inner split.
        hidden: N tensors [L_i, H], for the attention head; without them it is no candidate.
    """
    targets = np.asarray(targets, np.float64)
    constant = FittedValue("constant", float(targets.mean()))
    num_families = len(np.unique(families))
    if num_families < 2 * _INNER_FOLDS or np.ptp(targets) == 0:
        return constant
    choosing = _held_out(families, 0.2, seed)
    names = [name for name in candidates if name != "constant" and (name != "head" or hidden is not None)]
    options: dict[str, Any] = {"epochs": head_epochs, "learning_rate": head_learning_rate, "seed": seed}
    baseline = np.square(targets[choosing] - targets[~choosing].mean())
    chosen, chosen_error, scores = "constant", baseline, {"constant": 0.0}
    for name in names:
        fitted = _fit(name, features, targets, families, hidden, ~choosing, options)
        predicted = fitted.predict(features[choosing], _take(hidden, choosing))
        error = np.square(targets[choosing] - predicted)
        scores[name] = 1 - float(error.mean() / max(baseline.mean(), 1e-12))
        gain = baseline - error
        better = gain.mean() > _STANDARD_ERRORS * gain.std(ddof=1) / len(gain) ** 0.5
        if better and error.mean() < chosen_error.mean():
            chosen, chosen_error = name, error
    if chosen == "constant":
        constant.scores = scores
        return constant
    fitted = _fit(chosen, features, targets, families, hidden, np.ones(len(targets), bool), options)
    fitted.scores = scores
    return fitted


def held_out_r2(features: np.ndarray, targets: np.ndarray, families: np.ndarray, **options: Any) -> float:
    """R2 of the whole procedure (fit, choose, refit) on 20 % of the prompts that took no part in it."""
    hidden = options.pop("hidden", None)
    reporting = _held_out(families, 0.2, options.get("seed", 0) + 1)
    if not reporting.any() or reporting.all():
        return float("nan")
    fitted = fit_value(
        features[~reporting], targets[~reporting], families[~reporting], hidden=_take(hidden, ~reporting), **options
    )
    predicted = fitted.predict(features[reporting], _take(hidden, reporting))
    return r_squared(targets[reporting], predicted, float(targets[~reporting].mean()))


def r_squared(targets: np.ndarray, predicted: np.ndarray, baseline: float | np.ndarray) -> float:
    """1 - error / error of the baseline that the fitting prompts give (not of the held-out mean)."""
    spread = np.square(targets - baseline).sum()
    return 1 - float(np.square(targets - predicted).sum() / spread) if spread > 0 else float("nan")


def _fit(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    families: np.ndarray,
    hidden: Sequence[Tensor] | None,
    rows: np.ndarray,
    options: dict[str, Any],
) -> FittedValue:
    constant = float(targets[rows].mean())
    if name == "ridge":
        coefficients, intercept = _ridge(features[rows], targets[rows], families[rows])
        return FittedValue("ridge", constant, coefficients=coefficients, intercept=intercept)
    subset = _take(hidden, rows)
    assert subset is not None
    stopping = _held_out(families[rows], 0.15, options["seed"] + 2)
    head, _ = fit_head(subset, targets[rows], stopping, **options)
    return FittedValue("head", constant, head=head)


def _ridge(features: np.ndarray, targets: np.ndarray, families: np.ndarray) -> tuple[np.ndarray, float]:
    """Closed form on standardised features; the penalty by cross-validation grouped by family."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), Ridge())
    folds = GroupKFold(min(_INNER_FOLDS, len(np.unique(families))))
    search = GridSearchCV(pipeline, {"ridge__alpha": _ALPHAS}, cv=folds, scoring="neg_mean_squared_error")
    search.fit(np.asarray(features, np.float64), targets, groups=families)
    scaler, ridge = search.best_estimator_[0], search.best_estimator_[1]
    coefficients = ridge.coef_ / scaler.scale_
    return coefficients, float(ridge.intercept_ - scaler.mean_ @ coefficients)


def _held_out(families: np.ndarray, share: float, seed: int) -> np.ndarray:
    """[N] bool: whole families, about `share` of them."""
    unique = np.unique(families)
    chosen = np.random.default_rng(seed).permutation(unique)[: max(1, round(share * len(unique)))]
    return np.isin(families, chosen)


def _take(hidden: Sequence[Tensor] | None, rows: np.ndarray) -> list[Tensor] | None:
    return None if hidden is None else [hidden[int(i)] for i in np.flatnonzero(rows)]
