"""A linear model of TF-IDF features as a reward: fast, small, readable, and fitted in seconds."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.rewards.base import Prompt
from leftover.rewards.examples import Examples
from leftover.rewards.features import Kind, TextFeatures
from leftover.rewards.fitted import FitSettings, RowsReward
from leftover.store.files import read_json, write_json

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Inverse penalties: C of |w|^2 / 2 + C * (summed loss), as scikit-learn counts.
_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_FOLDS = 5
_TERMS_SHOWN = 10

Fit = Callable[["csr_array", np.ndarray, float], tuple[np.ndarray, float]]
Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]


class LinearSettings(FitSettings):
    # both: also the prompt's words, where quality depends on them; pair: also how much of the completion is found in
    # the prompt; overlap: only that (attribution to a given text).
    features: Kind = "completion"


class LinearReward(RowsReward):
    """Logistic regression for labels, ridge for scores, Bradley and Terry's model for pairs, on `TextFeatures`.

    The penalty is the one of the lowest loss in cross-validation that keeps families together. `FitSettings` documents
    where rows come from.
    """

    kind = "linear"
    Settings = LinearSettings
    settings: LinearSettings

    def learn(self, folder: Path, examples: Examples) -> dict[str, Any]:
        features = TextFeatures(self.settings.features)
        matrix = features.fit(examples.prompts, examples.completions)
        families, target = examples.families, examples.scores
        if examples.target == "pairs":
            matrix, target = preference_rows(matrix, examples.pairs)
            families = families[examples.pairs[:, 0]]
        fit, loss = _METHODS[examples.target]
        losses = cross_validate(fit, loss, matrix, target, families, stratify=examples.target == "label")
        strength = min(losses, key=lambda c: losses[c])
        weights, intercept = fit(matrix, target, strength)
        vocabularies, idf = features.state()
        arrays: dict[str, Any] = {"weights": weights, "intercept": intercept, **idf}
        write_json(folder / "vocabulary.json", vocabularies)
        np.savez_compressed(folder / "arrays.npz", **arrays)
        order, names = np.argsort(weights), features.names()
        return {
            "features": matrix.shape[1],
            "inverse_penalty": strength,
            "cross_validated_loss": {str(c): round(value, 4) for c, value in losses.items()},
            "lowest": [names[i] for i in order[:_TERMS_SHOWN] if weights[i] < 0],
            "highest": [names[i] for i in order[: -_TERMS_SHOWN - 1 : -1] if weights[i] > 0],
        }

    def restore(self, folder: Path) -> None:
        self._features = TextFeatures(self.settings.features)
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            arrays = dict(file)
        self._weights, self._intercept = arrays["weights"], float(arrays["intercept"])
        self._features.restore(read_json(folder / "vocabulary.json"), arrays)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        scores = self._features(prompts, completions) @ self._weights + self._intercept
        if self.gives_probability:
            scores = 0.5 * (1 + np.tanh(0.5 * scores))  # the logistic function, without overflow
        return scores.tolist()


def preference_rows(matrix: "csr_array", pairs: np.ndarray) -> tuple["csr_array", np.ndarray]:
    """Bradley and Terry's model as logistic regression without intercept: feature differences [P, F], labels [P].

    -log sigmoid(w . (chosen - rejected)). Every second difference is reversed, with label 0: the loss is the same, and
    the fit sees both labels.
    """
    from scipy import sparse

    labels = np.arange(len(pairs)) % 2
    difference = matrix[pairs[:, 0]] - matrix[pairs[:, 1]]
    return sparse.diags_array(2.0 * labels - 1) @ difference, labels.astype(np.float64)


def cross_validate(
    fit: Fit, loss: Loss, matrix: "csr_array", target: np.ndarray, families: np.ndarray, *, stratify: bool
) -> dict[float, float]:
    """For every penalty the mean loss of rows whose family took no part in the fit."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    folds = (StratifiedGroupKFold if stratify else GroupKFold)(min(_FOLDS, len(np.unique(families))))
    losses = {strength: np.zeros(len(target)) for strength in _STRENGTHS}
    for train, test in folds.split(matrix, target, families):
        for strength, of_rows in losses.items():
            weights, intercept = fit(matrix[train], target[train], strength)
            of_rows[test] = loss(matrix[test] @ weights + intercept, target[test])
    return {strength: float(of_rows.mean()) for strength, of_rows in losses.items()}


def fit_logistic(
    matrix: "csr_array", labels: np.ndarray, strength: float, intercept: bool = True
) -> tuple[np.ndarray, float]:
    """Logistic regression: weights [F] and intercept."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, fit_intercept=intercept, solver="newton-cg", tol=1e-6).fit(matrix, labels)
    return model.coef_[0], float(model.intercept_[0]) if intercept else 0.0


fit_preferences: Fit = partial(fit_logistic, intercept=False)  # of `preference_rows`


def fit_ridge(matrix: "csr_array", scores: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Ridge regression of scores on their own scale; the penalty is alpha = 1 / strength."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1 / strength, solver="sparse_cg", tol=1e-6).fit(matrix, scores)
    return model.coef_, float(model.intercept_)


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, np.where(labels == 1, -logits, logits))


def _squared_error(predicted: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.square(predicted - scores)


_METHODS: dict[str, tuple[Fit, Loss]] = {
    "label": (fit_logistic, _log_loss),
    "score": (fit_ridge, _squared_error),
    "pairs": (fit_preferences, _log_loss),
}
