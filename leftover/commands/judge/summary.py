"""Win, tie and loss with intervals, position bias, agreement, tokens and their price. Pure functions."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from leftover.commands.judge.pairs import Pair
from leftover.commands.judge.questions import Judged, Question
from leftover.errors import UserError
from leftover.evaluation.statistics import interval_record

Outcome = tuple[Pair, float]  # one judgement of a pair: 1 win, 0.5 tie, 0 loss
Values = Mapping[int, float]  # the outcomes of one rater, by the number of the pair


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
    sources = sorted({pair.source for pair, _ in outcomes})
    apart = sources if len(sources) > 1 else []
    by_source = {source: _shares([(pair, v) for pair, v in outcomes if pair.source == source]) for source in apart}
    return _shares(outcomes) | {"by_source": by_source}


def _shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    if not outcomes:
        return {"prompts": 0}
    by_prompt: dict[str, list[Outcome]] = {}
    for pair, value in outcomes:
        by_prompt.setdefault(pair.prompt_id, []).append((pair, value))
    values = [np.array([value for _, value in of]) for of in by_prompt.values()]
    families = [str(of[0][0].family) for of in by_prompt.values()]
    measures = {
        "win": [float((v == 1).mean()) for v in values],
        "tie": [float((v == 0.5).mean()) for v in values],
        "loss": [float((v == 0).mean()) for v in values],
        "win_rate": [float(v.mean()) for v in values],
    }
    intervals = {name: interval_record(shares, families, (0, 1)) for name, shares in measures.items()}
    return {"prompts": len(values), **intervals}


def of_judge(judged: Sequence[Judged]) -> dict[str, Any]:
    """A criterion by a judge: `summarise`, the win rate of every seed, and the effect of the order.

    `first_preferred`: among verdicts that are no tie, the share for the completion shown first (0.5 without position
    bias). `orders_agree`: the share of pairs with the same verdict in both orders.
    """
    outcomes = [(j.pair, value) for j in judged if (value := j.outcome) is not None]
    seeds = sorted({pair.seed for pair, _ in outcomes})
    asked = [j for j in judged if j.outcome is not None and not j.pair.identical]
    preferences = [
        (float(score == first), str(j.pair.family))
        for j in asked
        for score, first in zip(j.scores, (1.0, 0.0), strict=True)
        if score != 0.5
    ]
    return summarise(outcomes) | {
        "win_rate_by_seed": {s: float(np.mean([value for pair, value in outcomes if pair.seed == s])) for s in seeds},
        "pairs": len(judged),
        "identical_pairs": sum(j.pair.identical for j in judged),
        "pairs_without_outcome": len(judged) - len(outcomes),
        "first_preferred": interval_record(
            [first for first, _ in preferences], [family for _, family in preferences], (0, 1)
        )
        if preferences
        else None,
        "orders_agree": float(np.mean([j.scores[0] == j.scores[1] for j in asked])) if asked else None,
    }


def cohen_kappa(ours: Values, theirs: Values) -> dict[str, Any]:
    """Cohen's kappa (1960) of two raters, unweighted, on the items that both rated; and their share of equal ratings.

    `kappa` is None if both gave one and the same rating throughout, which chance explains as well as agreement does.
    """
    from sklearn.metrics import cohen_kappa_score

    shared = sorted(ours.keys() & theirs.keys())
    # Whole numbers: scikit-learn takes no fractions as classes.
    first, second = ([round(2 * of[item]) for item in shared] for of in (ours, theirs))
    constant = len({*first, *second}) < 2
    kappa = None if constant else float(cohen_kappa_score(first, second))
    return {"kappa": kappa, "equal": float(np.mean(np.equal(first, second))), "items": len(shared)}


def krippendorff_alpha(raters: Sequence[Values]) -> float | None:
    """Krippendorff's alpha, nominal, over any number of raters, each of whom may have skipped items.

    None if no item was rated twice, or only one rating was ever given.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise UserError("agreement needs the package krippendorff: pip install 'leftover[judge]'") from error
    items = sorted({item for of in raters for item in of if sum(item in other for other in raters) > 1})
    ratings = np.array([[of.get(item, np.nan) for item in items] for of in raters], np.float64)
    if not items or np.unique(ratings[~np.isnan(ratings)]).size < 2:
        return None
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement="nominal"))


def count_tokens(records: Collection[Mapping[str, Any]], prices: Prices | None) -> dict[str, Any]:
    """Tokens of stored answers, their cost if prices are given, and how many answers the service did not count."""
    counted = [r for r in records if r["prompt_tokens"] is not None and r["completion_tokens"] is not None]
    prompt, completion = (sum(r[name] for r in counted) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "answers": len(records),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "answers_without_count": len(records) - len(counted),
        **({"cost": prices.of(prompt, completion)} if prices else {}),
    }


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
    prompt = round(sum(len(q.message) for q in todo) / rate) if rate else None
    found = {"questions": len(todo), "prompt_tokens": prompt, "completion_tokens": completion}
    cost = {"cost": prices.of(prompt, completion or 0)} if prices and prompt is not None else {}
    return {**found, "from_answers": bool(counted), **cost}
