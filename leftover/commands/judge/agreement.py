"""How far raters agree beyond chance. scikit-learn and krippendorff compute it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leftover.errors import UserError

Values = Mapping[int, float]  # item -> 1 win, 0.5 tie, 0 loss


def cohen_kappa(ours: Values, theirs: Values) -> dict[str, Any]:
    """Cohen's kappa (1960) of two raters, unweighted, on the items that both rated; and their share of equal ratings.

    `kappa` is None if both gave one and the same rating throughout, which chance explains as well as agreement does.
    """
    from sklearn.metrics import cohen_kappa_score

    shared = sorted(ours.keys() & theirs.keys())
    # Whole numbers: scikit-learn takes no fractions as classes.
    first, second = ([round(2 * of[item]) for item in shared] for of in (ours, theirs))
    equal = float(np.mean(np.equal(first, second))) if shared else None
    constant = len({*first, *second}) < 2
    kappa = None if constant else float(cohen_kappa_score(first, second))
    return {"kappa": kappa, "equal": equal, "items": len(shared)}


def krippendorff_alpha(raters: Sequence[Values]) -> float | None:
    """Krippendorff's alpha, nominal, over any number of raters, each of whom may have skipped items.

    None if no item was rated twice, or only one rating was ever given.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise UserError("agreement needs the package krippendorff: pip install 'leftover[judge]'") from error
    items = sorted({item for of in raters for item in of if sum(item in other for other in raters) > 1})
    ratings = np.array([[of.get(item, np.nan) for item in items] for of in raters], np.float64)
    if not items or np.unique(ratings[~np.isnan(ratings)]).size < 2:
        return None
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement="nominal"))
