"""The results of a run, gathered from its folder: what `results.json` holds."""

from typing import Any

from leftover.evaluation.results import by_source, compare, summarise
from leftover.rewards import learner
from leftover.rewards.independence import dependent_judges, idle_scorers
from leftover.runs.names import DECODINGS, policy_artifact, policy_subject, read_completions, read_metrics
from leftover.runs.run import Run
from leftover.store.manifest import read_json


def gather(run: Run) -> dict[str, Any]:
    """The content of results.json, from the files of the run alone."""
    policies = list(run.recipe.policies)
    seeds = run.recipe.seeds
    records = {p: {s: read_completions(run.folder, policy_subject(p, s)) for s in seeds} for p in policies}
    metrics = {p: {s: read_metrics(run.folder, policy_subject(p, s)) for s in seeds} for p in policies}
    reference = read_completions(run.folder, "reference")
    reference_metrics = {run.seed: read_metrics(run.folder, "reference")}
    results: dict[str, Any] = {
        "name": run.recipe.name,
        "main": run.recipe.main_policy,
        "primary": run.recipe.evaluate.primary,
        "can_score_new_completions": run.reward.scores_new_completions,
        "prepare": read_json(run.folder / "prepare.json"),
        "scoring_caveats": scoring_caveats(run),
        "training": {p: {s: run.manifest.facts(policy_artifact(p, s)) for s in seeds} for p in policies},
    }
    for decoding in DECODINGS:
        rows = {"reference": summarise({run.seed: reference}, reference, reference_metrics, decoding)}
        rows |= {p: summarise(records[p], reference, metrics[p], decoding) for p in policies}
        against = {p: compare(records[policies[0]], records[p], decoding) for p in policies[1:]}
        results[decoding] = {"table": rows, "main_against": against}
        all_records = {"reference": {run.seed: reference}} | records
        results[decoding]["by_source"] = {p: by_source(seeds, decoding) for p, seeds in all_records.items()}
    return results


def scoring_caveats(run: Run) -> list[str]:
    """What to know of the rewards and judges before believing them."""
    scorers = {f"reward {name}": r for name, r in run.reward.components.items()}
    scorers |= {f"judge {name}": j for name, j in (run.judges.components if run.judges else {}).items()}
    facts = {name: run.manifest.facts(name).get("facts", {}) for name, scorer in scorers.items() if learner(scorer)}
    return [*dependent_judges(run.recipe), *idle_scorers(facts)]
