"""What readers and layouts share: records with their place, and how a layout takes texts and numbers from them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from leftover.data.missing import no_column
from leftover.recipe.data_section import ColumnsSection, Constant

Row = dict[str, Any]
Located = tuple[str, Row]

# Keys of what is not a row: why it is faulty, or which declared rule drops it.
FAULT, LEFT_OUT = "__fault__", "__left_out__"

# Columns of rows that `leftover generate` wrote: always, and where the recipe's columns are templates, which they were.
GENERATED, FILLED = "sampler_logprobs", "filled_templates"

_NOTHING = object()  # no such column: a cell may be None
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Record(NamedTuple):
    """One record as its file holds it; a layout makes rows of it."""

    where: str
    row: Row
    source: str  # the name of its file or subset
    number: int  # its place there, from 0
    labelled: bool = False  # its column `label` is the reward


def cell(row: Mapping[str, Any], name: str, purpose: str = "") -> Any:
    """The value in a column. Raises ValueError, with what the column is for, if the record lacks it."""
    if (value := _reached(row, name)) is _NOTHING:
        raise ValueError(no_column([name], row, purpose))
    return value


def _reached(row: Mapping[str, Any], name: str) -> Any:
    """The value in a column, or inside nested records and lists ("meta.title", "choices.0.text")."""
    if name in row or "." not in name:
        return row.get(name, _NOTHING)
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _NOTHING
    return value


def text_of(row: Mapping[str, Any], name: str, purpose: str = "") -> str:
    """The text in a column, without outer white space; empty if the cell is. Raises ValueError."""
    value = cell(row, name, purpose)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"'{name}' is not a text: {value!r:.60}")
    return (value or "").strip()


def number_of(row: Mapping[str, Any], name: str) -> float | None:
    """The number in a column, also where the file spells it as text; None where the cell is empty."""
    value = cell(row, name)
    value = parse_number(value) if isinstance(value, str) else value
    if value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"'{name}' is {value!r:.40}, not a number")
    return value


def parse_number(text: str) -> str | float | bool:
    """A cell of a text table as the number or truth value that it spells; any other text as it is."""
    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def fill(template: str, row: Mapping[str, Any]) -> str:
    """The template with {column} replaced by its cell; {{ and }} are braces. Raises ValueError for an unknown one."""

    def filled(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = cell(row, match[1], f" for the template '{template}'")
        if value is not None and not isinstance(value, (str, int, float)):
            raise ValueError(f"'{match[1]}', of the template '{template}', is not a text: {value!r:.60}")
        return "" if value is None else str(value)

    return _FIELD.sub(filled, template)


def unfilled(template: str, text: str) -> str:
    """The one cell that the template made the text of; the text as it is where it is no template, or has more."""
    fields = [match for match in _FIELD.finditer(template) if match[1] is not None]
    if len(fields) != 1:
        return text
    before, after = template[: fields[0].start()], template[fields[0].end() :]
    return text.removeprefix(fill(before, {})).removesuffix(fill(after, {}))


def fill_templates(row: Row, columns: ColumnsSection) -> Row:
    """The row with a cell for every template, path and constant of `columns`, under its own text as its name.

    A row that `leftover generate` wrote has what a template made under the plain name, and under `FILLED` that it did.
    """
    made: Row = {}
    filled = row.get(FILLED)
    for key, name in vars(columns).items():
        if isinstance(name, Constant):
            made[name] = name.text
        elif name and "{" in name:
            made[name] = row.get(key) if isinstance(filled, dict) and filled.get(key) == name else fill(name, row)
        elif name and "." in name and (value := _reached(row, name)) is not _NOTHING:
            made[name] = value
    return row | made if made else row


def layout_row(row: Mapping[str, Any], columns: ColumnsSection, made: Row, **defaults: str | None) -> Row:
    """The row that a layout makes of a record: `made`, and the columns that the user may name and no layout makes.

    `defaults` (family, source) hold if the record has no such column.
    """
    found = {getattr(columns, name): value for name, value in defaults.items() if value is not None}
    row = fill_templates(dict(row), columns)
    names = (columns.family, columns.split, columns.source, columns.answer, columns.tools)
    return found | {name: row[name] for name in names if name is not None and row.get(name) is not None} | made
