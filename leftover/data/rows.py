"""Located rows of any format -> checked rows of the table; faulty ones are refused or set aside, never lost."""

import hashlib
import itertools
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.config import DataSection
from leftover.data.formats import Located
from leftover.errors import UserError

# Messages and tools are kept as JSON text: a column has one type, and users mix strings and conversations.
ROWS_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("conversational", pa.bool_()),
        ("recorded_reward", pa.float64()),
        ("answer", pa.string()),
        ("tools", pa.string()),
        ("family", pa.string()),
        ("user_split", pa.string()),
        ("is_chosen", pa.bool_()),
        ("where", pa.string()),
    ]
)

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation", "dev": "validation"}
_FAULTS_SHOWN = 5


def text_hash(text: str) -> int:
    """64 bits: among ten million texts two share one with a probability of three in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Rejects:
    """Rows that are set aside, with the reason, in `rejected_rows.jsonl` of the run."""

    def __init__(self, path: Path):
        self.path = path

    def start(self, stage: str) -> None:
        """Forget what an earlier pass of this stage rejected."""
        if self.path.is_file():
            kept = [line for line in self._lines() if json.loads(line)["stage"] != stage]
            self.path.write_text("".join(kept), encoding="utf-8")

    def add(self, stage: str, where: str, reason: str, row: dict[str, Any]) -> None:
        record = {"stage": stage, "where": where, "reason": reason, "row": row}
        # Half of a surrogate pair has no UTF-8 form; its escape is what JSON writes for it anyway.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True)


REMEDY = (
    "Mend them, name your columns in data.columns, or set data.on_bad_row: skip to put faulty rows aside in "
    "rejected_rows.jsonl"
)


def check_rows(
    located: Iterable[Located], data: DataSection, rejects: Rejects, stats: dict[str, int], remedy: str = REMEDY
) -> Iterator[dict]:
    """Yield rows of `ROWS_SCHEMA`.

    With `data.on_bad_row: error` the first faults and their count are raised as one UserError once the whole
    input was read; with `skip` they go to `rejects`. `stats` counts rows read, rejected and duplicated.
    """
    stats |= {"read": 0, "rejected": 0, "duplicates": 0, "without_reward": 0, "other_parts": 0}
    faults: list[str] = []
    fingerprints = array("Q")  # 8 bytes a row, where a set of digests takes 80
    rejects.start("rows")
    for where, raw in itertools.islice(located, data.max_rows):
        stats["read"] += 1
        try:
            row = _check(raw, data)
        except ValueError as error:
            stats["rejected"] += 1
            if data.on_bad_row == "skip":
                rejects.add("rows", where, str(error), {k: v for k, v in raw.items() if k != "__fault__"})
            elif len(faults) < _FAULTS_SHOWN:
                faults.append(f"  {where}: {error}")
            continue
        if not _in_part(row["family"], data.part):
            stats["other_parts"] += 1
            continue
        fingerprints.append(text_hash(f"{row['prompt']}\0{row['completion']}\0{row['tools'] or ''}"))
        stats["without_reward"] += row["recorded_reward"] is None
        if not faults:
            yield row | {"where": where}
    stats["duplicates"] = len(fingerprints) - len(np.unique(np.frombuffer(fingerprints, np.uint64)))
    if faults:
        raise UserError(
            f"{stats['rejected']} of {stats['read']} rows are faulty; the first:\n" + "\n".join(faults) + f"\n{remedy}"
        )
    if stats["read"] == 0:
        raise UserError(f"{data.path} (key data.path) holds no row")
    if stats["read"] == stats["other_parts"]:
        raise UserError(f"none of the {stats['read']} rows of {data.path} is in data.part {list(data.part)}: widen it")
    if stats["read"] == stats["rejected"]:
        raise UserError(f"no usable row in {data.path} ({stats['read']} read, all rejected: see {rejects.path})")


def _check(raw: dict[str, Any], data: DataSection) -> dict[str, Any]:
    if "__fault__" in raw:
        raise ValueError(raw["__fault__"])
    columns = data.columns
    for column in (columns.prompt, columns.completion):
        if column not in raw:
            raise ValueError(f"no column '{column}' (found: {', '.join(sorted(raw)) or 'none'})")
    prompt = _text(raw[columns.prompt], columns.prompt)
    completion = _text(_only_turn(raw[columns.completion], columns.completion), columns.completion)
    family = raw.get(columns.family)
    return {
        "prompt": prompt,
        "completion": completion,
        "conversational": not isinstance(raw[columns.prompt], str),
        "recorded_reward": _score(raw.get(columns.reward), columns.reward),
        "answer": _optional_text(raw.get(columns.answer), columns.answer) if columns.answer else None,
        "tools": _tools(raw.get(columns.tools), columns.tools),
        "family": prompt if family is None else _unicode(str(family), columns.family),
        "user_split": _split(raw.get(columns.split), columns.split),
        "is_chosen": _flag(raw.get("is_chosen"), "is_chosen"),
    }


def _in_part(family: str, part: tuple[float, float]) -> bool:
    """Whether a family's hash lies in [low, high) of the unit interval; that of splits is another."""
    if part == (0.0, 1.0):
        return True
    place = text_hash(f"part\0{family}") / 2**64
    return part[0] <= place < part[1]


