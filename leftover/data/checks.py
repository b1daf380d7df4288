"""What a row of the table may hold: each cell checked, with a fault that names its column."""

import json
import math
import re
from types import NoneType
from typing import Any, TypeGuard

from leftover.data.labels import AS_REWARD
from leftover.data.missing import no_column
from leftover.data.records import FAULT, GENERATED, Row, parse_number
from leftover.recipe.data_section import Constant, DataSection

SPLITS = ("train", "validation", "test")
LARGEST_REWARD = 1e15  # in size: objectives square rewards, in float32, which ends at 3e38
# ATOMIC's files have names of three letters.
SPLIT_NAMES = dict(zip(SPLITS, SPLITS, strict=True)) | {"trn": "train", "tst": "test"}
SPLIT_NAMES |= dict.fromkeys(("valid", "val", "dev"), "validation")
_NAME = re.compile(r"[\w.-]+")  # what most columns are called
# Parts of an assistant's message that a template would write in addition to its content.
_NOT_TEXT = ("tool_calls", "reasoning_content", "reasoning", "thinking")


def check_row(raw: Row, data: DataSection) -> Row:
    """The row of the table, without its place. Raises ValueError that names the column at fault."""
    if FAULT in raw:
        raise ValueError(raw[FAULT])
    columns = data.columns
    names = {key: getattr(columns, key) for key in ("prompt", "completion")}
    if missing := {key: name for key, name in names.items() if name not in raw}:
        remedy = f"; name yours in {' and '.join(f'{data.names.columns}.{key}' for key in missing)}"
        if not _NAME.fullmatch(missing.get("prompt", "name")):
            remedy += f" (one prompt for all rows: {data.names.columns}.prompt: {{text: {missing['prompt']!r}}})"
        raise ValueError(no_column([*missing.values()], raw, remedy=remedy))
    prompt, completion = (raw[name] for name in names.values())
    if data.prompts == "chat" and isinstance(prompt, str) and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    text = _text(prompt, columns.prompt)
    family, source, is_chosen = raw.get(columns.family), raw.get(columns.source), raw.get("is_chosen")
    if not isinstance(is_chosen, (bool, NoneType)):
        raise ValueError(f"'is_chosen' is {is_chosen!r:.40}; use true or false")
    row = {
        "prompt": text,
        "completion": _text(_only_turn(completion, columns.completion), columns.completion),
        "conversational": not isinstance(prompt, str),
        "recorded_reward": _score(raw.get(columns.reward), columns.reward, data, GENERATED in raw),
        "answer": _answer(raw.get(columns.answer), columns.answer) if columns.answer else None,
        "tools": _tools(raw.get(columns.tools), columns.tools),
        "family": _family(raw, data, text) if family is None else str(family),
        "user_split": _split(raw, data),
        "is_chosen": is_chosen,
        "source": None if source is None else str(source),
        "label": raw.get(AS_REWARD),
        # Of a row that `leftover generate` wrote: a completion without an end gets none.
        "ended": False if raw.get("ended") is False and GENERATED in raw else None,
    }
    for name, value in row.items():
        try:
            str(value).encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            fault = f"'{getattr(columns, name, name)}' holds half of a surrogate pair at character {error.start}"
            raise ValueError(fault) from None
    return row


def _family(raw: Row, data: DataSection, prompt: str) -> str:
    """Rows of one prompt are one family; where all have the same by the recipe, those of one completion."""
    constant = isinstance(data.columns.prompt, Constant)
    return str(raw[data.columns.completion]) if constant else prompt


def _text(value: Any, column: str) -> str:
    """A text as it is, a conversation as JSON."""
    if value is None:
        raise ValueError(f"'{column}' is missing")
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        # A turn that only calls tools has no content; templates and rewards read one.
        value = [message | {"content": message.get("content") or ""} for message in value]
        if not value[-1]["content"].strip():
            raise ValueError(f"the last message of '{column}' is empty")
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise ValueError(f"'{column}' is neither a text nor a list of {{role, content}} messages: {value!r:.60}")
    if not value.strip():
        raise ValueError(f"'{column}' is empty")
    return value


