"""Commonsense triples: ATOMIC-2020 (arXiv 2010.05953), ATOMIC-10x (2110.07178), CSKB-Population (2109.07679)."""

from typing import Any

from leftover.data.records import LEFT_OUT, Record, Row, cell, fill, layout_row, number_of, text_of
from leftover.recipe.data_section import DataSection

# ATOMIC-2020's files have no header line.
HEADER = ("head", "relation", "tail")
# Where the published forms keep a score: ATOMIC-10x its critic's, CSKB-Population people's, the critic's own data.
_SCORES = ("p_valid_model", "label", "valid")


def comet_row(record: Record, data: DataSection) -> Row:
    """One triple as one row: head and relation are the prompt, the tail the completion, the head the family."""
    settings, columns = data.comet, data.columns
    triple = {name: text_of(record.row, name) for name in HEADER}
    empty = [name for name in HEADER if not triple[name]]
    if empty and empty != ["tail"]:
        raise ValueError(f"'{empty[0]}' is empty")
    if settings.relations is not None and triple["relation"] not in settings.relations:
        return {LEFT_OUT: "of other relations than data.comet.relations"}
    if empty and settings.empty_tails == "drop":
        return {LEFT_OUT: "with an empty tail"}
    if empty:
        raise ValueError("'tail' is empty")
    if triple["tail"].lower() == "none" and settings.none_tails == "drop":
        return {LEFT_OUT: "with the tail 'none'"}
    row = record.row | triple
    made = {
        columns.prompt: fill(settings.prompt, row),
        columns.completion: fill(settings.completion, row),
        columns.reward: _score(record.row, data),
    }
    return layout_row(record.row, columns, made, family=triple["head"])


def _score(row: Row, data: DataSection) -> Any:
    """A number, or with `data.labels` the name of a class."""
    name = data.comet.score or next((name for name in (data.columns.reward, *_SCORES) if name in row), None)
    if name is None:
        return None
    return cell(row, name) if data.labels else number_of(row, name)
