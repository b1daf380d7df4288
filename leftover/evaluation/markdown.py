"""Texts and tables as Markdown, for report and model card."""

import re
from collections.abc import Iterable

# An underscore inside a word, or a bracket that closes no link, is no markup.
_MARKUP = re.compile(r"([\\`*<>|#]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")


class Markdown(str):
    """Text that is Markdown already, which `escape` leaves as it is."""


def escape(text: object) -> str:
    """A text on one line, its markup escaped."""
    if isinstance(text, Markdown):
        return text
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table of escaped cells."""
    cells = [[escape(cell) for cell in row] for row in (header, *rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
