"""Ask a judge many questions at once, and keep every answer as it arrives."""

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from filelock import FileLock

from leftover.commands.judge.endpoint import Answer, AskError, Endpoint, JudgeSettings
from leftover.commands.judge.questions import Question, outstanding, read_verdict
from leftover.commands.judge.summary import Prices
from leftover.errors import UserError
from leftover.monitoring.finite import json_line
from leftover.monitoring.terminal import progress_bar
from leftover.store.folders import give_back, hold, make_folder

_ASKS = 2  # at most, while the answer holds no verdict
_TOKENS = ("prompt_tokens", "completion_tokens")
_FAILURES_IN_A_ROW = 5  # after so many the service counts as down

Record = dict[str, Any]


class VerdictStore:
    """`verdicts.jsonl`: one record per question, by its `key`.

    As a context manager it is held by one process; UserError if another holds it. A last line that a killed process
    left unfinished is cut off; any other line that is no record raises UserError.
    """

    def __init__(self, folder: Path):
        self.path = folder / "verdicts.jsonl"
        self._lock, self._held = threading.Lock(), list[FileLock | None]()
        self._load()

    def __enter__(self) -> "VerdictStore":
        make_folder(self.path.parent, "the folder of verdicts")
        self._held.append(hold(self.path))
        whole = self._load()  # again: another process may have written until now
        if self.path.is_file() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        return self

    def __exit__(self, *_: object) -> None:
        give_back(self._held.pop())

    def append(self, record: Record) -> None:
        """Keep an answer; it is on the disk when this returns. Safe to call from several threads."""
        line = (json_line(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self.records[record["key"]] = record

    def _load(self) -> int:
        """Read the records; returns how many bytes the whole lines take."""
        self.records: dict[str, Record] = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(
                    f"{self.path}, line {number}: not a verdict as `leftover judge` writes it; remove the line to have "
                    "its question asked again"
                ) from None
        return whole


def ask_all(
    questions: Sequence[Question], store: VerdictStore, settings: JudgeSettings, prices: Prices | None, name: str
) -> list[str]:
    """Ask what `store` holds no answer to; returns the errors of the questions that got none.

    Raises UserError if the service is down; answers until then are kept, and so are those under way, which are paid.
    """
    todo = outstanding(questions, store.records)
    if not todo:
        return []
    stop = threading.Event()
    endpoint = Endpoint(settings, stop)
    pool = ThreadPoolExecutor(settings.parallel)
    bar = progress_bar(len(todo), f"judge, {settings.model}", "question")
    failures: list[str] = []
    in_a_row, down, spent = 0, False, Counter[str]()

    def work(question: Question) -> Record | None:
        if stop.is_set():
            return None
        try:
            record = _answer(endpoint, question) | {"comparison": name}
        except AskError as error:
            if error.hopeless:
                stop.set()  # here, before this thread takes its next question
            raise
        store.append(record)
        return record

    try:
        for done in as_completed([pool.submit(work, question) for question in todo]):
            try:
                record = done.result()
            except AskError as error:
                failures.append(str(error))
                # A refused question says nothing about a service that has answered another.
                in_a_row += not (error.of_question and any(q.key in store.records for q in questions))
                down = error.hopeless or in_a_row == _FAILURES_IN_A_ROW
                if down:
                    break
                continue
            if record is not None:
                in_a_row = 0
                spent.update({kind: record[kind] or 0 for kind in _TOKENS})  # adds
                bar.update()
                bar.set_postfix_str(_postfix(spent, prices, endpoint, len(failures)), refresh=False)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        endpoint.close()
        bar.close()
    if down:
        kept = sum(question.key in store.records for question in todo)
        raise UserError(
            f"judge {settings.url}: {failures[-1]}. {kept} of {len(todo)} answers came and are kept; the same command "
            "continues from there"
        )
    return [f"judge {settings.url}: {failure}" for failure in failures]


def _answer(endpoint: Endpoint, question: Question) -> Record:
    """The record of a question, with the tokens of all its asks."""
    answers, verdict = list[Answer](), None
    while verdict is None and len(answers) < _ASKS:
        try:
            answers.append(endpoint.ask(question.message))
        except AskError:
            if not answers:
                raise
            break  # the first answer is paid, and kept
        verdict = read_verdict(answers[-1].text)
    counts = {name: [getattr(answer, name) for answer in answers] for name in _TOKENS}
    return {
        "key": question.key,
        "prompt_id": question.pair.prompt_id,
        "criterion": question.criterion,
        "ours_first": question.ours_first,
        "verdict": verdict,
        "answer": answers[-1].text,
        "model": answers[-1].model,
        "finish_reason": answers[-1].finish_reason,
        "asks": len(answers),
        **{name: None if None in of else sum(of) for name, of in counts.items()},
    }


def _postfix(spent: Mapping[str, int], prices: Prices | None, endpoint: Endpoint, failed: int) -> str:
    parts = [f"{spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens"]
    if prices:
        parts.append(f"cost {prices.of(spent['prompt_tokens'], spent['completion_tokens']):.4f}")
    if endpoint.retried:
        parts.append(f"{endpoint.retried} repeated")
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)
