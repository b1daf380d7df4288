"""Helpful and Harmless: PRO's form with reward logits (arXiv 2306.17492), and Anthropic's transcripts (2204.05862)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leftover.data.files import Source
from leftover.data.generic import expand_pair
from leftover.data.records import Located, Record, kept_columns
from leftover.errors import UserError
from leftover.recipe.sections import ColumnsSection, DataSection

_TAGS = {"<|prompter|>": "user", "<|assistant|>": "assistant"}
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(rf"\n\n({'|'.join(_SPEAKERS)}):")

Messages = list[dict[str, str]]


def expand_hh(record: Record, data: DataSection) -> Iterator[Located]:
    """The two rows of a comparison. Its family is the human's first turn, which is the same in both forms.

    Raises ValueError for a record of neither form.
    """
    row = record.row
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        pair = _transcripts(row, data.columns)
        return expand_pair(record.where, pair, data.columns)
    try:
        return iter(_pro(record, data.columns))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            "not a Helpful-and-Harmless row, neither of PRO's form (prefix, suffix, reward) nor of Anthropic's "
            f"(chosen, rejected): {error!r}"
        ) from None


def _pro(record: Record, columns: ColumnsSection) -> list[Located]:
    """Prefix turns, suffixes and their reward logits; the suffix that people chose stands first."""
    row, rows = record.row, []
    for i, (turns, suffix) in enumerate(zip(row["prefix"], row["suffix"], strict=True)):
        messages = [_tagged(turn) for turn in turns[:-1]]  # the last turn is the bare assistant tag
        made = {
            columns.prompt: messages,
            columns.completion: suffix,
            columns.reward: row["reward"][i],
            "is_chosen": i == 0,
        }
        defaults = {columns.family: messages[0]["content"], columns.source: _subset(row)}
        rows.append((f"{record.where} completion {i}", defaults | kept_columns(row, columns) | made))
    return rows


def _tagged(turn: str) -> dict[str, str]:
    for tag, role in _TAGS.items():
        if turn.startswith(tag):
            return {"role": role, "content": turn.removeprefix(tag)}
    raise ValueError(f"a turn starts with neither {' nor '.join(_TAGS)}")


def _subset(row: dict[str, Any]) -> str | None:
    """`harmless-base` of meta.path `.../harmless-base/dev.jsonl`."""
    meta = row.get("meta")
    return Path(meta["path"]).parent.name or None if isinstance(meta, dict) and "path" in meta else None


def _transcripts(row: dict[str, Any], columns: ColumnsSection) -> dict[str, Any]:
    """Two transcripts with all turns but the last in common, as a pair of completions."""
    chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
    for turns, name in ((chosen, "chosen"), (rejected, "rejected")):
        if turns[-1]["role"] != "assistant":
            raise ValueError(f"the transcript '{name}' does not end in a turn of the Assistant")
        if len(turns) < 2:
            raise ValueError(f"the transcript '{name}' has no turn before the Assistant's")
    if chosen[:-1] != rejected[:-1]:
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(rejected))
        raise ValueError(
            f"the two transcripts differ before their last turn, from turn {same + 1} on "
            f"(of {len(chosen)} and {len(rejected)}): they are no pair of completions"
        )
    scores = {name: value for name, value in row.items() if name.startswith(("chosen_", "rejected_"))}
    return (
        {columns.family: chosen[0]["content"]}
        | kept_columns(row, columns)
        | scores
        | {columns.prompt: chosen[:-1], "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    )


def parse_transcript(text: str) -> Messages:
    r"""Messages of "\n\nHuman: ...\n\nAssistant: ...". Raises ValueError where the text starts otherwise."""
    before, *parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise ValueError(f"a transcript starts with neither {' nor '.join(f'{name}:' for name in _SPEAKERS)}")
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def listed_rows(sources: list[Source], listing: str) -> dict[str, set[int]]:
    """The row numbers (from 0) of every source, by its path, that the authors' list drops.

    Raises UserError where the list is none, or names none of the files.
    """
    try:
        by_file = json.loads(Path(listing).read_text(encoding="utf-8"))
        dropped = {name: {int(number) for number in numbers} for name, numbers in by_file.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{listing}' (key data.drop_listed) cannot be read as JSON: {error}") from error
    found = {s.path: dropped.get(f"{s.name.rpartition('/')[2].removeprefix('test_')}.json") for s in sources}
    if all(numbers is None for numbers in found.values()):
        raise UserError(
            f"'{listing}' (key data.drop_listed) names none of the files that are read, but {', '.join(dropped)}: "
            "name a file as there, with or without 'test_' before it"
        )
    return {path: numbers or set() for path, numbers in found.items()}
