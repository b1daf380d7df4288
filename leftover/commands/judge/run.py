"""The verb `judge` with a language model: what to ask, what is asked already, the asking, and what came of it."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.commands.judge.ask import ask_all
from leftover.commands.judge.criteria import Criterion
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.pairs import Comparison
from leftover.commands.judge.questions import Question, judged_pairs, make_questions, outstanding
from leftover.commands.judge.store import VerdictStore
from leftover.commands.judge.summary import Prices, count_tokens, estimate, of_judge
from leftover.errors import UserError
from leftover.runs.names import judge_folder
from leftover.store.manifest import digest, write_json

log = logging.getLogger(__name__)


def judge(
    folder: Path,
    comparison: Comparison,
    criteria: Sequence[Criterion],
    settings: JudgeSettings,
    prices: Prices | None = None,
) -> tuple[dict[str, Any], Path, list[str]]:
    """Ask what is not answered yet, and write the results to a JSON file of the run's folder `judge`.

    Returns the results, their file, and what went wrong for each question that got no answer.
    """
    questions = make_questions(comparison.pairs, criteria, settings)
    with VerdictStore(judge_folder(folder)) as store:
        todo = outstanding(questions, store.records)
        log.info(
            "judge: %s: %d prompts, %d questions, %d of them answered already",
            comparison.name,
            len({pair.prompt_id for pair in comparison.pairs}),
            len({q.key for q in questions}),
            len({q.key for q in questions}) - len(todo),
        )
        failures = ask_all(questions, store, settings, prices, comparison.name)
        records = dict(store.records)
    results = _results(comparison, criteria, settings, questions, records, prices)
    results["tokens_of_this_command"] = count_tokens([records[q.key] for q in todo if q.key in records], prices)
    path = judge_folder(folder) / "results" / f"{_file_name(comparison, criteria, settings)}.json"
    write_json(path, results)
    return results, path, failures


def raise_for(failures: Sequence[str]) -> None:
    """Raise UserError where questions got no answer."""
    if failures:
        raise UserError(
            f"{len(failures)} questions got no answer, and their pairs are left out; the same command asks them again. "
            f"The first: {failures[0]}"
        )


def plan(
    folder: Path,
    comparison: Comparison,
    criteria: Sequence[Criterion],
    settings: JudgeSettings,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """What `judge` would ask, and what that takes. No network, and nothing is written."""
    questions = make_questions(comparison.pairs, criteria, settings)
    records = VerdictStore(judge_folder(folder)).records
    todo = outstanding(questions, records)
    answered = {q.key: (q, records[q.key]) for q in questions if q.key in records}
    return {
        "comparison": comparison.name,
        "judge": f"{settings.model} at {settings.url}",
        "criteria": [criterion.name for criterion in criteria],
        "prompts": len({pair.prompt_id for pair in comparison.pairs}),
        "pairs": len(comparison.pairs),
        "identical_pairs": sum(pair.identical for pair in comparison.pairs),
        "answered": len(answered),
        **estimate(todo, list(answered.values()), comparison.characters_per_token, prices),
    }


def _results(
    comparison: Comparison,
    criteria: Sequence[Criterion],
    settings: JudgeSettings,
    questions: Sequence[Question],
    records: dict[str, Any],
    prices: Prices | None,
) -> dict[str, Any]:
    answers = {q.key: records[q.key] for q in questions if q.key in records}
    found: dict[str, Any] = describe(comparison)
    found["judge"] = {"model": settings.model, "url": settings.url, "request": settings.fields()}
    found["judge"]["served_as"] = sorted({record["model"] for record in answers.values()})
    found["criteria"] = {}
    for criterion in criteria:
        of = of_judge(judged_pairs(comparison.pairs, questions, records, criterion.name))
        asked = {q.key for q in questions if q.criterion == criterion.name}
        of["questions"] = len(asked)
        of["unanswered"] = len(asked - answers.keys())
        of["without_verdict"] = sum(answers[key]["verdict"] is None for key in asked & answers.keys())
        found["criteria"][criterion.name] = {"text": criterion.text} | of
    return found | {"tokens": count_tokens(answers.values(), prices)}


def describe(comparison: Comparison) -> dict[str, Any]:
    """What is compared, and how long both sides are: judges are known to like long answers (arXiv 2306.05685)."""
    count = max(len(comparison.pairs), 1)
    return {
        "comparison": comparison.name,
        "ours": comparison.ours,
        "theirs": comparison.theirs,
        "decoding": comparison.decoding,
        "words": {
            "ours": sum(len(pair.ours.split()) for pair in comparison.pairs) / count,
            "theirs": sum(len(pair.theirs.split()) for pair in comparison.pairs) / count,
        },
        "unended": comparison.unended,
        "evaluations": comparison.evaluations,
    }


def file_stem(text: str) -> str:
    """A text as a name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80]


def _file_name(comparison: Comparison, criteria: Sequence[Criterion], settings: JudgeSettings) -> str:
    """One file a comparison and judge; what the readable part leaves out is in the digest."""
    apart = digest([comparison.name, settings.key(""), [list(criterion) for criterion in criteria]])[:8]
    return f"{file_stem(f'{comparison.name} {settings.model}')}-{apart}"
