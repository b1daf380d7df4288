"""What a prompt's own samples of the reference say of its value, beyond what the estimate makes of its features.

The estimate f(x) sees features; the mean t(x) of a prompt's own samples sees that prompt, with the noise of few
samples. Both are independent of a row's completion, so that any V = f + w (t - f) is a baseline. The w that explains
most of the rows' rewards is the slope of R - f on t - f: near 0 where samples are noise, near 1 where completions of
a prompt are rewarded alike, the share of the variance of t - f that lies between prompts (empirical Bayes).
"""

import logging

import numpy as np

from leftover.prepare.value.fit import Problem, family_folds, fit_value
from leftover.recipe.sections import ValueSection

log = logging.getLogger(__name__)

_FEW = 10  # as many as an estimate is chosen by


def with_own_samples(
    problem: Problem, rewards: np.ndarray, settings: ValueSection, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """V of N prompts whose samples are the targets of the problem, [N], and what the report says of it.

    rewards: [N], the mean reward of a prompt's training rows; NaN without one.
    """
    fitted = out_of_fold(problem, settings, seed)
    weight = own_weight(rewards, fitted, problem.targets)
    values = fitted + weight * (problem.targets - fitted)
    before, after = explained(rewards, fitted), explained(rewards, values)
    log.info(
        "value: own samples of a prompt weigh %.2f; of the rows' mean rewards the estimate explains %.2f, both %.2f",
        weight,
        before,
        after,
    )
    return values, {"own_samples_weight": weight, "explained_by_estimate": before, "explained": after}


def explained(rewards: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(R - V) / Var(R) over prompts with a reward: that rows are better or worse on the whole is no error."""
    known = np.isfinite(rewards)
    spread = float(np.var(rewards[known])) if known.any() else 0.0
    return 1 - float(np.var((rewards - values)[known])) / spread if spread else 0.0


def out_of_fold(problem: Problem, settings: ValueSection, seed: int) -> np.ndarray:
    """f(x) of every prompt, [N], by fits of whole families that did not see it."""
    folds = min(settings.folds, len(np.unique(problem.families)))
    if folds < 2:
        return np.full(len(problem.targets), problem.targets.mean())
    fold = family_folds(problem.families, folds, seed)
    values = np.empty(len(problem.targets))
    for number in range(folds):
        rest = problem.take(fold == number)
        values[fold == number] = fit_value(problem.take(fold != number), settings, seed).predict(
            rest.features, rest.hidden
        )
    return values


def own_weight(rewards: np.ndarray, fitted: np.ndarray, sampled: np.ndarray) -> float:
    """w in [0, 1]: the least-squares slope of R - f on t - f, with an intercept, over prompts.

    Args:
        rewards: [N], the mean reward of a prompt's training rows; NaN without one.
        fitted: [N], f, of fits that did not see the prompt.
        sampled: [N], t, the mean reward of the reference's own completions.

    Of fewer than ten prompts with a reward no weight is told: 0.
    """
    known = np.isfinite(rewards)
    if known.sum() < _FEW:
        return 0.0
    left, own = (rewards - fitted)[known], (sampled - fitted)[known]
    own = own - own.mean()
    spread = float(own @ own)
    return float(np.clip(own @ (left - left.mean()) / spread, 0, 1)) if spread else 0.0
