"""Facts about the components of a reward: their spread, correlation and share in the sum."""

import logging
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.monitoring.terminal import console
from leftover.objectives.advantage import spread
from leftover.rewards.sum import SumReward

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

# Above this share of the summed reward's variance, a warning says that one component dominates.
_DOMINATES = 0.9


def component_facts(reward: SumReward, scores: dict[str, np.ndarray], total: np.ndarray) -> dict[str, Any]:
    """For every component on the training rows: mean, spread, rows without a score, share of the sum's variance.

    The share is cov(weighted component, sum) / var(sum); the shares of rows that have all components add up to 1.
    `correlation` holds Pearson's for every pair of components, over rows that have both. With `reward.length`, `scores`
    are those of `without_length`, and `length` holds for every component what it explained of the raw ones.
    """
    parts = reward.weighted(scores)
    summed = np.sum(list(parts.values()), axis=0)  # before the transform
    whole = np.isfinite(summed)
    variance = spread(summed[whole]) ** 2 if whole.any() else 0.0
    components = {}
    for name, of_rows in scores.items():
        found = of_rows[np.isfinite(of_rows)]
        share = _covariance(parts[name][whole], summed[whole]) / variance if variance > 0 else None
        statistics = (("mean", np.mean), ("sd", spread), ("min", np.min), ("max", np.max))
        components[name] = {
            "weight": reward.weights[name],
            **{statistic: float(f(found)) if len(found) else None for statistic, f in statistics},
            "missing": len(of_rows) - len(found),
            "share_of_variance": share,
        }
    correlation = {}
    for one, other in combinations(scores, 2):
        both = np.isfinite(scores[one]) & np.isfinite(scores[other])
        a, b = scores[one][both], scores[other][both]
        known = len(a) > 1 and spread(a) > 0 and spread(b) > 0
        correlation[f"{one} | {other}"] = float(np.corrcoef(a, b)[0, 1]) if known else None
    missing = int(np.isnan(total).sum())
    facts = {"components": components, "correlation": correlation, "rows": len(total), "missing": missing}
    if reward.length is not None:
        told = ("debias", "rows", "r2", "slope")
        facts["length"] = {name: {k: fitted[k] for k in told} for name, fitted in reward.state["length"].items()}
    return facts


def _covariance(a: np.ndarray, b: np.ndarray) -> float:
    """As np.cov(a, b, bias=True)[0, 1], which holds six arrays more."""
    return float((a - a.mean()) @ (b - b.mean())) / len(a)


def length_text(facts: Mapping[str, Any]) -> str:
    """What length explained of every component's raw scores and was taken off, in sentences; empty without that."""
    said = []
    for name, of in facts.get("length", {}).items():
        how = f"on {of['rows']:,} training rows ({of['debias']}, {of['slope']:+.3g} for 100 characters)"
        said.append(f"Length explains {of['r2']:.0%} of the variance of {name} {how}.")
    return " ".join([*said, "It is taken off; the raw reward has it."] if said else [])


def show_facts(facts: dict[str, Any], reward: SumReward) -> None:
    """A table of the components on stderr, and a warning if one of several dominates the sum."""
    if log.isEnabledFor(logging.INFO):
        console(stderr=True, width=140).print(_table(facts))
    if len(facts["components"]) > 1:
        for name, of in facts["components"].items():
            if (of["share_of_variance"] or 0) > _DOMINATES:
                log.warning(
                    "reward: '%s' makes up %s of the variance of the sum: the other components hardly count. %s",
                    name,
                    _shown(of["share_of_variance"], ".0%"),
                    _balance(reward),
                )
    if said := length_text(facts):
        log.info("reward: %s", said)
    for name, of in facts.get("length", {}).items():
        if of["r2"] == 0:
            log.warning(
                "reward: length explains nothing of '%s': its scores or lengths are equal, or of fewer than 20 rows",
                name,
            )
    if facts["missing"]:
        log.info("reward: %d of %d training rows have none", facts["missing"], facts["rows"])


def _balance(reward: SumReward) -> str:
    """What would let the other components count: what is not set already."""
    unset = {
        "normalise: standardise": not all(reward.normalise.values()),
        "weights": len(set(reward.weights.values())) == 1,
    }
    if remedies := [key for key, is_unset in unset.items() if is_unset]:
        return f"Set {', or '.join(remedies)}"
    return "That is what weights and normalise make of them: change them if it is not meant"


def _table(facts: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=f"Reward on {facts['rows']:,} training rows", title_justify="left", caption_justify="left")
    table.add_column("component", overflow="fold")
    several = len(facts["components"]) > 1
    for header in ("weight", "mean", "sd", "range", "missing", *(["variance"] if several else [])):
        table.add_column(header, justify="right")
    for name, of in facts["components"].items():
        low, mean, high, sd = (_shown(of[statistic]) for statistic in ("min", "mean", "max", "sd"))
        share = [_shown(of["share_of_variance"], ".0%")] if several else []
        table.add_row(name, f"{of['weight']:g}", mean, sd, f"{low} to {high}", str(of["missing"]), *share)
    pairs = [f"{pair.replace(' | ', ', ')}: {_shown(r)}" for pair, r in facts["correlation"].items()]
    table.caption = "Correlation of " + "; ".join(pairs) if several else None
    return table


def _shown(value: float | None, form: str = ".3g") -> str:
    return "n/a" if value is None else format(value, form)
