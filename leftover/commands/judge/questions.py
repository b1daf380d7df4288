"""From pairs to questions, and from their stored answers back to what each pair's outcome is. Pure functions."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from leftover.commands.judge.criteria import Criterion, question
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.pairs import Pair


@dataclass(frozen=True)
class Question:
    """One pair by one criterion in one order. Equal questions have equal keys, also of different pairs."""

    pair: Pair
    criterion: str
    ours_first: bool
    message: str
    key: str

    def score(self, verdict: str) -> float:
        """1 if our completion is preferred, 0 if theirs is, 0.5 for a tie."""
        return 0.5 if verdict == "tie" else float((verdict == "A") == self.ours_first)


class Judged(NamedTuple):
    """A pair by one criterion: our score in both orders (None: no verdict)."""

    pair: Pair
    scores: tuple[float | None, float | None]

    @property
    def outcome(self) -> float | None:
        """1 win, 0.5 tie, 0 loss; None if an order has no verdict, since position bias cannot cancel then.

        A win in one order and a loss in the other make a tie; after a tie in one order the other decides.
        """
        first, second = self.scores
        if first is None or second is None:
            return None
        return 0.5 if first + second == 1 else float(first + second > 1)


def make_questions(pairs: Iterable[Pair], criteria: Sequence[Criterion], settings: JudgeSettings) -> list[Question]:
    """Every pair by every criterion in both orders, a pair's questions together; none for identical completions."""
    found = []
    for pair, criterion, ours_first in itertools.product(pairs, criteria, (True, False)):
        if not pair.identical:
            message = question(criterion.text, pair.prompt, *pair.in_order(ours_first))
            found.append(Question(pair, criterion.name, ours_first, message, settings.key(message)))
    return found


def outstanding(questions: Iterable[Question], records: Mapping[str, Any]) -> list[Question]:
    """The questions without a stored answer, each once."""
    return list({q.key: q for q in questions if q.key not in records}.values())


def judged_pairs(
    pairs: Sequence[Pair], questions: Iterable[Question], records: Mapping[str, Any], criterion: str
) -> list[Judged]:
    """Every pair with the scores from its stored answers; identical completions tie without being asked about."""
    scores: dict[tuple[Pair, bool], float] = {}
    for q in questions:
        verdict = records.get(q.key, {}).get("verdict")
        if q.criterion == criterion and verdict is not None:
            scores[q.pair, q.ours_first] = q.score(verdict)
    return [
        Judged(pair, (0.5, 0.5) if pair.identical else (scores.get((pair, True)), scores.get((pair, False))))
        for pair in pairs
    ]