def _optional_text(value: Any, column: str) -> str | None:
    """A text or a number as text; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"'{column}' is neither a text nor a number: {value!r:.60}")
    return _unicode(str(value), column)


def _tools(value: Any, column: str) -> str | None:
    """Tools as JSON text; they may be given as such, or as a list."""
    if value is None or value == []:
        return None
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"'{column}' is not JSON: {error.msg}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"'{column}' is not a list of tools: {value!r:.60}")
    return _unicode(json.dumps(tools, ensure_ascii=False), column) if tools else None


def _text(value: Any, column: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"'{column}' is empty")
        return _unicode(value, column)
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        # A turn that only calls tools has no content; templates and rewards read one.
        value = [message | {"content": message.get("content") or ""} for message in value]
        if not value[-1]["content"].strip():
            raise ValueError(f"the last message of '{column}' is empty")
        return _unicode(json.dumps(value, ensure_ascii=False), column)
    if value is None:
        raise ValueError(f"'{column}' is missing")
    raise ValueError(f"'{column}' is neither a text nor a list of {{role, content}} messages: {value!r:.60}")


def _unicode(text: str, column: str) -> str:
    """The text, if it can be written as UTF-8: JSON can spell half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"'{column}' holds half of a surrogate pair at character {error.start}") from None
    return text


def _only_turn(completion: Any, column: str) -> Any:
    """The text of a completion given as one assistant message; anything else as it is."""
    if not isinstance(completion, list):
        return completion
    if len(completion) == 1 and _is_message(completion[0]) and completion[0]["role"] == "assistant":
        if lost := [name for name in _NOT_TEXT if completion[0].get(name)]:
            raise ValueError(
                f"'{column}' holds {' and '.join(lost)} beside its content; write them into the content, as the model "
                "would"
            )
        return completion[0]["content"]
    raise ValueError(f"'{column}' must be a text or one assistant message; put earlier turns into the prompt")


# Parts of an assistant's message that a template would write beside its content.
_NOT_TEXT = ("tool_calls", "reasoning_content", "reasoning", "thinking")


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str) or (value.get("content") is None and bool(value.get("tool_calls")))


def _score(value: Any, column: str) -> float | None:
    """A finite float; True and False count as 1 and 0; None is a row without a score."""
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"'{column}' is {type(value).__name__} {value!r:.40}, not a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        finite = False
    if not finite:
        raise ValueError(f"'{column}' is {value!r:.40}, not a finite number")
    return float(value)


def _flag(value: Any, column: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ValueError(f"'{column}' is {value!r:.40}; use true or false")


def _split(value: Any, column: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in _SPLIT_NAMES:
        raise ValueError(f"'{column}' is {value!r:.40}; use one of {', '.join(SPLITS)}")
    return _SPLIT_NAMES[value]


def as_prompt(text: str, conversational: bool) -> Any:
    """The user's own form of a prompt or completion column: a string, or the list of messages."""
    return json.loads(text) if conversational else text
