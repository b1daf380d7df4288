"""From completions of the reference and of every policy and seed to one table of results. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from leftover.evaluation.measures import part_names
from leftover.metrics import (
    FEW_CLUSTERS,
    Numbers,
    bootstrap_interval,
    cut_to_equal_length,
    distinct_n,
    mean_of_known,
    perplexity,
    rank_correlation,
    sampled_kl,
    win_rate,
    win_rate_at_equal_length,
)
from leftover.runs.records import (
    ORIGIN,
    SAMPLER_COLUMNS,
    CompletionRecord,
    Difference,
    IntervalRecord,
    Records,
    ResultRow,
)


class DataRecord(TypedDict):
    """The data's own completion of a test prompt."""

    group: int
    family: int
    text: str
    tokens: int
    rewards: list[float]  # of all completions that the data has of the prompt


def summarise(
    seeds: dict[int, Records], reference: Records, metrics: dict[int, dict], decoding: str, temperature: float = 1.0
) -> ResultRow:
    """One row of the result table: a policy over its seeds, on the reference's prompts.

    Intervals are of means over prompts, the seeds averaged first, resampled by prompt family. `temperature`: of the
    sampled completions; records that lack their log-probabilities at it get no KL. Completions without a reward
    (`evaluate.unfinished: drop`) are in no mean of rewards, and their prompts in no paired comparison of these.
    """
    theirs = _by_prompt(reference, decoding)
    ours = {seed: _by_prompt(records, decoding) for seed, records in seeds.items()}
    every = list(ours.values())
    _check_same_prompts(theirs, *every)
    row: ResultRow = {"seeds": sorted(seeds), "prompts": len(theirs)}
    if any(record.get("reward") is not None for records in every for record in records):
        row |= _rewards(ours, theirs)
    if "ended" in theirs[0]:
        row["unended"] = 1 - _mean([np.mean(_column(records, "ended")) for records in every])
    row["reward_length_correlation"] = reward_length_correlation([record for records in every for record in records])
    row["length"] = _mean([np.mean(_column(records, "tokens")) for records in every])
    row["length_ratio"] = row["length"] / _mean(_column(theirs, "tokens"))
    texts = [_texts(records) for records in every]
    if empty := _mean([float(np.mean([not text.strip() for text in of_seed])) for of_seed in texts]):
        row["empty"] = empty
    row |= {f"distinct_{n}": _mean([distinct_n(own, n) for own in texts]) for n in (1, 2, 3)}
    row["distinct_2_relative"] = _relative_diversity(texts, _texts(theirs))
    for model in ("reference", "base"):
        if all(f"{model}_logprob" in records[0] for records in (theirs, *every)):
            row[f"own_perplexity_under_{model}"] = _mean([_perplexity(r, f"{model}_logprob") for r in every])
    own, start = SAMPLER_COLUMNS if temperature != 1 else ("logprob", "reference_logprob")
    if decoding == "sampled" and own in theirs[0]:
        kl = [sampled_kl(_column(records, own), _column(records, start)) for records in every]
        row["kl"] = _interval(kl, theirs)
        origin = ORIGIN if temperature == 1 else f"sampler_{ORIGIN}"
        if origin in every[0][0]:
            kl = [sampled_kl(_column(records, own), _column(records, origin)) for records in every]
            row["kl_to_origin"] = _interval(kl, theirs)
    for name in ("perplexity", "logratio/rank_correlation", "logratio/pair_accuracy"):
        if found := [of_seed[name] for of_seed in metrics.values() if name in of_seed]:
            mean = _mean(np.array(found, np.float64))  # a number that was not finite is read back as None
            row["perplexity_of_test_completions" if name == "perplexity" else name] = mean
            known = [of_seed[f"{name} interval"] for of_seed in metrics.values() if f"{name} interval" in of_seed]
            if len(known) == len(found):  # on the same rows: the mean of their ends is not too narrow
                row[name] = {key: _mean([one[key] for one in known]) for key in known[0]} | {"mean": mean}
            row[f"{name} by seed"] = found
    return row


def _rewards(ours: dict[int, Records], theirs: Records) -> ResultRow:
    base, base_tokens = _column(theirs, "reward"), _column(theirs, "tokens")
    by_seed = {seed: _column(records, "reward") for seed, records in ours.items()}
    rewards = list(by_seed.values())
    equal = [win_rate_at_equal_length(r, base, _column(ours[s], "tokens"), base_tokens) for s, r in by_seed.items()]
    pairs = sum(count for _, count in equal)
    means = {seed: float(mean_of_known(of_seed)) for seed, of_seed in by_seed.items()}
    names = [*part_names(theirs[0]), *(["raw_reward"] if "raw_reward" in theirs[0] else [])]
    return {
        "reward": _interval(rewards, theirs),
        "reward_by_seed": {seed: mean for seed, mean in means.items() if not np.isnan(mean)},
        "difference_from_reference": _interval([mean_of_known(rewards, 0) - base], theirs),
        "win_rate": float(mean_of_known([win_rate(of_seed, base) for of_seed in rewards])),
        "win_rate_at_equal_length": sum(rate * count for rate, count in equal if count) / pairs if pairs else None,
        "pairs_of_equal_length": pairs,
        **_intervals(list(ours.values()), names),
    }


def reward_length_correlation(records: Sequence[CompletionRecord]) -> float | None:
    """Rank correlation of reward and tokens over completions; None if there are no rewards, or no spread."""
    scored = [(record["tokens"], reward) for record in records if (reward := record.get("reward")) is not None]
    found = rank_correlation([tokens for tokens, _ in scored], [reward for _, reward in scored])
    return found if found == found else None


