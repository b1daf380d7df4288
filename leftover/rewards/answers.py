"""Completions compared with the answers that rows hold (`data.columns.answer`), looked up by prompt."""

import json
import logging
import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import feather
from pydantic import Field
from pydantic.dataclasses import dataclass

from leftover.data.rows import as_prompt, text_hash
from leftover.errors import UserError
from leftover.rewards.base import STRICT, Prompt, TextReward, compile_pattern, not_fitted
from leftover.rewards.numbers import find_numbers

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_FILE = "answers.arrow"
_BATCH_ROWS = 2048
_SHOWN = 3

_OPENING = "\"'`*_“‘„«([{"
_CLOSING = "\"'`*_”’“»)]}.,;:!?…。，、；：！？"

Answer = TypeVar("Answer", str, float)


@dataclass(config=STRICT)
class RowAnswerReward(TextReward, ABC, Generic[Answer]):
    """1.0 where a completion gives the answer of the prompt's row, 0.0 where it does not, None without an answer.

    `fit` writes the answers of all splits by a hash of the prompt: it is a lookup and learns nothing. Where rows of
    one prompt have different answers, each of them counts as right, and the log says so.

    A subclass defines what an answer is: `given`, `expected`, `same`.
    """

    reads_rows = True
    pattern: str | None = None

    def __post_init__(self) -> None:
        self.expression = None if self.pattern is None else compile_pattern("pattern", self.pattern, groups=1)
        self._keys: np.ndarray | None = None  # sorted
        self._answers: pa.ChunkedArray | None = None  # of the keys

    @abstractmethod
    def given(self, completion: str) -> Answer | None:
        """The answer that a completion gives; None if it gives none."""

    @abstractmethod
    def expected(self, text: str) -> Answer | None:
        """The answer that a row's text holds; None if it cannot be read."""

    def same(self, one: Answer, other: Answer) -> bool:
        return one == other

    def marked(self, text: str) -> str | None:
        """The pattern's group where it matched last; None where it does not match, or there is no pattern."""
        found = [match[1] for match in self.expression.finditer(text)] if self.expression else []
        return found[-1] if found else None

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        if self._keys is None or self._answers is None:
            raise not_fitted(f"text reward '{self.function}'")
        keys = np.array([prompt_key(prompt) for prompt in prompts], np.uint64)
        first, last = np.searchsorted(self._keys, keys), np.searchsorted(self._keys, keys, side="right")
        scores: list[float | None] = []
        for completion, start, stop in zip(completions, first.tolist(), last.tolist(), strict=True):
            given, right = self.given(completion), self._answers[start:stop].to_pylist()
            found = given is not None and any(self.same(given, answer) for answer in right)
            scores.append(float(found) if right else None)
        return scores

    def fit(self, folder: Path, rows: "Dataset") -> dict[str, Any]:
        answers: defaultdict[int, list[Answer]] = defaultdict(list)
        unreadable: list[str] = []
        conflicts: dict[int, str] = {}
        without = 0
        columns = rows.select_columns(["prompt", "conversational", "answer", "where"])
        for part in columns.iter(batch_size=_BATCH_ROWS):
            for prompt, conversational, text, where in zip(*part.values(), strict=True):
                if text is None or not text.strip():
                    without += 1
                elif (answer := self.expected(text)) is None:
                    unreadable.append(f"  {where}: {text!r:.60}")
                else:
                    key = prompt_key(as_prompt(prompt, conversational))
                    if not any(self.same(other, answer) for other in answers[key]):
                        answers[key].append(answer)
                    if len(answers[key]) > 1:
                        conflicts.setdefault(key, where)
        self._check(len(answers), unreadable, list(conflicts.values()))
        pairs = [(key, answer) for key in sorted(answers) for answer in answers[key]]
        keys, values = zip(*pairs, strict=True)
        table = pa.table({"key": pa.array(keys, pa.uint64()), "answer": pa.array(values)})
        feather.write_feather(table, folder / _FILE, "uncompressed")
        return {"prompts": len(answers), "rows_without_answer": without, "conflicting_prompts": len(conflicts)}

    def load(self, folder: Path) -> None:
        table = feather.read_table(folder / _FILE, memory_map=True)
        self._keys, self._answers = table["key"].to_numpy(), table["answer"]

    def _check(self, num_answers: int, unreadable: list[str], conflicts: list[str]) -> None:
        if unreadable:
            shown = "\n".join(unreadable[:_SHOWN])
            raise UserError(
                f"text reward '{self.function}' cannot read {len(unreadable)} answers of the rows: fix or remove them. "
                f"The first:\n{shown}"
            )
        if not num_answers:
            raise UserError(
                f"text reward '{self.function}': no row has an answer: name their column in data.columns.answer"
            )
        if conflicts:
            log.warning(
                "text reward '%s': rows of %d prompts have answers that differ (the first: %s); each counts as right",
                self.function,
                len(conflicts),
                ", ".join(conflicts[:_SHOWN]),
            )


