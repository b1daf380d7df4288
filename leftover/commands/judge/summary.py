"""Win, tie and loss with intervals, position bias, tokens and their price. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from leftover.commands.judge.questions import Judged, Question
from leftover.metrics import bootstrap_interval


class Outcome(NamedTuple):
    """One judgement of a prompt (of one seed, or by one person): 1 win, 0.5 tie, 0 loss."""

    prompt_id: str
    family: object
    source: str
    value: float


class Prices(NamedTuple):
    """What a million tokens cost, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1_000_000


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares of prompts that are won, tied and lost, and the win rate (a tie one half), each with its interval.

    A prompt that was judged more than once (several seeds or people) counts once, by its means; intervals are
    bootstrapped by prompt family. `by_source` holds the same for every test set, and is empty if there is only one.
    """
    sources = sorted({outcome.source for outcome in outcomes})
    apart = sources if len(sources) > 1 else []
    return _shares(outcomes) | {"by_source": {s: _shares([o for o in outcomes if o.source == s]) for s in apart}}


def _shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    by_prompt: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_prompt.setdefault(outcome.prompt_id, []).append(outcome)
    if not by_prompt:
        return {"prompts": 0}
    values = [np.array([outcome.value for outcome in of]) for of in by_prompt.values()]
    families = [str(of[0].family) for of in by_prompt.values()]
    measures = {
        "win": [float((v == 1).mean()) for v in values],
        "tie": [float((v == 0.5).mean()) for v in values],
        "loss": [float((v == 0).mean()) for v in values],
        "win_rate": [float(v.mean()) for v in values],
    }
    intervals = {name: bootstrap_interval(shares, families)._asdict() for name, shares in measures.items()}
    return {"prompts": len(values), **intervals}


def of_judge(judged: Sequence[Judged]) -> dict[str, Any]:
    """A criterion by a judge: `summarise`, the win rate of every seed, and how far the order of the two decided.

    `first_preferred`: among verdicts that are no tie, the share for the completion shown first (0.5 without position
    bias). `orders_agree`: the share of pairs with the same verdict in both orders.
    """
    decided = [(j, j.outcome) for j in judged if j.outcome is not None]
    seeds = sorted({j.pair.seed for j, _ in decided})
    asked = [j for j, _ in decided if not j.pair.identical]
    preferences = [
        (float(score == first), str(j.pair.family))
        for j in asked
        for score, first in zip(j.scores, (1.0, 0.0), strict=True)
        if score != 0.5
    ]
    return summarise([Outcome(j.pair.prompt_id, j.pair.family, j.pair.source, value) for j, value in decided]) | {
        "win_rate_by_seed": {s: float(np.mean([value for j, value in decided if j.pair.seed == s])) for s in seeds},
        "pairs": len(judged),
        "identical_pairs": sum(j.pair.identical for j in judged),
        "pairs_without_outcome": len(judged) - len(decided),
        "first_preferred": bootstrap_interval(*zip(*preferences, strict=True))._asdict() if preferences else None,
        "orders_agree": float(np.mean([j.scores[0] == j.scores[1] for j in asked])) if asked else None,
    }


def count_tokens(records: Iterable[Mapping[str, Any]], prices: Prices | None) -> dict[str, Any]:
    """Tokens of stored answers, their cost if prices are given, and how many answers the service did not count."""
    kept = list(records)
    counted = [r for r in kept if r["prompt_tokens"] is not None and r["completion_tokens"] is not None]
    prompt, completion = (sum(r[name] for r in counted) for name in ("prompt_tokens", "completion_tokens"))
    found = {"answers": len(kept), "prompt_tokens": prompt, "completion_tokens": completion}
    found["answers_without_count"] = len(kept) - len(counted)
    return found | ({"cost": prices.of(prompt, completion)} if prices else {})


def estimate(
    todo: Sequence[Question],
    answered: Sequence[tuple[Question, Mapping[str, Any]]],
    characters_per_token: float,
    prices: Prices | None,
) -> dict[str, Any]:
    """The tokens that the questions `todo` will take, from those answered; before any, from the policy's tokenizer.

    The tokens of answers are unknown (None) until a question is answered.
    """
    counted = [(q, r) for q, r in answered if r["prompt_tokens"] and r["completion_tokens"] is not None]
    rate, completion = characters_per_token, None
    if counted:
        rate = sum(len(q.message) * r["asks"] for q, r in counted) / sum(r["prompt_tokens"] for _, r in counted)
        completion = round(len(todo) * sum(r["completion_tokens"] for _, r in counted) / len(counted))
    characters = sum(len(q.message) for q in todo)
    prompt = round(characters / rate) if rate else None
    found = {"questions": len(todo), "characters": characters, "from_answers": bool(counted)}
    cost = {"cost": prices.of(prompt, completion or 0)} if prices and prompt is not None else {}
    return {**found, "prompt_tokens": prompt, "completion_tokens": completion, **cost}