def by_source(seeds: dict[int, Records], decoding: str) -> dict[str, ResultRow]:
    """The rewards and judges of `summarise` for each source of test prompts; empty if there is only one."""
    ours = [_by_prompt(records, decoding) for records in seeds.values()]
    sources = sorted({str(record.get("source")) for record in ours[0]})
    found: dict[str, ResultRow] = {}
    for source in sources if len(sources) > 1 else ():
        inside = [[r for r in records if str(r.get("source")) == source] for records in ours]
        names = [name for name in ("reward", *part_names(inside[0][0])) if name in inside[0][0]]
        found[source] = {"prompts": len(inside[0]), **_intervals(inside, names)}
    return found


def compare(
    ours: dict[int, Records], theirs: dict[int, Records], decoding: str, measure: str = "reward"
) -> Difference | None:
    """The paired difference of two policies' means, prompt by prompt, averaged over the seeds they share.

    Returns None if the `measure` (the reward, a component or a judge) was not measured, or on no prompt of both.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [(_by_prompt(ours[s], decoding), _by_prompt(theirs[s], decoding)) for s in seeds]
    if not pairs or measure not in pairs[0][0][0]:
        return None
    _check_same_prompts(*(records for pair in pairs for records in pair))
    columns = [(_column(a, measure), _column(b, measure)) for a, b in pairs]
    differences = [a - b for a, b in columns]
    if np.isnan(differences).all():
        return None
    by_seed = {seed: float(mean_of_known(d)) for seed, d in zip(seeds, differences, strict=True)}
    return {
        "difference": _interval(differences, pairs[0][0]),
        "by_seed": {seed: mean for seed, mean in by_seed.items() if not np.isnan(mean)},
        "win_rate": float(mean_of_known([win_rate(a, b) for a, b in columns])),
    }


def against_data(seeds: dict[int, Records], data: dict[int, list[float]], decoding: str) -> ResultRow:
    """A policy over its seeds against the data's own completions; empty if nothing can be compared.

    Args:
        data: prompt -> the rewards of its completions in the data. A prompt with several counts once: its win rate is
            the mean over them, its difference is from their mean.
    """
    ours = [[r for r in _by_prompt(records, decoding) if data.get(r["group"])] for records in seeds.values()]
    if not ours or not ours[0] or "reward" not in ours[0][0]:
        return {}
    _check_same_prompts(*ours)
    rewards = mean_of_known([_column(records, "reward") for records in ours], 0)
    theirs = [np.mean(data[record["group"]]) for record in ours[0]]
    of = [(r["reward"], data[r["group"]]) for records in ours for r in records]
    return {
        "win_rate_against_data": float(mean_of_known([win_rate(np.full(len(d), r, float), d) for r, d in of])),
        "difference_from_data": _interval([rewards - theirs], ours[0]),
        "prompts_with_data_reward": len(theirs),
    }


def describe_data(rows: Sequence[DataRecord]) -> ResultRow:
    """The row of the data's own completions in the result table."""
    found: ResultRow = {"seeds": [], "prompts": len(rows), "length": float(_column(rows, "tokens").mean())}
    if scored := [row for row in rows if row["rewards"]]:
        found["reward"] = _interval([np.array([np.mean(row["rewards"]) for row in scored])], scored)
    return found | {f"distinct_{n}": distinct_n(_texts(rows), n) for n in (1, 2, 3)}


def _check_same_prompts(first: Records, *others: Records) -> None:
    groups = [record["group"] for record in first]
    if any([record["group"] for record in records] != groups for records in others):
        raise ValueError("paired statistics need completions of the same prompts")


def _by_prompt(records: Records, decoding: str) -> Records:
    return sorted((r for r in records if r["decoding"] == decoding), key=lambda r: r["group"])


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], np.float64)


def _interval(seeds: Sequence[np.ndarray], records: Sequence[Mapping[str, Any]]) -> IntervalRecord:
    """Of the mean over seeds, each with one number a record, or NaN; of some prompts only with their number."""
    values = mean_of_known(seeds, 0)
    known = ~np.isnan(values)
    families = [record["family"] for record, counts in zip(records, known, strict=True) if counts]
    found = interval_record(values[known], families)
    if not known.all():
        found["prompts"] = int(known.sum())
    return found


def interval_record(
    values: Numbers, families: Sequence, limits: tuple[float, float] = (-np.inf, np.inf)
) -> IntervalRecord:
    """`bootstrap_interval` as JSON holds it; of too few families with their number."""
    mean, low, high = bootstrap_interval(values, families, limits=limits)
    found: IntervalRecord = {"mean": mean, "low": low, "high": high}
    if (count := len(set(families))) < FEW_CLUSTERS:
        found["families"] = count
    return found


def _intervals(seeds: Sequence[Records], names: Sequence[str]) -> dict[str, IntervalRecord]:
    return {name: _interval([_column(records, name) for records in seeds], seeds[0]) for name in names}


def _relative_diversity(ours: Sequence[list[str]], reference: list[str]) -> float | None:
    """distinct-2 over the reference's, mean over seeds; None if the reference has no pair of words left.

    Shorter texts have fewer repeated n-grams, so both are cut to the shorter one for every prompt.
    """
    ratios = []
    for texts in ours:
        own, theirs = (distinct_n(cut, 2) for cut in cut_to_equal_length([texts, reference]))
        ratios.append(own / theirs if theirs else np.nan)
    return None if np.isnan(ratios).any() else _mean(ratios)


def _texts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [record["text"] for record in records]


def _perplexity(records: Records, column: str) -> float:
    return perplexity(float(_column(records, column).sum()), int(_column(records, "tokens").sum()))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values))
