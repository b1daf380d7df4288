"""What stands in the columns of a file: every cell is looked at once, and counted."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from leftover.data.missing import are_turns, paths_of
from leftover.data.records import FAULT, Row, parse_number

_MOST_VALUES = 32  # that are counted; a column of more holds no classes
_COUNTS = 10  # cells at least of a column that numbers the rows
_LETTERS = 100_000  # whose script is looked up

# Kinds of cells.
NUMBER, TRUTH, TEXT, NUMBERS, TEXTS, LIST = "number", "truth", "text", "numbers", "texts", "list"
ASKED, ANSWERED = "conversation", "conversation with its answer"
PARTS = "list of records"


@dataclass
class Column:
    """The cells of one column that are not empty."""

    name: str
    cells: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sample: str = ""  # the first text
    characters: int = 0  # of texts
    beginning_blank: int = 0  # texts, or lists whose first text, that begin with white space
    ending_blank: int = 0
    low: float = float("inf")  # of numbers
    high: float = float("-inf")
    running: bool = True  # every number is one more than the last, as of ids
    last: float | None = None
    values: Counter[str] | None = field(default_factory=Counter)  # None: more than _MOST_VALUES
    scripts: Counter[str] = field(default_factory=Counter)  # of letters: LATIN, CJK, ...

    @property
    def kind(self) -> str:
        """The kind of most cells; a column of numbers may spell some as truth values."""
        if not self.kinds:
            return ""
        return NUMBER if set(self.kinds) == {NUMBER, TRUTH} else self.kinds.most_common(1)[0][0]

    @property
    def mean_length(self) -> float:
        """Characters of a text."""
        return self.characters / max(1, self.kinds[TEXT])

    @property
    def differs(self) -> bool:
        """Whether two cells differ."""
        return self.values is None or len(self.values) > 1

    @property
    def counts(self) -> bool:
        """Whether it numbers the rows, more than a few of them, one by one."""
        return self.kind == NUMBER and self.running and self.cells >= _COUNTS

    def add(self, value: Any) -> None:
        if value is None or value == "" or value != value:  # NaN, as data frames write an empty cell
            return
        self.cells += 1
        kind, plain = kind_of(value)
        self.kinds[kind] += 1
        if kind in (NUMBER, TRUTH):
            self.low, self.high = min(self.low, float(plain)), max(self.high, float(plain))
            self.running = self.running and self.last in (None, float(plain) - 1)
            self.last = float(plain)
        elif kind == TEXT:
            self.sample = self.sample or value
            self.characters += len(value)
            self.beginning_blank += value[0].isspace()
            self.ending_blank += value[-1].isspace()
            if self.scripts.total() < _LETTERS:
                self.scripts.update(scripts_of(value))
        elif kind == TEXTS and isinstance(value[0], str):
            self.beginning_blank += value[0][:1].isspace()
        if self.values is not None and kind in (NUMBER, TRUTH, TEXT):
            self.values[str(value)] += 1
            if len(self.values) > _MOST_VALUES:
                self.values = None


def kind_of(value: Any) -> tuple[str, Any]:
    """The kind of a cell, and the number or truth value that it spells, also as text."""
    if isinstance(value, bool):
        return TRUTH, value
    if isinstance(value, (int, float)):
        return NUMBER, value
    if isinstance(value, str):
        plain = parse_number(value)
        if isinstance(plain, str) or not math.isfinite(plain):
            return TEXT, value
        return (TRUTH if isinstance(plain, bool) else NUMBER), plain
    if are_turns(value):
        return (ANSWERED if value[-1].get("role") == "assistant" and len(value) > 1 else ASKED), value
    if isinstance(value, list) and value:
        inside = {kind_of(part)[0] for part in value}
        if inside <= {NUMBER, TRUTH}:
            return NUMBERS, value
        if inside <= {TEXT, NUMBER, ASKED}:
            return TEXTS, value
        if all(isinstance(part, Mapping) for part in value):
            return PARTS, value
    return LIST, value


def scripts_of(text: str, most: int = 200) -> Counter[str]:
    """How many of the first letters of a text are of which script, by the names that Unicode gives them."""
    found = Counter[str]()
    for letter in text[:most]:
        if letter.isalpha():
            found[unicodedata.name(letter, "?").partition(" ")[0]] += 1
    return found


def count_columns(records: Iterable[Row]) -> tuple[dict[str, Column], int]:
    """Every column by its name, records in a column by dotted names, and how many records were read.

    Records that are none (malformed lines) are left to the reader of rows.
    """
    found, number = dict[str, Column](), 0
    for record in records:
        number += 1
        if FAULT in record:
            continue
        for name, value in paths_of(record):
            if name.startswith("__") or isinstance(value, Mapping):
                continue
            if name not in found:
                found[name] = Column(name)
            found[name].add(value)
    return found, number
