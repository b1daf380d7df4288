"""From completions of the reference and of every policy and seed to one table of results. Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leftover.metrics import (
    bootstrap_interval,
    cut_to_equal_length,
    distinct_n,
    perplexity,
    rank_correlation,
    sampled_kl,
    win_rate,
    win_rate_at_equal_length,
)

Records = list[dict[str, Any]]


def summarise(seeds: dict[int, Records], reference: Records, metrics: dict[int, dict], decoding: str) -> dict[str, Any]:
    """One row of the result table: a policy over its seeds, on the prompts the reference completed too.

    Intervals are of means over prompts, the seeds averaged first, resampled by prompt family; the range over
    seeds stands beside them.
    """
    ours = {seed: _by_prompt(records, decoding) for seed, records in seeds.items()}
    theirs = _by_prompt(reference, decoding)
    for records in ours.values():
        _same_prompts(records, theirs)
    families = [record["family"] for record in theirs]
    row: dict[str, Any] = {"seeds": sorted(seeds), "prompts": len(theirs)}
    if "reward" in theirs[0]:
        by_seed = {seed: np.array([r["reward"] for r in records]) for seed, records in ours.items()}
        base = np.array([r["reward"] for r in theirs])
        mean = np.mean(list(by_seed.values()), axis=0)
        row["reward"] = bootstrap_interval(mean, families)._asdict()
        row["reward_by_seed"] = {seed: float(rewards.mean()) for seed, rewards in by_seed.items()}
        row["difference_from_reference"] = bootstrap_interval(mean - base, families)._asdict()
        row["win_rate"] = float(np.mean([win_rate(rewards, base) for rewards in by_seed.values()]))
        equal = [
            win_rate_at_equal_length(by_seed[s], base, _column(ours[s], "tokens"), _column(theirs, "tokens"))
            for s in ours
        ]
        total = sum(count for _, count in equal)
        wins = sum(rate * count for rate, count in equal if count)
        row["win_rate_at_equal_length"] = wins / total if total else None
        row["pairs_of_equal_length"] = total
        for name in theirs[0]:
            if name.startswith(("reward/", "judge/")):
                scores = np.mean([_column(records, name) for records in ours.values()], axis=0)
                row[name] = bootstrap_interval(scores, families)._asdict()
    if "ended" in theirs[0]:
        row["unended"] = 1 - _mean([np.mean(_column(r, "ended")) for r in ours.values()])
    row["reward_length_correlation"] = reward_length_correlation([r for records in ours.values() for r in records])
    row["length"] = _mean([np.mean(_column(r, "tokens")) for r in ours.values()])
    for n in (1, 2, 3):
        row[f"distinct_{n}"] = _mean([distinct_n(_texts(r), n) for r in ours.values()])
    row["distinct_2_relative"] = _relative_diversity([_texts(r) for r in ours.values()], _texts(theirs))
    row["own_perplexity_under_reference"] = _mean([_perplexity(r, "reference_logprob") for r in ours.values()])
    if "base_logprob" in theirs[0]:
        row["own_perplexity_under_base"] = _mean([_perplexity(r, "base_logprob") for r in ours.values()])
    if decoding == "sampled":
        kl = np.mean([sampled_kl(_column(r, "logprob"), _column(r, "reference_logprob")) for r in ours.values()], 0)
        row["kl"] = bootstrap_interval(kl, families)._asdict()
    for name in ("perplexity", "logratio/rank_correlation", "logratio/pair_accuracy"):
        found = [m[name] for m in metrics.values() if name in m]
        if found:
            row[{"perplexity": "perplexity_of_test_completions"}.get(name, name)] = _mean(found)
            row[f"{name} by seed"] = found
    return row


def reward_length_correlation(records: list[dict[str, Any]]) -> float | None:
    """Rank correlation of reward and tokens over completions; None where there are no rewards, or no spread."""
    scored = [record for record in records if "reward" in record]
    found = rank_correlation([r["tokens"] for r in scored], [r["reward"] for r in scored])
    return found if found == found else None


def by_source(seeds: dict[int, Records], decoding: str) -> dict[str, dict[str, Any]]:
    """The rewards and judges of `summarise` for every source of test prompts alone; empty where there is but one."""
    ours = [_by_prompt(records, decoding) for records in seeds.values()]
    sources = sorted({str(record.get("source")) for record in ours[0]})
    found: dict[str, dict[str, Any]] = {}
    for source in sources if len(sources) > 1 else ():
        inside = [[r for r in records if str(r.get("source")) == source] for records in ours]
        families = [record["family"] for record in inside[0]]
        names = [name for name in inside[0][0] if name == "reward" or name.startswith(("reward/", "judge/"))]
        means = {name: np.mean([_column(records, name) for records in inside], axis=0) for name in names}
        found[source] = {"prompts": len(families)}
        found[source] |= {name: bootstrap_interval(mean, families)._asdict() for name, mean in means.items()}
    return found


def compare(
    ours: dict[int, Records], theirs: dict[int, Records], decoding: str, measure: str = "reward"
) -> dict[str, Any] | None:
    """The paired difference of two policies' means, prompt by prompt, averaged over the seeds they share.

    `measure`: the reward, or the column of a component or a judge; None is returned where it was not measured.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [(_by_prompt(ours[s], decoding), _by_prompt(theirs[s], decoding)) for s in seeds]
    if not pairs or measure not in pairs[0][0][0]:
        return None
    for a, b in [*pairs, (pairs[0][0], pairs[-1][0])]:
        _same_prompts(a, b)
    differences = [_column(a, measure) - _column(b, measure) for a, b in pairs]
    families = [record["family"] for record in pairs[0][0]]
    return {
        "difference": bootstrap_interval(np.mean(differences, axis=0), families)._asdict(),
        "by_seed": {seed: float(d.mean()) for seed, d in zip(seeds, differences, strict=True)},
        "win_rate": float(np.mean([win_rate(_column(a, measure), _column(b, measure)) for a, b in pairs])),
    }


