"""A language model's judgement of a comparison: what to ask, what is answered already, and the results."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leftover.commands.judge.ask import Record, VerdictStore, ask_all
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.pairs import Comparison
from leftover.commands.judge.questions import Criterion, Question, judged_pairs, make_questions, outstanding
from leftover.commands.judge.summary import Prices, count_tokens, estimate, of_judge
from leftover.errors import UserError
from leftover.runs.names import judge_folder
from leftover.store.sealed import digest, write_sealed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """A comparison by some criteria, as one judge sees it; answers and results lie in `folder`/judge."""

    folder: Path
    comparison: Comparison
    criteria: Sequence[Criterion]
    settings: JudgeSettings
    prices: Prices | None = None

    @cached_property
    def questions(self) -> list[Question]:
        return make_questions(self.comparison.pairs, self.criteria, self.settings)

    def ask(self) -> tuple[dict[str, Any], Path, list[str]]:
        """Ask what is not answered yet; returns the results, the file they are written to, and errors by question."""
        with VerdictStore(judge_folder(self.folder)) as store:
            todo, total = outstanding(self.questions, store.records), len(outstanding(self.questions, {}))
            log.info(
                "judge: %s: %d prompts, %d questions, %d of them already answered",
                self.comparison.name,
                self.comparison.num_prompts,
                total,
                total - len(todo),
            )
            failures = ask_all(self.questions, store, self.settings, self.prices, self.comparison.name)
        results = self._results(store.records)
        asked = [store.records[q.key] for q in todo if q.key in store.records]
        results["tokens_of_this_command"] = count_tokens(asked, self.prices)
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.comparison.name} {self.settings.model}").strip("-.")[:80]
        # The readable part leaves things out; the digest gives every comparison and judge a separate file.
        whole = digest([self.comparison.name, self.settings.key(""), self.criteria])
        path = judge_folder(self.folder) / "results" / f"{readable}-{whole[:8]}.json"
        write_sealed(path, results, copied=False)
        return results, path, failures

    def estimate(self) -> dict[str, Any]:
        """The questions that `ask` would ask, and the tokens these would take; no network, no file."""
        records = VerdictStore(judge_folder(self.folder)).records
        answered = {q.key: (q, records[q.key]) for q in self.questions if q.key in records}
        todo, rate = outstanding(self.questions, records), self.comparison.characters_per_token
        return {"answered": len(answered)} | estimate(todo, list(answered.values()), rate, self.prices)

    def _results(self, records: dict[str, Record]) -> dict[str, Any]:
        answers = {q.key: records[q.key] for q in self.questions if q.key in records}
        criteria = {}
        for criterion in self.criteria:
            judged = judged_pairs(self.comparison.pairs, self.questions, records, criterion.name)
            asked = {q.key for q in self.questions if q.criterion == criterion.name}
            criteria[criterion.name] = {
                "text": criterion.text,
                **of_judge(judged),
                "questions": len(asked),
                "unanswered": len(asked - answers.keys()),
                "without_verdict": sum(answers[key]["verdict"] is None for key in asked & answers.keys()),
            }
        return self.comparison.describe() | {
            "judge": {
                "model": self.settings.model,
                "url": self.settings.url,
                "request": self.settings.fields(),
                "served_as": sorted({record["model"] for record in answers.values()}),
            },
            "criteria": criteria,
            "tokens": count_tokens(answers.values(), self.prices),
        }


def raise_for(failures: Sequence[str]) -> None:
    """UserError with the questions that got no answer, if there are some."""
    if failures:
        raise UserError(
            f"{len(failures)} questions got no answer, and their pairs are skipped; the same command asks them again. "
            f"The first: {failures[0]}"
        )
