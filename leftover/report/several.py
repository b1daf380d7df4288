"""Several runs on one page: what their recipes differ in, and what came out, side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leftover.evaluation.measures import MEASURES, MISSING
from leftover.evaluation.tables import FIRST, SHORT_RECORDED, Grid, meanings
from leftover.recipe.sections import Recipe
from leftover.runs.records import ResultRow

_MOST_KEYS, _MOST_NAMED = 8, 3
_BY_REWARD = {"reward", "difference_from_reference", "win_rate", "logratio/rank_correlation", "logratio/pair_accuracy"}
NOT_COMPARABLE, SCALE = "†", "scale of reward"
_NO_DIFFERENCE = {"name", "output_dir"}


class SideBySide(NamedTuple):
    """A table of several runs, and what to know before one compares its lines."""

    grid: Grid
    caveats: list[str]
    meanings: dict[str, str]  # of headings


def titles(folders: Sequence[str | Path]) -> list[str]:
    """The names of the folders, or of the nearest ones around them that tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        alone, found = [own[-min(depth, len(own))] for own in parts], ["/".join(own[-depth:]) for own in parts]
        for names in (alone, found):
            if len(set(names)) == len(names):
                return names
    return found


def differing_keys(recipes: Sequence[Recipe]) -> dict[str, list[str]]:
    """Dotted key -> its value in every recipe, of those that are not the same in all."""
    return _differing([_flat(recipe.model_dump(mode="json", exclude=_NO_DIFFERENCE)) for recipe in recipes])


def _differing(flat: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for own in flat for name in own)
    found = {name: [own.get(name) for own in flat] for name in names}
    return {
        name: [_text(value) for value in values]
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }


def _scoring(recipe: Recipe) -> dict[str, Any]:
    """What makes the scale of a recipe's rewards."""
    functions = [{"weight": 1.0} | one for one in recipe.reward.functions]
    section = recipe.reward.model_dump(mode="json", exclude={"fitted_in", "functions"})
    return {"functions": functions, **section, **recipe.unfinished_key}


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _MOST_NAMED
    return ", ".join([*keys[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


def _letters(number: int) -> str:
    """A to Z, then AA."""
    before, last = divmod(number, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + last)


def scales(recipes: Sequence[Recipe]) -> list[str]:
    """A letter for each run; runs whose rewards are made alike, and can be compared, have the same."""
    made = [json.dumps(_scoring(recipe), sort_keys=True) for recipe in recipes]
    places = {key: place for place, key in enumerate(dict.fromkeys(made))}
    return [_letters(places[key]) for key in made]


def side_by_side(
    names: Sequence[str], recipes: Sequence[Recipe], results: Sequence[Mapping[str, Any] | None]
) -> SideBySide:
    """The table of several runs with what belongs to it."""
    explained = meanings(MEASURES.values())
    explained |= {f"{heading} {NOT_COMPARABLE}": meaning for heading, meaning in explained.items()}
    return SideBySide(runs_grid(names, recipes, results), runs_caveats(recipes), explained)


def runs_caveats(recipes: Sequence[Recipe]) -> list[str]:
    """Why numbers of these runs are not those of one comparison."""
    found = []
    if len(set(scales(recipes))) > 1:
        keys = dict.fromkeys(name.partition(".")[0] for name in _differing([_flat(_scoring(one)) for one in recipes]))
        where = ", ".join("evaluate.unfinished" if key == "unfinished" else f"reward.{key}" for key in keys)
        found.append(
            f"the rewards are not comparable ({where} differ): compare what is marked {NOT_COMPARABLE} only between "
            f"runs of the same {SCALE}"
        )
    own = [_flat({"data": one.data.model_dump(mode="json"), "seed": one.seed}) for one in recipes]
    if rows := _differing(own):
        found.append(
            f"the runs are not on the same rows ({_some(list(rows))} differ): their held-out prompts, "
            "and what of a reward is fitted on rows, are others"
        )
    return found


def runs_grid(names: Sequence[str], recipes: Sequence[Recipe], results: Sequence[Mapping[str, Any] | None]) -> Grid:
    """A line for each run: its main policy's numbers, then the keys in which the recipes differ.

    If rewards are not comparable the columns that depend on them are marked, and another tells which share a scale.
    """
    rows = [_main_row(found) for found in results]
    measures = [MEASURES[name] for name in (FIRST if any("reward" in row for row in rows) else SHORT_RECORDED)]
    used = [m for m in measures if any(m.cell(row) != MISSING for row in rows if row)]
    differ = list(differing_keys(recipes).items())
    letters = scales(recipes)
    apart = len(set(letters)) > 1
    headings = [f"{m.heading} {NOT_COMPARABLE}" if apart and m.name in _BY_REWARD else m.heading for m in used]
    header = ["run", "policy", *([SCALE] if apart else []), *headings, *(name for name, _ in differ[:_MOST_KEYS])]
    more = len(differ) - _MOST_KEYS
    cells = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        numbers = [m.cell(row) if row else MISSING for m in used]
        whose = [name, (results[i] or {}).get("main", MISSING), *([letters[i]] if apart else [])]
        line = [*whose, *numbers, *(of[i] for _, of in differ[:_MOST_KEYS])]
        cells.append([*line, *([f"{more}"] if more > 0 else [])])
    return Grid([*header, *(["further keys that differ"] if more > 0 else [])], cells)


def _main_row(results: Mapping[str, Any] | None) -> ResultRow:
    return results[results["primary"]]["table"].get(results.get("main"), {}) if results else {}


def _flat(value: Any, prefix: str = "") -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inside in value.items():
        found |= _flat(inside, f"{prefix}.{name}" if prefix else str(name))
    return found


def _text(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
