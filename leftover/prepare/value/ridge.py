"""Ridge regression on more rows than features: closed form, from sums over rows that are read in parts."""

from typing import Any, NamedTuple

import numpy as np

ALPHAS = np.logspace(0, 6, 13)
CHUNK = 4096


class Sums(NamedTuple):
    """Over rows of features x and targets y, both less a pivot, so that nothing cancels."""

    n: float
    x: np.ndarray  # [D]
    y: float
    xx: np.ndarray  # [D, D]
    xy: np.ndarray  # [D]
    yy: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Sums":
        return cls(float(len(y)), x.sum(0), float(y.sum()), x.T @ x, x.T @ y, float(y @ y))

    def plus(self, other: "Sums", sign: float = 1.0) -> "Sums":
        return Sums(
            self.n + sign * other.n,
            self.x + sign * other.x,
            self.y + sign * other.y,
            self.xx + sign * other.xx,
            self.xy + sign * other.xy,
            self.yy + sign * other.yy,
        )

    def squared_error(self, coefficients: np.ndarray, intercept: float) -> float:
        """Of y by x @ coefficients + intercept, summed over the rows."""
        w, b = coefficients, intercept
        return self.yy - 2 * (b * self.y + w @ self.xy) + self.n * b * b + 2 * b * (self.x @ w) + w @ self.xx @ w


def fit_ridge(features: Any, targets: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients [D] on raw features, and the intercept; the penalty of ALPHAS with the least mean squared error.

    Features are standardised; the intercept is not penalised.

    Args:
        features: [N, D]; `features[rows]` reads rows.
        targets: [N]. fold: [N] ids; each fold is predicted from the others.
    """
    first = np.asarray(features[np.arange(min(CHUNK, len(targets)))], np.float64)
    pivot, center = first.mean(0), float(targets.mean())
    numbers = np.unique(fold)
    nothing = Sums(0.0, np.zeros(len(pivot)), 0.0, np.zeros((len(pivot),) * 2), np.zeros(len(pivot)), 0.0)
    folds = dict.fromkeys(numbers.tolist(), nothing)
    for start in range(0, len(targets), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(targets)))
        x, y = np.asarray(features[rows], np.float64) - pivot, targets[rows] - center
        for number in folds:
            inside = fold[rows] == number
            if inside.any():
                folds[number] = folds[number].plus(Sums.of(x[inside], y[inside]))
    total = nothing
    for one in folds.values():
        total = total.plus(one)
    errors = [[one.squared_error(w, b) / one.n for w, b in _solutions(total.plus(one, -1.0))] for one in folds.values()]
    best = int(np.mean(errors, 0).argmin())
    coefficients, intercept = _solutions(total)[best]
    return coefficients, intercept + center - float(pivot @ coefficients)


def _solutions(sums: Sums) -> list[tuple[np.ndarray, float]]:
    """Coefficients and intercept for every penalty."""
    mean, height = sums.x / sums.n, sums.y / sums.n
    spread = sums.xx - sums.n * np.outer(mean, mean)
    scale = np.sqrt(np.maximum(np.diag(spread), 0) / sums.n)
    # A feature that is constant up to rounding says nothing; divided by its spread it would say something.
    scale[scale < 1e-10 * np.sqrt(np.diag(sums.xx) / sums.n)] = 1.0
    scale[scale == 0] = 1.0
    values, vectors = np.linalg.eigh(spread / np.outer(scale, scale))
    projected = vectors.T @ ((sums.xy - sums.n * mean * height) / scale)
    found = []
    for alpha in ALPHAS:
        coefficients = vectors @ (projected / (np.maximum(values, 0) + alpha)) / scale
        found.append((coefficients, height - float(mean @ coefficients)))
    return found
