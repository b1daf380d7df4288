"""A language model's judgement of a comparison: what to ask, what is answered already, and the results."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leftover.commands.judge.ask import ask_all
from leftover.commands.judge.criteria import Criterion
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.pairs import Comparison
from leftover.commands.judge.questions import Question, judged_pairs, make_questions, outstanding
from leftover.commands.judge.store import Record, VerdictStore
from leftover.commands.judge.summary import Prices, count_tokens, estimate, of_judge
from leftover.runs.names import judge_folder
from leftover.store.manifest import digest, write_json

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
        """Ask what is not answered yet, and write the results to a JSON file.

        Returns the results, their file, and what went wrong for each question that got no answer.
        """
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
            records = dict(store.records)
        results = self._results(records)
        asked = [records[q.key] for q in todo if q.key in records]
        results["tokens_of_this_command"] = count_tokens(asked, self.prices)
        path = judge_folder(self.folder) / "results" / f"{self._file_stem()}.json"
        write_json(path, results)
        return results, path, failures

    def plan(self) -> dict[str, Any]:
        """What `ask` would ask, and the tokens it would take. Uses no network and writes nothing."""
        records = VerdictStore(judge_folder(self.folder)).records
        answered = {q.key: (q, records[q.key]) for q in self.questions if q.key in records}
        characters = self.comparison.characters_per_token
        return {
            "comparison": self.comparison.name,
            "judge": f"{self.settings.model} at {self.settings.url}",
            "criteria": [criterion.name for criterion in self.criteria],
            "prompts": self.comparison.num_prompts,
            "pairs": len(self.comparison.pairs),
            "identical_pairs": sum(pair.identical for pair in self.comparison.pairs),
            "answered": len(answered),
            **estimate(outstanding(self.questions, records), list(answered.values()), characters, self.prices),
        }

    def _results(self, records: dict[str, Record]) -> dict[str, Any]:
        answers = {q.key: records[q.key] for q in self.questions if q.key in records}
        criteria = {}
        for criterion in self.criteria:
            judged = judged_pairs(self.comparison.pairs, self.questions, records, criterion.name)
            asked = {q.key for q in self.questions if q.criterion == criterion.name}
            criteria[criterion.name] = {"text": criterion.text} | of_judge(judged)
            criteria[criterion.name] |= {
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

    def _file_stem(self) -> str:
        """One file for every comparison and judge; a digest stands for what the readable part leaves out."""
        key = [self.comparison.name, self.settings.key(""), [list(criterion) for criterion in self.criteria]]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.comparison.name} {self.settings.model}")
        return f"{readable.strip('-.')[:80]}-{digest(key)[:8]}"
