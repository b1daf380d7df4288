"""What is said of a column that the records lack: what they have instead, and what was probably meant."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leftover.errors import closest
from leftover.recipe.data_section import DataSection

# What others call the columns that we look for by default.
_USUAL = {
    "prompt": ("question", "instruction", "query", "input", "context", "post", "title"),
    "completion": ("response", "answer", "output", "reply", "target", "generation", "text"),
    "reward": ("score", "rating", "label", "grade", "stars", "points", "upvotes", "rewards"),
}


def no_column(names: Sequence[str], row: Mapping[str, Any], purpose: str = "", remedy: str = "") -> str:
    """The fault of a record without these columns; `purpose` is what they are for, `remedy` where others are named."""
    # Without filled templates and keys of our own.
    found = sorted(str(column) for column in row if "{" not in str(column) and not str(column).startswith("__"))
    said = f"no column {names[0]!r}{purpose} (found: {', '.join(found) or 'none'})"
    said += "".join(f", and no column {name!r}" for name in names[1:]) + remedy
    if meant := {name: column for name in names if (column := _meant(name, row))}:
        return f"{said}; did you mean {' and '.join(map(repr, meant.values()))}?"
    return said


def documents_remedy(data: DataSection) -> str:
    """What documents are told apart by, if that is what the rows are."""
    separator = data.documents.separator
    if data.format != "documents":
        return ""
    return (
        f"; documents end at lines {separator!r}: name what stands between yours in data.documents.separator ('' for "
        "empty lines)"
    )


def _meant(name: str, row: Mapping[str, Any]) -> str | None:
    """The column, also inside nested records, that a name most likely stands for."""
    paths = [path for path in _paths(row) if "{" not in path]
    if close := closest(name, [path for path in paths if path in row]):
        return close
    inside = {path.rpartition(".")[2]: path for path in reversed(paths) if path not in row}
    if close := closest(name.rpartition(".")[2], inside):
        return inside[close]
    lower = {path.rpartition(".")[2].lower(): path for path in [*inside.values(), *(p for p in paths if p in row)]}
    return next((lower[usual] for usual in _USUAL.get(name, ()) if usual in lower), None)


def _paths(value: Any, before: str = "", depth: int = 3) -> Iterator[str]:
    """Names of the columns, and dotted ones of the texts and numbers inside records that a column holds."""
    for name, inner in value.items():
        yield f"{before}{name}"
        if isinstance(inner, Mapping) and depth:
            yield from _paths(inner, f"{before}{name}.", depth - 1)
