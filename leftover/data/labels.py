"""The column `label` of data for KTO, true for a desirable completion and false for another, read as the reward."""

from collections.abc import Iterable

from leftover.data.records import FAULT, Row
from leftover.recipe.data_section import LAYOUTS, ColumnsSection, DataSection

LABEL = "label"
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_OF_OTHER_ROWS = ("chosen", "completions")  # a pair, a group: their scores stand elsewhere


def truth(value: object) -> bool | None:
    """True or false, also as 1 and 0, and as the texts that a CSV file has; None for anything else."""
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def label_is_reward(rows: Iterable[Row], data: DataSection) -> bool:
    """Whether the column `label` of these records is the reward: all are true or false, and none has a `reward`.

    Not if the recipe says what the columns are: another column of rewards, or another use of `label`. Reads until a
    record tells that it is not; the first one where there is no such column.
    """
    columns, found = data.columns, False
    named = columns.reward != ColumnsSection().reward or LABEL in vars(columns).values() or bool(data.labels)
    if named or data.format in LAYOUTS:
        return False
    for row in (row for row in rows if FAULT not in row):
        if not found and LABEL not in row:
            return False
        if columns.reward in row or any(name in row for name in _OF_OTHER_ROWS):
            return False
        value = row.get(LABEL)
        if value is not None and truth(value) is None:
            return False
        found = True
    return found


def with_label(row: Row, data: DataSection) -> Row:
    """A row with its label as the reward."""
    return row | {data.columns.reward: truth(row.get(LABEL)), AS_REWARD: truth(row.get(LABEL))}


AS_REWARD = "__label__"  # the key of a label that is the row's reward
