"""Ask a judge many questions at once, and keep every answer as it arrives."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from leftover.errors import UserError
from leftover.judge.criteria import read_verdict
from leftover.judge.endpoint import AskError, Endpoint, JudgeSettings
from leftover.judge.questions import Question
from leftover.judge.store import Record, VerdictStore
from leftover.judge.summary import Prices, count_tokens

_ASKS = 2  # of a question whose answer holds no verdict
_FAILURES_IN_A_ROW = 5  # after so many the service is taken to be down


def ask_all(
    questions: Sequence[Question], store: VerdictStore, settings: JudgeSettings, prices: Prices | None, name: str
) -> list[str]:
    """Ask `questions`, the answers into `store`; returns what went wrong for those that got none.

    An answer without a verdict is kept as one, after a second ask. Raises UserError where the service fails
    throughout; what was answered until then is kept, and answers under way are waited for, since they are paid.
    """
    from tqdm import tqdm

    stop = threading.Event()
    endpoint = Endpoint(settings, stop)
    pool = ThreadPoolExecutor(settings.parallel)
    bar = tqdm(total=len(questions), desc=f"judge, {settings.model}", unit="question", leave=False, disable=None)
    failures: list[str] = []
    in_a_row, down, new = 0, False, list[Record]()

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
        for done in as_completed([pool.submit(work, question) for question in questions]):
            try:
                record = done.result()
            except AskError as error:
                failures.append(str(error))
                in_a_row += 1
                down = error.hopeless or in_a_row == min(_FAILURES_IN_A_ROW, len(questions))
                if down:
                    break
                continue
            if record is not None:
                in_a_row = 0
                new.append(record)
                bar.update()
                bar.set_postfix_str(_postfix(new, prices, endpoint, len(failures)), refresh=False)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        endpoint.close()
        bar.close()
    if down:
        kept = sum(question.key in store.records for question in questions)
        raise UserError(
            f"judge {settings.url}: {failures[-1]}. {kept} of {len(questions)} answers came and are kept; the same "
            "command goes on from there"
        )
    return failures


def _answer(endpoint: Endpoint, question: Question) -> Record:
    """The record of a question, with the tokens of all its asks."""
    answers = []
    while True:
        answer = endpoint.ask(question.message)
        answers.append(answer)
        verdict = read_verdict(answer.text)
        if verdict is not None or len(answers) == _ASKS:
            break
    tokens = {}
    for name in ("prompt_tokens", "completion_tokens"):
        counts = [getattr(answer, name) for answer in answers]
        tokens[name] = None if None in counts else sum(counts)
    return {
        "key": question.key,
        "prompt_id": question.pair.prompt_id,
        "criterion": question.criterion,
        "ours_first": question.ours_first,
        "verdict": verdict,
        "answer": answer.text,
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "asks": len(answers),
        **tokens,
    }


def _postfix(records: list[Record], prices: Prices | None, endpoint: Endpoint, failed: int) -> str:
    counted = count_tokens(records, prices)
    parts = [f"{counted['prompt_tokens']:,} + {counted['completion_tokens']:,} tokens"]
    if prices:
        parts.append(f"cost {counted['cost']:.4f}")
    if endpoint.retried:
        parts.append(f"{endpoint.retried} tried again")
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)
