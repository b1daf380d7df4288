"""Commonsense triples: ATOMIC-2020 (arXiv 2010.05953), ATOMIC-10x (2110.07178), CSKB-Population (2109.07679)."""

from collections.abc import Iterator
from typing import Any

from leftover.data.records import LEFT_OUT, Located, Record, fill, kept_columns, score_of, text_of
from leftover.recipe.sections import DataSection

# ATOMIC-2020's files have no header line.
HEADER = ("head", "relation", "tail")
# Where the published forms keep a score: ATOMIC-10x its critic's, CSKB-Population people's, the critic's own data.
_SCORES = ("p_valid_model", "label", "valid")


def expand_comet(record: Record, data: DataSection) -> Iterator[Located]:
    """One triple as one row: head and relation are the prompt, the tail the completion, the head the family.

    Raises ValueError for an empty head or relation, and for an empty tail where that is a fault.
    """
    settings, columns = data.comet, data.columns
    row = record.row | {name: text_of(record.row, name) for name in HEADER}
    for name in HEADER[:2]:
        if not row[name]:
            raise ValueError(f"'{name}' is empty")
    if settings.relations is not None and row["relation"] not in settings.relations:
        yield record.where, {LEFT_OUT: "of other relations than data.comet.relations"}
        return
    if not row["tail"] and settings.empty_tails == "drop":
        yield record.where, {LEFT_OUT: "with an empty tail"}
        return
    if not row["tail"]:
        raise ValueError("'tail' is empty")
    if row["tail"].lower() == "none" and settings.none_tails == "drop":
        yield record.where, {LEFT_OUT: "with the tail 'none'"}
        return
    yield (
        record.where,
        {columns.family: row["head"]}
        | kept_columns(record.row, columns)
        | {
            columns.prompt: fill(settings.prompt, row),
            columns.completion: fill(settings.completion, row),
            columns.reward: _score(record.row, data),
        },
    )


def _score(row: dict[str, Any], data: DataSection) -> Any:
    if data.comet.score is not None:
        return score_of(row, data.comet.score, data)
    name = next((name for name in (data.columns.reward, *_SCORES) if name in row), None)
    return None if name is None else score_of(row, name, data)
