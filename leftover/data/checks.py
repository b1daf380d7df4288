"""What a row of the table may hold: each cell checked, with a fault that names its column."""

import json
import math
from typing import Any

from leftover.data.records import FAULT
from leftover.recipe.sections import DataSection

SPLITS = ("train", "validation", "test")
# The names in use: `val` and `dev`, and those of three letters that the ATOMIC files have.
_SPLIT_NAMES = {name: name for name in SPLITS} | {
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "trn": "train",
    "tst": "test",
}


def check_row(raw: dict[str, Any], data: DataSection) -> dict[str, Any]:
    """The row of the table, but for its place. Raises ValueError that says what is wrong with it."""
    if FAULT in raw:
        raise ValueError(raw[FAULT])
    columns = data.columns
    for column in (columns.prompt, columns.completion):
        if column not in raw:
            raise ValueError(
                f"no column '{column}' (found: {', '.join(sorted(raw)) or 'none'}); name yours in data.columns, or in "
                "data.table.names those of a table without a header line"
            )
    prompt = _text(raw[columns.prompt], columns.prompt)
    completion = _text(_only_turn(raw[columns.completion], columns.completion), columns.completion)
    family, source = raw.get(columns.family), raw.get(columns.source)
    return {
        "prompt": prompt,
        "completion": completion,
        "conversational": not isinstance(raw[columns.prompt], str),
        "recorded_reward": _score(raw.get(columns.reward), columns.reward, data.labels),
        "answer": _optional_text(raw.get(columns.answer), columns.answer) if columns.answer else None,
        "tools": _tools(raw.get(columns.tools), columns.tools),
        "family": prompt if family is None else _unicode(str(family), columns.family),
        "user_split": _split(raw, data),
        "is_chosen": _flag(raw.get("is_chosen"), "is_chosen"),
        "source": None if source is None else _unicode(str(source), columns.source),
    }


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


def _quote(labels: dict[str, float]) -> str:
    return " (YAML reads yes, no, on and off as these: quote them)" if labels.keys() & {"True", "False"} else ""


_LABELS = "; say in data.labels what classes are worth, as {good: 1, bad: 0}"


def _score(value: Any, column: str, labels: dict[str, float]) -> float | None:
    """A finite float, or with `labels` what a class is worth; True and False count as 1 and 0; None is no score."""
    if value is None:
        return None
    if labels:
        if isinstance(value, float) and str(value) not in labels and value in labels.values():
            return value  # of a row that was written with its score, as by `leftover generate`
        if str(value) not in labels:
            raise ValueError(
                f"'{column}' is {value!r:.40}, not one of data.labels: {', '.join(labels)}{_quote(labels)}"
            )
        value = labels[str(value)]
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"'{column}' is {type(value).__name__} {value!r:.40}, not a number{_LABELS}")
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


def _split(raw: dict[str, Any], data: DataSection) -> str | None:
    """The split that the row's source is, or else the one that its column names."""
    column = data.columns.split
    if data.source_splits:
        source = raw.get(data.columns.source)
        if source not in data.source_splits:
            raise ValueError(f"the source {source!r} is not one of data.source_splits: {', '.join(data.source_splits)}")
        return data.source_splits[source]
    value = None if column is None else raw.get(column)
    if value is None:
        return None
    names = _SPLIT_NAMES | data.split_names
    if str(value) not in names:
        raise ValueError(
            f"'{column}' is {value!r:.40}; use one of {', '.join(SPLITS)}, or say in data.split_names what it means"
        )
    return names[str(value)]
