"""From what checkpoints wrote to the numbers of a frontier: points, curves, the table, where methods over-optimise."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leftover.commands.compare.checkpoints import Checkpoints
from leftover.errors import UserError
from leftover.evaluation.frontier import BEST_OF_N, LEVELS, Curve, Resamples, best_of_n, over_optimised
from leftover.evaluation.gather import REFERENCE
from leftover.evaluation.measures import part_names
from leftover.metrics import mean_of_known, sampled_kl
from leftover.rewards.text import LengthReward
from leftover.runs.names import policy_subject
from leftover.runs.records import Records
from leftover.runs.run import Run

Numbers = dict[str, np.ndarray]  # measure -> [N], one for each prompt


def gather_curves(
    run: Run, strengths: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, list[int]]
) -> dict[str, Any]:
    """The part of frontier.json that is measured; `seeds`: policy -> those that were trained."""
    checkpoints = Checkpoints(run)
    points: dict[str, dict[int, dict[int, Numbers]]] = {}  # policy -> seed -> step
    groups: list[int] = []
    for policy in (policy for of_method in strengths.values() for policy in of_method):
        points[policy] = {}
        for seed in seeds[policy]:
            by_step = _by_step(checkpoints.read(policy_subject(policy, seed)))
            points[policy][seed] = {step: _numbers(records) for step, records in by_step.items()}
            found = [[record["group"] for record in records] for records in by_step.values()]
            groups = groups or found[0]
            if any(of_step != groups for of_step in found):
                raise UserError(f"{policy}: its checkpoints completed other prompts than those of other policies")
    samples, families = _samples(checkpoints.read(REFERENCE), groups)
    resamples, reference = Resamples(families), {name: mean_of_known(values, 1) for name, values in samples.items()}
    curves = {BEST_OF_N: best_of_n(samples)}
    for method, policies in strengths.items():
        over_seeds = [mean for policy in policies for mean in _over_seeds(points[policy])]
        if over_seeds:
            curves[method] = _curve(reference, over_seeds).pooled()
    measures = list(reference)
    return {
        "prompts": len(groups),
        "families": resamples.num_families,
        "levels": list(LEVELS),
        "measures": measures,
        "points": list(_rows(strengths, points, resamples)),
        "curves": {
            name: {"kl": _means(curve.kl)} | {measure: _means(values) for measure, values in curve.values.items()}
            for name, curve in curves.items()
        },
        "table": {
            measure: {name: [curve.at(level, measure, resamples) for level in LEVELS] for name, curve in curves.items()}
            for measure in measures
        },
        "over_optimised": {judge: _turns(curves, judge, resamples) for judge in _of_quality(run, measures)},
    }


def _of_quality(run: Run, measures: list[str]) -> list[str]:
    """The judges; not those that count words, since a shorter text is no worse one."""
    functions = run.judges.components if run.judges else {}
    lengths = {f"judge/{name}" for name, function in functions.items() if isinstance(function, LengthReward)}
    return [name for name in part_names(measures, "judge/") if name not in lengths]


def _turns(curves: Mapping[str, Curve], judge: str, resamples: Resamples) -> dict[str, Any]:
    turns = {name: over_optimised(curve, judge, resamples) for name, curve in curves.items()}
    return {name: turn._asdict() for name, turn in turns.items() if turn}


def _by_step(records: Records) -> dict[int, Records]:
    """The records of every step, in the order of their prompts."""
    found = defaultdict(list)
    for record in sorted(records, key=lambda record: record["group"]):
        found[record["step"]].append(record)
    return dict(sorted(found.items()))


def _column(records: Records, name: str) -> np.ndarray:
    return np.array([record.get(name) for record in records], np.float64)


def _numbers(records: Records) -> Numbers:
    kl = sampled_kl(_column(records, "logprob"), _column(records, "reference_logprob"))
    return {"kl": kl} | _measures(records)


def _measures(records: Records) -> Numbers:
    """Rewards, judges, and the length, by which a reward is bought first."""
    columns = {name: name for name in ("reward", *part_names(records[0], "judge/"))} | {"length": "tokens"}
    return {measure: _column(records, column) for measure, column in columns.items()}


def _samples(records: Records, groups: list[int]) -> tuple[Numbers, list[int]]:
    """The reference's measures, [N prompts, S samples], and the prompts' families."""
    by_group = defaultdict(list)
    for record in records:
        by_group[record["group"]].append(record)
    of_prompts = [_measures(by_group[group]) for group in groups]
    families = [by_group[group][0]["family"] for group in groups]
    return {name: np.array([numbers[name] for numbers in of_prompts]) for name in of_prompts[0]}, families


def _over_seeds(by_seed: Mapping[int, Mapping[int, Numbers]]) -> list[Numbers]:
    """The mean over seeds at every step that all of them have."""
    if not by_seed:
        return []
    first, *others = by_seed.values()
    return [
        {name: mean_of_known([values, *(other[step][name] for other in others)], 0) for name, values in of_step.items()}
        for step, of_step in first.items()
        if all(step in other for other in others)
    ]


def _curve(reference: Numbers, points: list[Numbers]) -> Curve:
    """The reference, whose KL to itself is 0, and the points."""
    kl = np.array([np.zeros_like(reference["reward"]), *(point["kl"] for point in points)])
    return Curve(kl, {name: np.array([own, *(point[name] for point in points)]) for name, own in reference.items()})


def _means(values: np.ndarray) -> list[float]:
    return mean_of_known(values, 1).tolist()


def _rows(
    strengths: Mapping[str, Mapping[str, Any]], points: Mapping[str, Any], resamples: Resamples
) -> Iterator[dict[str, Any]]:
    """A flat dictionary for each checkpoint, the rows of frontier.csv."""
    runs = [(m, policy, seed) for m, policies in strengths.items() for policy in policies for seed in points[policy]]
    for method, policy, seed in runs:
        for step, numbers in points[policy][seed].items():
            row = {"method": method, "policy": policy, **strengths[method][policy], "seed": seed, "step": step}
            for name, found in zip(numbers, resamples.means(np.array([*numbers.values()])).T, strict=True):
                if interval := resamples.interval(found):
                    row |= {name: interval["mean"], f"{name} low": interval["low"], f"{name} high": interval["high"]}
            yield row