def prompt_key(prompt: Prompt) -> int:
    """A hash of a prompt, text or messages; the order of a message's keys does not matter."""
    return text_hash(json.dumps(prompt, sort_keys=True))


@dataclass(config=STRICT)
class AnswerReward(RowAnswerReward[str]):
    """Exact match with the row's answer, after the same normalisation of both (and Unicode's NFC).

    Args:
        pattern: where given, its group where it matched last is the completion's answer, as in `The answer is (.+)`;
            a completion that it does not match is wrong. A row's answer that it matches is read in the same way.
        strip: remove surrounding white space.
        ignore_case: compare case-folded texts.
        collapse_space: treat a run of white space as one space.
        punctuation: ends: remove opening marks (quotes, brackets, emphasis) before the answer, and closing marks
            after it; remove: all punctuation (Unicode's category P); keep.
    """

    function = "answer"
    strip: bool = True
    ignore_case: bool = True
    collapse_space: bool = True
    punctuation: Literal["ends", "remove", "keep"] = "ends"

    def given(self, completion: str) -> str | None:
        text = self.marked(completion) if self.expression else completion
        return None if text is None else self.normalise(text)

    def expected(self, text: str) -> str | None:
        marked = self.marked(text)
        return self.normalise(text if marked is None else marked) or None

    def _trim(self, text: str) -> str:
        before = None
        while text != before:
            before = text
            text = (text.strip() if self.strip else text).lstrip(_OPENING).rstrip(_CLOSING)
        return text

    def normalise(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.punctuation == "remove":
            text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        elif self.punctuation == "ends":
            text = self._trim(text) or text  # an answer that is a bracket stays one
        if self.collapse_space:
            text = re.sub(r"\s+", " ", text)
        return text.strip() if self.strip else text


@dataclass(config=STRICT)
class NumericAnswerReward(RowAnswerReward[float]):
    """Whether the last number of the completion is the row's answer. Numbers are read by `find_numbers`.

    A completion without a number is wrong. The row's answer may be a text: its last number counts, or the pattern's.

    Args:
        pattern: where given, the completion's answer is the first number in its group where it matched last, as in
            `#### (.+)`; a completion that it does not match is wrong.
        tolerance: the largest absolute difference that counts as equal, beside rounding (1e-9 of the larger one).
        decimal: the decimal mark.
        percent: whether 50% is read as 50 or as 0.5.
    """

    function = "numeric_answer"
    tolerance: float = Field(default=0.0, ge=0)
    decimal: Literal[".", ","] = "."
    percent: Literal["number", "fraction"] = "number"

    def given(self, completion: str) -> float | None:
        return self._number(self.marked(completion), 0) if self.expression else self._number(completion, -1)

    def expected(self, text: str) -> float | None:
        number = self._number(self.marked(text), 0)
        number = self._number(text, -1) if number is None else number
        return number if number is not None and math.isfinite(number) else None

    def same(self, one: float, other: float) -> bool:
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=self.tolerance)

    def _number(self, text: str | None, place: int) -> float | None:
        numbers = find_numbers(text or "", self.decimal, self.percent)
        return numbers[place] if numbers else None
