"""The answers that rows hold (`data.columns.answer`), looked up by prompt."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.data.rows import as_prompt, text_hash
from leftover.errors import UserError
from leftover.rewards.regex import compile_pattern

log = logging.getLogger(__name__)

_FILE = "answers.arrow"
_BATCH_ROWS = 2048
_SHOWN = 3


class RowAnswerReward:
    """1.0 where a completion gives the answer of the prompt's row, 0.0 where it does not, None where none is known.

    `fit` writes the answers of all splits by a hash of the prompt: it is a lookup and learns nothing. Where rows of
    one prompt have different answers each of them counts as right, and the log says so.

    A subclass says what an answer is: `given`, `expected`, `same`.
    """

    reads_rows = True
    function = ""

    def __init__(self, pattern: str | None, **settings: Any):
        self.expression = None if pattern is None else compile_pattern(self.function, pattern, groups=1)
        self.settings = {"pattern": pattern, **settings}
        self._keys: np.ndarray | None = None  # sorted; those of one prompt stand together
        self._answers: Any = None

    def given(self, completion: str) -> Any:
        """The answer that a completion gives; None where it gives none."""
        raise NotImplementedError

    def expected(self, text: str) -> Any:
        """The answer that a row's text holds; None where it cannot be read."""
        raise NotImplementedError

    def same(self, one: Any, other: Any) -> bool:
        """Whether two answers are one."""
        return one == other

    def marked(self, text: str) -> str | None:
        """The pattern's group where it matched last; None where it does not match, or there is no pattern."""
        found = None
        for match in self.expression.finditer(text) if self.expression else ():
            found = match[1]
        return found

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        if self._keys is None:
            raise UserError(
                f"text reward '{self.function}' compares with the answers of rows and has read none: use it in a "
                "recipe, or call fit and load"
            )
        keys = np.array([prompt_key(prompt) for prompt in prompts], np.uint64)
        first, last = np.searchsorted(self._keys, keys), np.searchsorted(self._keys, keys, side="right")
        scores: list[float | None] = []
        for completion, start, stop in zip(completions, first.tolist(), last.tolist(), strict=True):
            if start == stop:
                scores.append(None)
                continue
            given = self.given(completion)
            right = self._answers[start:stop].to_pylist()
            scores.append(float(given is not None and any(self.same(given, answer) for answer in right)))
        return scores

    def fit(self, folder: Path, rows: Any) -> dict[str, Any]:
        """Write the answers into `folder`. Raises UserError where no row has one, or one cannot be read."""
        answers: dict[int, list[Any]] = {}
        unreadable: list[str] = []
        conflicts: dict[int, str] = {}
        without = 0
        columns = rows.select_columns(["prompt", "conversational", "answer", "where"])
        for part in columns.iter(batch_size=_BATCH_ROWS):
            for prompt, conversational, text, where in zip(*part.values(), strict=True):
                if text is None or not text.strip():
                    without += 1
                    continue
                answer = self.expected(text)
                if answer is None:
                    unreadable.append(f"  {where}: {text!r:.60}")
                    continue
                key = prompt_key(as_prompt(prompt, conversational))
                known = answers.setdefault(key, [])
                if any(self.same(other, answer) for other in known):
                    continue
                known.append(answer)
                if len(known) > 1:
                    conflicts.setdefault(key, where)
        self._check(answers, unreadable, conflicts)
        _write(folder / _FILE, answers)
        return {"prompts": len(answers), "rows_without_answer": without, "conflicting_prompts": len(conflicts)}

    def load(self, folder: Path) -> None:
        import pyarrow as pa

        table = pa.ipc.open_file(pa.memory_map(str(folder / _FILE))).read_all()
        self._keys, self._answers = table["key"].to_numpy(), table["answer"]

    def identity(self) -> dict[str, Any]:
        return {"type": "text", "function": self.function, **self.settings}

    def _check(self, answers: dict[int, list[Any]], unreadable: list[str], conflicts: dict[int, str]) -> None:
        if unreadable:
            raise UserError(
                f"text reward '{self.function}' cannot read {len(unreadable)} of the rows' answers; the first:\n"
                + "\n".join(unreadable[:_SHOWN])
                + "\nMend them, or leave them out"
            )
        if not answers:
            raise UserError(
                f"text reward '{self.function}' compares with the answers of rows, and no row has one: name their "
                "column in data.columns.answer"
            )
        if conflicts:
            log.warning(
                "text reward '%s': rows of %d prompts have answers that differ (the first: %s); each counts as right",
                self.function,
                len(conflicts),
                ", ".join(list(conflicts.values())[:_SHOWN]),
            )


def prompt_key(prompt: Any) -> int:
    """A hash of a prompt, text or messages; keys of a message may stand in any order."""
    return text_hash(json.dumps(prompt, sort_keys=True))


def _write(path: Path, answers: dict[int, list[Any]]) -> None:
    """One row an answer, `key` (uint64, sorted) and `answer`, under a temporary name first."""
    import pyarrow as pa

    pairs = [(key, answer) for key in sorted(answers) for answer in answers[key]]
    keys, values = zip(*pairs, strict=True)
    table = pa.table({"key": pa.array(keys, pa.uint64()), "answer": pa.array(values)})
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)
