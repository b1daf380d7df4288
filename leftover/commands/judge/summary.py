"""Win, tie and loss with intervals, position bias, tokens and their price. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from leftover.commands.judge.questions import Judged, Question
from leftover.metrics import bootstrap_interval

_MILLION = 1_000_000


class Outcome(NamedTuple):
    """A prompt once judged (by a seed, or a person): 1 win, 0.5 tie, 0 loss."""

    prompt_id: str
    family: Any
    source: str
    value: float


class Prices(NamedTuple):
    """What a million tokens cost, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / _MILLION


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares of prompts that are won, tied and lost, and the win rate (a tie one half), each with its interval.

    A prompt that was judged more than once (several seeds or people) counts once, by its means; intervals are
    bootstrapped by prompt family.
    """
    by_prompt: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_prompt.setdefault(outcome.prompt_id, []).append(outcome)
    values = [np.array([outcome.value for outcome in of]) for of in by_prompt.values()]
    families = [str(of[0].family) for of in by_prompt.values()]
    measures = {
        "win": [float((v == 1).mean()) for v in values],
        "tie": [float((v == 0.5).mean()) for v in values],
        "loss": [float((v == 0).mean()) for v in values],
        "win_rate": [float(v.mean()) for v in values],
    }
    found: dict[str, Any] = {"prompts": len(values)}
    if values:
        found |= {name: bootstrap_interval(shares, families)._asdict() for name, shares in measures.items()}
    return found


def by_source(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """`summarise` for every test set alone; empty where there is but one."""
    sources = sorted({outcome.source for outcome in outcomes})
    if len(sources) < 2:
        return {}
    return {source: summarise([o for o in outcomes if o.source == source]) for source in sources}


def of_judge(judged: Sequence[Judged]) -> dict[str, Any]:
    """A criterion by a judge: `summarise`, every test set and seed, and how far the order of the two decided.

    `first_preferred`: the share of verdicts that are no tie which prefer the completion shown first (0.5 without
    position bias). `orders_agree`: the share of pairs of which both orders say the same.
    """
    outcomes = [
        (j.pair.seed, Outcome(j.pair.prompt_id, j.pair.family, j.pair.source, j.outcome))
        for j in judged
        if j.outcome is not None
    ]
    seeds = sorted({seed for seed, _ in outcomes})
    found = summarise([outcome for _, outcome in outcomes])
    found |= {"by_source": by_source([outcome for _, outcome in outcomes])}
    found["win_rate_by_seed"] = {s: float(np.mean([o.value for seed, o in outcomes if seed == s])) for s in seeds}
    asked = [j for j in judged if j.asked and j.outcome is not None]
    preferences = [
        (float(score == first), str(j.pair.family))
        for j in asked
        for score, first in zip(j.scores, (1.0, 0.0), strict=True)
        if score != 0.5
    ]
    return found | {
        "pairs": len(judged),
        "identical_pairs": sum(not j.asked for j in judged),
        "pairs_without_outcome": sum(j.outcome is None for j in judged),
        "first_preferred": bootstrap_interval(*zip(*preferences, strict=True))._asdict() if preferences else None,
        "orders_agree": float(np.mean([j.scores[0] == j.scores[1] for j in asked])) if asked else None,
    }


def count_tokens(records: Iterable[Mapping[str, Any]], prices: Prices | None) -> dict[str, Any]:
    """Tokens of stored answers, and their cost where prices are given; answers that were not counted are said."""
    kept = list(records)
    counted = [r for r in kept if r["prompt_tokens"] is not None and r["completion_tokens"] is not None]
    tokens = [sum(r[name] for r in counted) for name in ("prompt_tokens", "completion_tokens")]
    found = {"answers": len(kept), "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    found["answers_without_count"] = len(kept) - len(counted)
    return found | ({"cost": prices.of(*tokens)} if prices else {})


def estimate(
    todo: Sequence[Question],
    answered: Sequence[tuple[Question, Mapping[str, Any]]],
    characters_per_token: float,
    prices: Prices | None,
) -> dict[str, Any]:
    """What the questions `todo` will take, from those that were answered; before any, from the policy's tokenizer.

    The tokens of answers are unknown (None) until there are some.
    """
    asks = [
        (len(q.message) * r["asks"], r["prompt_tokens"], r["completion_tokens"])
        for q, r in answered
        if r["prompt_tokens"] and r["completion_tokens"] is not None
    ]
    measured = bool(asks)
    rate = sum(a[0] for a in asks) / sum(a[1] for a in asks) if measured else characters_per_token
    characters = sum(len(q.message) for q in todo)
    found: dict[str, Any] = {"questions": len(todo), "characters": characters, "from_answers": measured}
    found["prompt_tokens"] = round(characters / rate) if rate else None
    found["completion_tokens"] = round(len(todo) * sum(a[2] for a in asks) / len(asks)) if measured else None
    if prices and found["prompt_tokens"] is not None:
        found["cost"] = prices.of(found["prompt_tokens"], found["completion_tokens"] or 0)
    return found
