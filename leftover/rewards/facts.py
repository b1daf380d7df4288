"""What the components of a reward look like beside one another: their spread, correlation and part in the sum."""

import logging
from typing import Any

import numpy as np

from leftover.monitoring.terminal import console
from leftover.rewards.sum import SumReward

log = logging.getLogger(__name__)

# Share of the summed reward's variance from which one component is said to dominate.
_DOMINATES = 0.9


def component_facts(reward: SumReward, scores: dict[str, np.ndarray], total: np.ndarray) -> dict[str, Any]:
    """Of every component on the training rows: mean, spread, rows without a score, its share of the sum's variance.

    The share is cov(weighted component, sum) / var(sum); the shares of rows that have all components add up to 1.
    `correlation` holds Pearson's of every pair of components, over rows that have both.
    """
    parts = reward.weighted(scores)
    summed = np.sum(list(parts.values()), axis=0)  # before the transform
    whole = np.isfinite(summed)
    variance = float(np.var(summed[whole])) if whole.any() else 0.0
    found: dict[str, Any] = {
        "components": {},
        "correlation": {},
        "rows": len(total),
        "missing": int(np.isnan(total).sum()),
    }
    for name, column_ in scores.items():
        there = column_[np.isfinite(column_)]
        share = float(np.cov(parts[name][whole], summed[whole], bias=True)[0, 1]) / variance if variance > 0 else None
        found["components"][name] = {
            "weight": reward.weights[name],
            "mean": float(there.mean()) if len(there) else None,
            "sd": float(there.std()) if len(there) else None,
            "min": float(there.min()) if len(there) else None,
            "max": float(there.max()) if len(there) else None,
            "missing": len(column_) - len(there),
            "share_of_variance": share,
        }
    names = list(scores)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = np.isfinite(scores[one]) & np.isfinite(scores[other])
            a, b = scores[one][both], scores[other][both]
            known = len(a) > 1 and a.std() > 0 and b.std() > 0
            found["correlation"][f"{one} | {other}"] = float(np.corrcoef(a, b)[0, 1]) if known else None
    return found


def show_facts(facts: dict[str, Any]) -> None:
    """A table of the components on stderr where there are several, and a warning where one dominates the sum."""
    if len(facts["components"]) > 1:
        if log.isEnabledFor(logging.INFO):
            console(stderr=True, width=140).print(_table(facts))
        for name, of in facts["components"].items():
            if (of["share_of_variance"] or 0) > _DOMINATES:
                log.warning(
                    "reward: '%s' makes %s of the variance of the sum: the other components hardly count. Set "
                    "normalise: standardise, or weights",
                    name,
                    _percent(of["share_of_variance"]),
                )
    if facts["missing"]:
        log.info("reward: %d of %d training rows have none", facts["missing"], facts["rows"])


def _table(facts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"Reward on {facts['rows']:,} training rows", title_justify="left")
    table.add_column("component", overflow="fold")
    for header in ("weight", "mean", "sd", "range", "missing", "variance"):
        table.add_column(header, justify="right")
    for name, of in facts["components"].items():
        span = f"{_number(of['min'])} to {_number(of['max'])}"
        numbers = (f"{of['weight']:g}", _number(of["mean"]), _number(of["sd"]), span, str(of["missing"]))
        table.add_row(name, *numbers, _percent(of["share_of_variance"]))
    pairs = [f"{pair.replace(' | ', ', ')}: {_number(r)}" for pair, r in facts["correlation"].items()]
    table.caption = "Correlation of " + "; ".join(pairs)
    table.caption_justify = "left"
    return table


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.0%}"
