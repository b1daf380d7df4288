"""Ridge from sums over rows: scikit-learn's, whatever the parts that the rows are read in."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leftover.prepare.value import fit, ridge
from leftover.prepare.value.fit import Problem
from leftover.prepare.value.ridge import ALPHAS, fit_ridge


def rows(noise: float, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 12)) * np.logspace(-2, 2, 12) + offset
    features[:, 3] = 7.0  # says nothing
    features[:, 4] = 2 * features[:, 5] + 1e-3 * rng.normal(size=400)  # nearly the same
    targets = 1e3 + features[:, [0, 5, 11]] @ [30.0, 1.0, 0.02] + noise * rng.normal(size=400)
    return features, targets, np.arange(400) // 3


@pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
@pytest.mark.parametrize(("offset", "size"), [(0.0, 400), (500.0, 64)])
def test_coefficients_are_scikit_learns(noise: float, offset: float, size: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(ridge, "CHUNK", size)
    features, targets, families = rows(noise, offset)
    folds = GroupKFold(5)
    pipeline = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(pipeline, {"ridge__alpha": ALPHAS}, cv=folds, scoring="neg_mean_squared_error")
    search.fit(features, targets, groups=families)
    fold = np.empty(400, int)
    for number, (_, inside) in enumerate(folds.split(features, groups=families)):
        fold[inside] = number
    coefficients, intercept = fit_ridge(features, targets, fold)
    np.testing.assert_allclose(features @ coefficients + intercept, search.predict(features), rtol=1e-6)


def test_few_rows_and_many_rows_have_one_answer() -> None:
    """Fewer rows than features take the dual form; a column of zeros more tips it over."""
    features, targets, families = rows(3.0)
    few = Problem(np.concatenate([features, np.zeros((400, 400))], 1), targets, families)
    predicted = [
        fit._ridge(problem).predict(problem.features) for problem in (few, Problem(features, targets, families))
    ]
    np.testing.assert_allclose(*predicted, rtol=1e-6)
