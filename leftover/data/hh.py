"""Helpful and Harmless: PRO's form with reward logits (arXiv 2306.17492), and Anthropic's transcripts (2204.05862)."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from leftover.data.files import Source
from leftover.data.generic import expand_pair
from leftover.data.records import Located, Record, Row, layout_row
from leftover.errors import UserError, one_line
from leftover.recipe.data_section import ColumnsSection, DataSection

_TAGS = {"<|prompter|>": "user", "<|assistant|>": "assistant"}
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(rf"\n\n({'|'.join(_SPEAKERS)}):")


def expand_hh(record: Record, data: DataSection) -> Iterator[Located]:
    """The two rows of a comparison. Its family is the human's first turn, which is the same in both forms."""
    row = record.row
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        return expand_pair(record.where, _transcripts(row, data.columns), data.columns)
    try:
        return iter(_pro(record, data.columns))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            "not a Helpful-and-Harmless row, neither of PRO's form (prefix, suffix, reward) nor of Anthropic's "
            f"(chosen, rejected): {error!r}"
        ) from None


def _pro(record: Record, columns: ColumnsSection) -> list[Located]:
    """Prefix turns, suffixes and their reward logits; the suffix that people chose comes first."""
    row, rows = record.row, []
    meta = row.get("meta")
    # `harmless-base` of meta.path `.../harmless-base/dev.jsonl`
    subset = Path(meta["path"]).parent.name or None if isinstance(meta, dict) and "path" in meta else None
    for i, (turns, suffix) in enumerate(zip(row["prefix"], row["suffix"], strict=True)):
        messages = [_tagged(turn) for turn in turns[:-1]]  # the last turn is the bare assistant tag
        made = {columns.prompt: messages, columns.completion: suffix, columns.reward: row["reward"][i]}
        made = layout_row(row, columns, made, family=messages[0]["content"], source=subset)
        rows.append((f"{record.where} completion {i}", made | {"is_chosen": i == 0}))
    return rows


def _tagged(turn: str) -> dict[str, str]:
    for tag, role in _TAGS.items():
        if turn.startswith(tag):
            return {"role": role, "content": turn.removeprefix(tag)}
    raise ValueError(f"a turn starts with neither {' nor '.join(_TAGS)}")


def _transcripts(row: Row, columns: ColumnsSection) -> Row:
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
    made = {name: value for name, value in row.items() if name.startswith(("chosen_", "rejected_"))}
    made |= {columns.prompt: chosen[:-1], "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    return layout_row(row, columns, made, family=chosen[0]["content"])


def parse_transcript(text: str) -> list[dict[str, str]]:
    r"""Messages of "\n\nHuman: ...\n\nAssistant: ..."; ValueError if the text starts otherwise."""
    before, *parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise ValueError(f"a transcript starts with neither {' nor '.join(f'{name}:' for name in _SPEAKERS)}")
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def listed_rows(sources: list[Source], listing: str) -> dict[str, set[int]]:
    """The row numbers (from 0) of every source, by its path, that the authors' list drops."""
    try:
        dropped = TypeAdapter(dict[str, set[int]]).validate_json(Path(listing).read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"'{listing}' (key data.drop_listed) cannot be read as JSON: {one_line(error)}") from error
    found = {s.path: dropped.get(f"{s.name.rpartition('/')[2].removeprefix('test_')}.json") for s in sources}
    if all(numbers is None for numbers in found.values()):
        raise UserError(
            f"'{listing}' (key data.drop_listed) names none of the files that are read, but {', '.join(dropped)}: "
            "name a file as there, with or without 'test_' before it"
        )
    return {path: numbers or set() for path, numbers in found.items()}
