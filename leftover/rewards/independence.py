"""Whether judges are independent of what was trained on, and whether a fitted scorer is better than chance."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leftover.metrics import FEW_CLUSTERS, Interval
from leftover.recipe.data_section import DataSection
from leftover.recipe.sections import Recipe

# What a scorer without any knowledge gets, by the statistic of `leftover.rewards.quality`.
_CHANCE = {"held_out_auc": 0.5, "held_out_spearman": 0.0, "held_out_pair_accuracy": 0.5}


def dependent_judges(recipe: Recipe, earlier: Sequence[DataSection] = ()) -> Iterator[str]:
    """Judges that are the reward itself, or fitted on rows that policies or the reward were trained on.

    earlier: rows of runs that this one goes on from.
    """
    rewards = [_bare(spec) for spec in recipe.reward.functions]
    taught = [("the policies", data.model_dump()) for data in (recipe.data, *earlier)]
    taught += [("the reward", fit) for spec in rewards if (fit := _fit(spec))]
    for spec in recipe.evaluate.judges:
        name, bare = spec.get("name") or spec.get("type"), _bare(spec)
        if bare in rewards:
            yield f"judge '{name}' is a reward that the policies were trained on"
            continue
        fit = _fit(bare)
        if bare.get("fit") == "rows":
            yield f"judge '{name}' is fitted on the policies' own rows"
        if others := dict.fromkeys(what for what, data in taught if fit and _share_rows(data, fit)):
            yield f"judge '{name}' is fitted on rows of {' and '.join(others)} (set another `part`)"


def fitted_rewards(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """That new completions are scored by what was fitted on scores, and how well that orders held-out rows."""
    for artifact, of_artifact in facts.items():
        if not artifact.startswith("reward "):
            continue
        found = [facts_text({name: of_artifact[name]}) for name in _CHANCE if of_artifact.get(name)]
        checked = f" ({found[0]} on {of_artifact.get('held_out_rows', 0):,} held-out rows)" if found else ""
        yield f"new answers are scored by a model fitted on scores, {artifact}{checked}: read some before you trust it"


def idle_scorers(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Fitted rewards and judges whose held-out interval holds chance; `facts` by artifact, as the fit returned them."""
    for artifact, of_artifact in facts.items():
        for statistic, chance in _CHANCE.items():
            found = of_artifact.get(statistic)
            if found and of_artifact.get("held_out_families", FEW_CLUSTERS) < FEW_CLUSTERS:
                yield f"{artifact} was checked on too few held-out families to tell: {of_artifact['held_out_families']}"
            elif found and found["low"] is not None and found["low"] <= chance:
                yield f"{artifact} may be no better than chance: {facts_text({statistic: found})}"


def facts_text(facts: dict[str, Any]) -> str:
    """What a fit returned, in one line: numbers, and held-out statistics with their 95 % intervals."""
    parts = []
    for name, fact in facts.items():
        words = name.replace("_", " ")
        if isinstance(fact, (int, float)):
            parts.append(f"{words} {fact}")
        elif name in _CHANCE and fact["low"] is not None:
            parts.append(f"{words} {Interval(fact['value'], fact['low'], fact['high'])}")
    return ", ".join(parts)


def _bare(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in ("name", "weight", "normalise")}


def _fit(spec: dict[str, Any]) -> dict[str, Any] | None:
    fit = (spec.get("new_completions") or spec).get("fit")
    return fit if isinstance(fit, dict) else None


def _share_rows(*sections: dict[str, Any]) -> bool:
    """Whether two data sections read a file in common, and overlapping parts of it."""
    paths = ([data["path"]] if isinstance(data["path"], str) else data["path"] for data in sections)
    one, other = ({Path(path).resolve() for path in of_section} for of_section in paths)
    (start, stop), (other_start, other_stop) = (data.get("part") or (0.0, 1.0) for data in sections)
    return bool(one & other) and start < other_stop and other_start < stop