def _is_message(value: object) -> TypeGuard[dict[str, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str) or (value.get("content") is None and bool(value.get("tool_calls")))


def _only_turn(completion: object, column: str) -> object:
    """The text of a completion given as one assistant message; anything else as it is."""
    if not isinstance(completion, list):
        return completion
    if len(completion) != 1 or not _is_message(completion[0]) or completion[0]["role"] != "assistant":
        raise ValueError(f"'{column}' must be a text or one assistant message; put earlier turns into the prompt")
    if lost := [name for name in _NOT_TEXT if completion[0].get(name)]:
        raise ValueError(f"'{column}' has {' and '.join(lost)} besides its content; write them into the content")
    return completion[0]["content"]


def _answer(value: object, column: str) -> str | None:
    """A text or a number as text; None if the cell is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"'{column}' is neither a text nor a number: {value!r:.60}")
    return str(value)


def _tools(value: object, column: str) -> str | None:
    """Tools as JSON text; they may be given as such, or as a list."""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"'{column}' is not JSON: {error.msg}") from None
    if value is not None and (not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"'{column}' is not a list of tools: {value!r:.60}")
    return json.dumps(tools, ensure_ascii=False) if tools else None


def _score(value: object, column: str, data: DataSection, generated: bool) -> float | None:
    """A finite float, or with `labels` what a class is worth; True and False count as 1 and 0; None is no score.

    `generated`: of a row that `leftover generate` wrote, whose number is a score and no class.
    """
    if value is None or (isinstance(value, str) and not value.strip()):  # an empty cell, as a CSV reader gives it
        return None
    labels, key = data.labels, data.names.labels
    # A float among the values of `labels` comes from a row written with its score.
    written = isinstance(value, float) and (generated or (str(value) not in labels and value in labels.values()))
    if labels and not written:
        if str(value) not in labels:
            quote = " (YAML reads yes, no, on and off as these: quote them)" if {"True", "False"} & set(labels) else ""
            raise ValueError(f"'{column}' is {value!r:.40}, not one of {key}: {', '.join(labels)}{quote}")
        value = labels[str(value)]
    elif isinstance(value, str):
        value = parse_number(value)  # as in a CSV file
    if not isinstance(value, (bool, int, float)):
        kind = "text" if isinstance(value, str) else type(value).__name__
        remedy = f"give classes numbers in {key}, as {{good: 1, bad: 0}}"
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+,\d+", value.strip()):
            remedy = "write it with a decimal point"
        raise ValueError(f"'{column}' is the {kind} {value!r:.40}, not a number; {remedy}")
    try:
        score = float(value)
    except OverflowError:  # an integer beyond the floats
        score = math.inf
    if not math.isfinite(score):
        raise ValueError(f"'{column}' is {value!r:.40}, not a finite number")
    if abs(score) > LARGEST_REWARD:
        raise ValueError(
            f"'{column}' is {value!r:.40}, beyond {LARGEST_REWARD:g}, too large to compute with: rescale it"
        )
    return score


def _split(raw: Row, data: DataSection) -> str | None:
    """The split of the row's source, or else the one that its column names."""
    if data.source_splits:
        source = raw.get(data.columns.source)
        if source not in data.source_splits:
            raise ValueError(f"the source {source!r} is not one of data.source_splits: {', '.join(data.source_splits)}")
        return data.source_splits[source]
    column, names = data.columns.split, SPLIT_NAMES | data.split_names
    if column is None or (value := raw.get(column)) is None:
        return None
    if str(value) not in names:
        known = ", ".join(SPLITS)
        raise ValueError(f"'{column}' is {value!r:.40}; use one of {known}, or map it in data.split_names")
    return names[str(value)]
