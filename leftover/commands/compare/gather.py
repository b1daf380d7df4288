"""From the files of a finished comparison to its numbers: nested for JSON, and flat rows for tables."""

from typing import Any

import numpy as np

from leftover.commands.compare.jobs import Job
from leftover.commands.compare.marks import marks
from leftover.evaluation.gather import scoring_caveats
from leftover.evaluation.results import Records, against_data, compare, describe_data, summarise
from leftover.prepare.readers import test_rows, unique_prompts
from leftover.runs.names import DECODINGS, policy_artifact, policy_subject, read_completions, read_metrics
from leftover.runs.run import Run
from leftover.store.manifest import read_json

BySeed = dict[str, dict[int, Records]]

DATA, REFERENCE = "data", "reference"


def gather(run: Run, failed: dict[Job, str]) -> dict[str, Any]:
    """Results of every policy over the seeds that were finished, of the reference and of the data's own completions."""
    lost = {(job.policy, job.seed) for job in failed}
    seeds = {p: [s for s in run.recipe.seeds if (p, s) not in lost] for p in run.recipe.policies}
    seeds = {policy: finished for policy, finished in seeds.items() if finished}
    records: BySeed = {
        p: {s: read_completions(run.folder, policy_subject(p, s)) for s in of} for p, of in seeds.items()
    }
    reference = read_completions(run.folder, REFERENCE)
    metrics = {p: {s: read_metrics(run.folder, policy_subject(p, s)) for s in of} for p, of in seeds.items()}
    data = _data_completions(test_rows(run.recipe, run.table))
    results: dict[str, Any] = {
        "name": run.recipe.name,
        "primary": run.recipe.evaluate.primary,
        "can_score_new_completions": run.reward.scores_new_completions,
        "seeds": run.recipe.seeds,
        "prepare": read_json(run.folder / "prepare.json"),
        "scoring_caveats": scoring_caveats(run),
        "training": {p: {s: run.manifest.facts(policy_artifact(p, s)) for s in of} for p, of in seeds.items()},
        "failed": {str(job): said for job, said in failed.items()},
    }
    rewards = {row["group"]: row["rewards"] for row in data}
    of_reference = {run.seed: reference}
    for decoding in DECODINGS:
        table = {DATA: describe_data(data)} if any(rewards.values()) else {}
        table[REFERENCE] = summarise(of_reference, reference, {run.seed: read_metrics(run.folder, REFERENCE)}, decoding)
        table[REFERENCE] |= against_data(of_reference, rewards, decoding)
        for policy, by_seed in records.items():
            table[policy] = summarise(by_seed, reference, metrics[policy], decoding)
            table[policy] |= against_data(by_seed, rewards, decoding)
        # The reference is one model: it stands beside every seed.
        rivals = records | {REFERENCE: dict.fromkeys(run.recipe.seeds, reference)}
        results[decoding] = {"table": table, "marks": _marks(rivals, table, decoding)}
    return results


def _data_completions(rows: list[dict[str, Any]]) -> Records:
    """The data's own completions of the test prompts: the text of one a prompt, the rewards of all."""
    rewards: dict[int, list[float]] = {row["group"]: [] for row in rows}
    for row in rows:
        if np.isfinite(row.get("reward", np.nan)):
            rewards[row["group"]].append(float(row["reward"]))
    return [
        {
            "group": row["group"],
            "family": row["family_id"],
            "text": row["completion"],
            "tokens": len(row["completion_ids"]),
            "rewards": rewards[row["group"]],
        }
        for row in unique_prompts(rows)
    ]


def _marks(rivals: BySeed, table: dict[str, Any], decoding: str) -> dict[str, dict[str, str]]:
    """Measure -> which rival is marked best and second, of every measure that is taken prompt by prompt."""
    measures = [m for m in table[REFERENCE] if m == "reward" or m.startswith(("reward/", "judge/"))]

    def of(measure: str) -> dict[str, str]:
        def difference(name: str, other: str) -> dict[str, Any] | None:
            return compare(rivals[name], rivals[other], decoding, measure)

        return marks({name: table[name][measure]["mean"] for name in rivals}, difference)

    return {measure: of(measure) for measure in measures}


def flat_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary of plain numbers a method and decoding, the content of comparison.csv; the primary one first."""
    order = (results["primary"], *(d for d in DECODINGS if d != results["primary"]))
    return [
        {"method": name, "decoding": decoding} | _flat(row, results["training"].get(name, {}))
        | {f"marked {m}": by.get(name, "") for m, by in results[decoding]["marks"].items()}
        for decoding in order
        for name, row in results[decoding]["table"].items()
    ]  # fmt: skip


_PLAIN = (
    "prompts", "win_rate", "win_rate_at_equal_length", "pairs_of_equal_length", "win_rate_against_data", "length",
    "unended", "distinct_1", "distinct_2", "distinct_3", "distinct_2_relative", "own_perplexity_under_base",
    "own_perplexity_under_reference", "perplexity_of_test_completions", "logratio/rank_correlation",
    "logratio/pair_accuracy",
)  # fmt: skip


def _flat(row: dict[str, Any], runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": " ".join(map(str, row["seeds"])) if runs else ""}
    intervals = ["reward", "difference_from_reference", "difference_from_data", "kl"]
    for name in [*intervals, *(n for n in row if n.startswith(("reward/", "judge/")))]:
        if isinstance(row.get(name), dict):
            found |= {name: row[name]["mean"], f"{name} low": row[name]["low"], f"{name} high": row[name]["high"]}
    by_seed = row.get("reward_by_seed") or {}
    if runs and by_seed:
        found |= {"reward lowest seed": min(by_seed.values()), "reward highest seed": max(by_seed.values())}
    found |= {name: row[name] for name in _PLAIN if row.get(name) is not None}
    return found | training_cost(runs)


_COSTS = (
    "trained_tokens",
    "rollout_tokens",
    "selected_rows",
    "effective_sample_size",
    "seconds",
    "rollout_seconds",
)


def training_cost(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What the runs of one method took: means over seeds, of memory the most."""
    if not runs:
        return {}
    facts = list(runs.values())
    found: dict[str, Any] = {"updates": _mean([f["steps"] for f in facts if f.get("steps") is not None])}
    for fact in _COSTS:
        found[fact] = _mean([f[fact] for f in facts if f.get(fact) is not None])
    peaks = [f["peak_memory"] for f in facts if f.get("peak_memory") is not None]
    found["peak_memory_bytes"] = max(peaks) if peaks else None
    found["resumed"] = sum("resumed_at" in f for f in facts) or None
    return {name: value for name, value in found.items() if value is not None}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
