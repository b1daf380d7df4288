"""From the files of a finished comparison to its numbers: nested for JSON, and flat rows for tables."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from leftover.commands.compare.jobs import Job
from leftover.evaluation.gather import REFERENCE, gather_tables
from leftover.evaluation.measures import MEASURES, excludes_zero, part_names
from leftover.evaluation.statistics import compare
from leftover.runs.names import decodings
from leftover.runs.records import BySeed, Difference, ResultRow
from leftover.runs.run import Run

RULE = (
    "**Bold**: the highest, if the 95 % interval of its paired difference to the next highest excludes 0 and every "
    "seed agrees. <u>Underlined</u>: the second highest, if the first is bold and it beats the third in the same way. "
    "Otherwise, and of fewer than 8 prompt families, nothing is marked: the rows do not tell the methods apart. "
    "Differences are paired by prompt, averaged over the seeds that both have, and resampled by prompt family: "
    "intervals speak of other prompts, the range over seeds of other runs."
)


def gather(run: Run, failed: dict[Job, str]) -> dict[str, Any]:
    """Results of every policy over the seeds that were finished, of the reference and of the data's own completions."""
    lost = {(job.policy, job.seed) for job in failed}
    seeds = {p: [s for s in run.recipe.seeds if (p, s) not in lost] for p in run.recipe.policies}
    results, records = gather_tables(run, {policy: finished for policy, finished in seeds.items() if finished})
    # The reference is one model: it stands beside every seed.
    rivals = records | {REFERENCE: dict.fromkeys(run.recipe.seeds, records[REFERENCE][run.seed])}
    for decoding in decodings(results):
        table = results[decoding]["table"]
        results[decoding] = {
            "table": table,
            "marks": _marks(rivals, table, decoding),
            "lead": _lead(rivals, table, decoding),
        }
    return results | {"seeds": run.recipe.seeds, "failed": {str(job): said for job, said in failed.items()}}


def _marks(rivals: BySeed, table: Mapping[str, ResultRow], decoding: str) -> dict[str, dict[str, str]]:
    """Measure -> which rival is marked best and second, for every measure that is taken prompt by prompt."""

    def of(measure: str) -> dict[str, str]:
        means = {name: table[name][measure]["mean"] for name in rivals if measure in table[name]}
        return marks(means, lambda name, other: compare(rivals[name], rivals[other], decoding, measure))

    reference = table[REFERENCE]
    return {measure: of(measure) for measure in ("reward", *part_names(reference)) if measure in reference}


def _lead(rivals: BySeed, table: Mapping[str, ResultRow], decoding: str) -> Difference | None:
    """The highest reward minus the next; None of fewer than two."""
    ranked = sorted((n for n in rivals if "reward" in table[n]), key=lambda name: -table[name]["reward"]["mean"])
    return compare(rivals[ranked[0]], rivals[ranked[1]], decoding) if len(ranked) > 1 else None


def marks(means: dict[str, float], difference: Callable[[str, str], Difference | None]) -> dict[str, str]:
    """`best` and `second` by name, after RULE.

    Args:
        means: name -> mean; higher is better.
        difference: (name, other) -> `statistics.compare` of the two: the paired interval of name minus other, and
            the differences by seed; None if they were not compared, which marks nothing.
    """
    ranked = sorted(means, key=lambda name: -means[name])
    found: dict[str, str] = {}
    for mark, (name, after) in zip(("best", "second"), pairwise(ranked), strict=False):
        compared = difference(name, after)
        if compared is None or not excludes_zero(compared["difference"]):
            break
        if not min(compared["difference"]["low"], *compared["by_seed"].values()) > 0:
            break
        found[name] = mark
    return found


def flat_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A dictionary of numbers for each method and decoding, the rows of comparison.csv; the primary decoding first."""
    return [
        {"method": name, "decoding": decoding}
        | _flat(row, results["training"].get(name, {}))
        | {f"marked {measure}": by.get(name, "") for measure, by in results[decoding]["marks"].items()}
        for decoding in decodings(results)
        for name, row in results[decoding]["table"].items()
    ]


def _flat(row: ResultRow, runs: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": " ".join(map(str, row["seeds"])) if runs else ""}
    for name in (*MEASURES, *part_names(row)):
        if isinstance(row.get(name), dict):
            found[name] = row[name]["mean"]
            found |= {f"{name} {key}": number for key, number in row[name].items() if key != "mean"}
    by_seed = row.get("reward_by_seed") or {}
    if runs and by_seed:
        found |= {"reward lowest seed": min(by_seed.values()), "reward highest seed": max(by_seed.values())}
    found |= {name: row[name] for name in MEASURES if row.get(name) is not None and name not in found}
    return found | training_cost(runs)


_MEANS = ("trained_tokens", "rollout_tokens", "selected_rows", "effective_sample_size", "seconds", "rollout_seconds")


def training_cost(runs: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The cost of the runs of one method: means over seeds, the maximum for memory; empty without runs."""

    def known(fact: str) -> list[Any]:
        return [facts[fact] for facts in runs.values() if facts.get(fact) is not None]

    found = {"updates": known("steps")} | {fact: known(fact) for fact in _MEANS}
    cost = {name: float(np.mean(values)) for name, values in found.items() if values}
    if peaks := known("peak_memory"):
        cost["peak_memory_bytes"] = max(peaks)
    if resumed := len(known("resumed_at")):
        cost["resumed"] = resumed
    return cost
