"""Whether judges are independent of what was trained on, and whether a fitted scorer is better than chance."""

from collections.abc import Iterator
from typing import Any

from leftover.metrics import Interval
from leftover.recipe.sections import Recipe

# What a scorer without any knowledge gets, by the statistic of `leftover.rewards.quality`.
_CHANCE = {"held_out_auc": 0.5, "held_out_spearman": 0.0, "held_out_pair_accuracy": 0.5}


def dependent_judges(recipe: Recipe) -> Iterator[str]:
    """Judges that are the reward itself, or fitted on rows that policies or the reward were trained on."""
    rewards = [_bare(spec) for spec in recipe.reward.functions]
    taught = [("the policies", _read(recipe.data.model_dump()))]
    taught += [("the reward", _read(fit)) for spec in rewards if (fit := _fit(spec))]
    for spec in recipe.evaluate.judges:
        name, bare = spec.get("name") or spec.get("type"), _bare(spec)
        if bare in rewards:
            yield f"judge '{name}' is a reward that the policies were trained on"
            continue
        fit = _fit(bare)
        if bare.get("fit") == "rows":
            yield f"judge '{name}' is fitted on the policies' own rows"
        others = [what for what, read in taught if fit and _overlap(read, _read(fit))]
        if others:
            yield f"judge '{name}' is fitted on rows of {' and '.join(others)} (set another `part`)"


def idle_scorers(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Fitted rewards and judges whose held-out interval holds chance; `facts` by artifact, as the fit returned them."""
    for artifact, of_artifact in facts.items():
        for statistic, chance in _CHANCE.items():
            found = of_artifact.get(statistic)
            if found and found["low"] is not None and found["low"] <= chance:
                yield f"{artifact} may be no better than chance: {statistic.replace('_', ' ')} {_interval(found)}"


def facts_text(facts: dict[str, Any]) -> str:
    """What a fit returned, in one line: numbers, and held-out statistics with their 95 % intervals."""
    parts = []
    for name, fact in facts.items():
        words = name.replace("_", " ")
        if isinstance(fact, (int, float)):
            parts.append(f"{words} {fact}")
        elif name in _CHANCE and fact["low"] is not None:
            parts.append(f"{words} {_interval(fact)}")
    return ", ".join(parts)


def _interval(fact: dict[str, float]) -> Interval:
    return Interval(fact["value"], fact["low"], fact["high"])


def _bare(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in ("name", "weight", "normalise")}


def _fit(spec: dict[str, Any]) -> dict[str, Any] | None:
    fit = (spec.get("new_completions") or spec).get("fit")
    return fit if isinstance(fit, dict) else None


def _read(data: dict[str, Any]) -> tuple[set[str], tuple[float, float]]:
    path, part = data.get("path"), data.get("part") or (0.0, 1.0)
    return set([path] if isinstance(path, str) else path or []), (part[0], part[1])


def _overlap(one: tuple[set[str], tuple[float, float]], other: tuple[set[str], tuple[float, float]]) -> bool:
    return bool(one[0] & other[0]) and one[1][0] < other[1][1] and other[1][0] < one[1][1]
