"""What kind of scores rows have, and what can score new completions and judge them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leftover.commands.dry_run.rows import Rows

# Prompt families that a scorer is fitted on at least; with two labels, of the rarer one.
_TO_FIT, _OF_A_LABEL = 40, 20
_TO_JUDGE = 300  # families of which a fourth can be left to a judge
JUDGED = 0.75  # where the part of the judge begins


@dataclass(frozen=True)
class Scores:
    """Recorded scores. `families`: prompt families with a score; `of_a_label`: with the rarer one of two labels."""

    rows: int
    distinct: int
    low: float
    high: float
    mean: float
    labels: bool  # all are 0 or 1
    families: int
    of_a_label: int

    @property
    def can_fit(self) -> bool:
        return self.distinct > 1 and self.families >= _TO_FIT and (not self.labels or self.of_a_label >= _OF_A_LABEL)

    @property
    def can_judge(self) -> bool:
        return self.can_fit and self.families >= _TO_JUDGE and (not self.labels or self.of_a_label >= 4 * _OF_A_LABEL)

    @property
    def target(self) -> str:
        return "label" if self.labels else "score"

    def __str__(self) -> str:
        if self.labels:
            return f"{self.rows:,} rows are scored 0 or 1, {self.mean:.0%} of them 1"
        return f"{self.rows:,} rows are scored {self.low:g} to {self.high:g} ({self.distinct:,} values)"


def scores_of(rows: Rows) -> Scores | None:
    """None if no row has a score."""
    values, families = rows.recorded[rows.scored], rows.family[rows.scored]
    if not len(values):
        return None
    distinct = np.unique(values)
    labels = bool(np.isin(distinct, (0.0, 1.0)).all())
    of_labels = [len(np.unique(families[values == label])) for label in (0.0, 1.0)] if labels else [0]
    return Scores(
        len(values),
        len(distinct),
        float(values.min()),
        float(values.max()),
        float(values.mean()),
        labels,
        len(np.unique(families)),
        min(of_labels),
    )


def scorer(scores: Scores) -> dict[str, Any]:
    """A linear model of the words, fitted on the training rows' own scores."""
    return {"type": "linear", "fit": "rows", "target": scores.target, "features": "both"}