def against_data(seeds: dict[int, Records], data: dict[int, list[float]], decoding: str) -> dict[str, Any]:
    """A policy over its seeds against the data's own completions, on the prompts (`data`: group -> their rewards).

    A prompt with several scored completions counts once: its win rate is the mean over them, its difference that from
    their mean reward. Empty where nothing can be compared.
    """
    ours = [_by_prompt(records, decoding) for records in seeds.values()]
    ours = [[record for record in records if data.get(record["group"])] for records in ours]
    if not ours or not ours[0] or "reward" not in ours[0][0]:
        return {}
    for records in ours:
        _same_prompts(records, ours[0])
    theirs = [data[record["group"]] for record in ours[0]]
    rewards = np.mean([_column(records, "reward") for records in ours], axis=0)
    wins = [
        win_rate([record["reward"]] * len(others), others)
        for records in ours
        for record, others in zip(records, theirs, strict=True)
    ]
    difference = rewards - np.array([np.mean(others) for others in theirs])
    return {
        "win_rate_against_data": _mean(wins),
        "difference_from_data": bootstrap_interval(difference, [r["family"] for r in ours[0]])._asdict(),
        "prompts_with_data_reward": len(theirs),
    }


def describe_data(rows: Records) -> dict[str, Any]:
    """The row of the data's own completions in the result table, one completion a prompt.

    `rows` [prompts]: `text`, `tokens`, `family`, and `rewards`, the scores of all of the prompt's completions.
    """
    scored = [row for row in rows if row["rewards"]]
    found: dict[str, Any] = {"seeds": [], "prompts": len(rows), "length": float(_column(rows, "tokens").mean())}
    if scored:
        means = [float(np.mean(row["rewards"])) for row in scored]
        found["reward"] = bootstrap_interval(means, [row["family"] for row in scored])._asdict()
    return found | {f"distinct_{n}": distinct_n(_texts(rows), n) for n in (1, 2, 3)}


def _same_prompts(ours: Records, theirs: Records) -> None:
    if [r["group"] for r in ours] != [r["group"] for r in theirs]:
        raise ValueError("paired statistics need completions of the same prompts")


def _by_prompt(records: Records, decoding: str) -> Records:
    return sorted((r for r in records if r["decoding"] == decoding), key=lambda r: r["group"])


def _column(records: Records, name: str) -> np.ndarray:
    return np.array([record[name] for record in records], np.float64)


def _relative_diversity(ours: Sequence[list[str]], reference: list[str]) -> float | None:
    """distinct-2 over the reference's, both cut to the shorter of the two for every prompt; mean over seeds.

    A text cut short holds fewer n-grams, which are more often distinct: only texts of one length can be compared. None
    where the reference has no pair of words left.
    """
    ratios = []
    for texts in ours:
        own, theirs = (distinct_n(cut, 2) for cut in cut_to_equal_length([texts, reference]))
        ratios.append(own / theirs if theirs else np.nan)
    return None if np.isnan(ratios).any() else _mean(ratios)


def _texts(records: Records) -> list[str]:
    return [record["text"] for record in records]


def _perplexity(records: Records, column: str) -> float:
    return perplexity(float(_column(records, column).sum()), int(_column(records, "tokens").sum()))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
