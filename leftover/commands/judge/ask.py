"""Ask a judge many questions at once, and keep every answer as it arrives."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from leftover.commands.judge.criteria import read_verdict
from leftover.commands.judge.endpoint import Answer, AskError, Endpoint, JudgeSettings
from leftover.commands.judge.questions import Question, outstanding
from leftover.commands.judge.store import Record, VerdictStore
from leftover.commands.judge.summary import Prices
from leftover.errors import UserError
from leftover.monitoring.terminal import progress_bar

_ASKS = 2  # at most, while the answer holds no verdict
_TOKENS = ("prompt_tokens", "completion_tokens")
_FAILURES_IN_A_ROW = 5  # after so many the service counts as down


def ask_all(
    questions: Sequence[Question], store: VerdictStore, settings: JudgeSettings, prices: Prices | None, name: str
) -> list[str]:
    """Ask those of `questions` that `store` holds no answer to; returns the errors of those that got none.

    An answer without a verdict is kept after a second ask. Raises UserError if the service fails throughout; answers
    until then are kept, and those under way are waited for, since they are paid.
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
                for kind in _TOKENS:
                    spent[kind] += record[kind] or 0
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
