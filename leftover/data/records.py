"""What readers and layouts share: records with their place, and how a layout takes texts and numbers from them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from leftover.recipe.sections import ColumnsSection, DataSection

Located = tuple[str, dict[str, Any]]

# Keys of a row that is none: why it is faulty, and why a declared rule leaves it out.
FAULT, LEFT_OUT = "__fault__", "__left_out__"

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_TRUTH = {"true": True, "false": False}


class Record(NamedTuple):
    """One record as its file holds it; a layout makes rows of it."""

    where: str
    row: dict[str, Any]
    source: str  # the name of the file or subset that it stands in
    number: int  # its place there, from 0


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text in a column, without outer white space; empty where the cell is. Raises ValueError."""
    _check_there(row, name)
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is not a text: {value!r:.60}")
    return value.strip()


def number_of(row: Mapping[str, Any], name: str) -> float | None:
    """The number in a column, also where the file spells it as text; None where the cell is empty."""
    _check_there(row, name)
    value = parse_number(row[name]) if isinstance(row[name], str) else row[name]
    if value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"'{name}' is {value!r:.40}, not a number")
    return value


def _check_there(row: Mapping[str, Any], name: str) -> None:
    if name not in row:
        raise ValueError(f"no column '{name}' (found: {', '.join(sorted(row)) or 'none'})")


def parse_number(text: str) -> Any:
    """A cell of a text table as the number or truth value it spells; any other text as it is."""
    if text.strip().lower() in _TRUTH:
        return _TRUTH[text.strip().lower()]
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def fill(template: str, row: Mapping[str, Any]) -> str:
    """The template with {column} replaced by its cell; {{ and }} are braces. Raises ValueError for an unknown one."""

    def cell(match: re.Match) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in row:
            raise ValueError(f"no column '{name}' for the template '{template}' (found: {', '.join(sorted(row))})")
        if row[name] is not None and not isinstance(row[name], (str, int, float)):
            raise ValueError(f"'{name}', of the template '{template}', is not a text: {row[name]!r:.60}")
        return "" if row[name] is None else str(row[name])

    return _FIELD.sub(cell, template)


def fill_templates(row: dict[str, Any], columns: ColumnsSection) -> dict[str, Any]:
    """The row with a cell for every template of `columns`, under the template's own text as its name."""
    templates = [name for name in vars(columns).values() if name and "{" in name]
    return row | {template: fill(template, row) for template in templates} if templates else row


def kept_columns(row: dict[str, Any], columns: ColumnsSection) -> dict[str, Any]:
    """What a layout passes on of a record: the columns that the user may name and it does not make itself."""
    row = fill_templates(row, columns)
    names = (columns.family, columns.split, columns.source, columns.answer, columns.tools)
    return {name: row[name] for name in names if name is not None and row.get(name) is not None}


def score_of(row: Mapping[str, Any], name: str, data: DataSection) -> Any:
    """The score in a column: a number, or with `data.labels` whatever class it names."""
    _check_there(row, name)
    return row[name] if data.labels else number_of(row, name)
