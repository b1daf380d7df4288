"""Several runs on one page: what their recipes differ in, and what came out, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leftover.evaluation.measures import MEASURES, MISSING
from leftover.evaluation.tables import FIRST, SHORT_RECORDED, Grid
from leftover.recipe.sections import Recipe
from leftover.runs.records import ResultRow

_MOST_KEYS = 8
_NO_DIFFERENCE = {"name", "output_dir"}


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
    flat = [_flat(recipe.model_dump(mode="json", exclude=_NO_DIFFERENCE)) for recipe in recipes]
    names = dict.fromkeys(name for own in flat for name in own)
    found = {name: [_text(own.get(name)) for own in flat] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def runs_grid(names: Sequence[str], recipes: Sequence[Recipe], results: Sequence[Mapping[str, Any] | None]) -> Grid:
    """A line for each run: its main policy's numbers, then the keys in which the recipes differ."""
    rows = [_main_row(found) for found in results]
    measures = [MEASURES[name] for name in (FIRST if any("reward" in row for row in rows) else SHORT_RECORDED)]
    used = [m for m in measures if any(m.cell(row) != MISSING for row in rows if row)]
    differ = list(differing_keys(recipes).items())
    header = ["run", "policy", *(m.heading for m in used), *(name for name, _ in differ[:_MOST_KEYS])]
    more = len(differ) - _MOST_KEYS
    cells = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        numbers = [m.cell(row) if row else MISSING for m in used]
        line = [name, (results[i] or {}).get("main", MISSING), *numbers, *(of[i] for _, of in differ[:_MOST_KEYS])]
        cells.append([*line, *([f"{more}"] if more > 0 else [])])
    return Grid([*header, *(["further keys that differ"] if more > 0 else [])], cells)


def _main_row(results: Mapping[str, Any] | None) -> ResultRow:
    return results[results["primary"]]["table"].get(results.get("main"), {}) if results else {}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inside in value.items():
        found |= _flat(inside, f"{prefix}.{name}" if prefix else str(name))
    return found


def _text(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
