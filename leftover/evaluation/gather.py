"""The results of a run, gathered from its folder: what `results.json` holds."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.evaluation.statistics import DataRecord, against_data, by_source, compare, describe_data, summarise
from leftover.monitoring.finite import plain
from leftover.prepare.readers import test_rows, unique_prompts
from leftover.recipe.sections import Recipe
from leftover.rewards import learner
from leftover.rewards.independence import dependent_judges, fitted_rewards, idle_scorers
from leftover.runs.finished import FinishedRun
from leftover.runs.names import (
    DECODINGS,
    decodings,
    evaluation_artifact,
    policy_artifact,
    policy_subject,
    read_completions,
    read_metrics,
)
from leftover.runs.records import BySeed
from leftover.runs.run import Run
from leftover.store.manifest import Manifest
from leftover.store.table import Table

DATA, REFERENCE = "data", "reference"


def gather(run: Run) -> dict[str, Any]:
    """The content of results.json, from the files of the run only."""
    policies = list(run.recipe.policies)
    results, records = gather_tables(run, dict.fromkeys(policies, run.recipe.seeds))
    return plain({"name": run.recipe.name, "main": policies[0]} | _compared(results, records, policies))


def _compared(results: dict[str, Any], records: BySeed, policies: Sequence[str]) -> dict[str, Any]:
    """The results, with the first policy against every other and all subjects by source, for every decoding."""
    main, *controls = policies
    for decoding in decodings(results):
        results[decoding] |= {
            "main_against": {name: compare(records[main], records[name], decoding) for name in controls},
            "by_source": {name: by_source(seeds, decoding) for name, seeds in records.items()},
        }
    return results


def gather_tables(run: Run, seeds: Mapping[str, Iterable[int]]) -> tuple[dict[str, Any], BySeed]:
    """What results.json and comparison.json share, and its completions; `seeds`: policy -> those evaluated."""
    tables, records = _tables(run.recipe, run.folder, run.table, seeds)
    return {
        "name": run.recipe.name,
        "primary": run.recipe.evaluate.primary,
        "can_score_new_completions": run.reward.scores_new_completions,
        "prepare": run.noted,
        "scoring_caveats": scoring_caveats(run),
        "training": {p: {s: run.manifest.facts(policy_artifact(p, s)) for s in of} for p, of in seeds.items()},
    } | tables, records


def gather_unfinished(run: FinishedRun) -> dict[str, Any] | None:
    """What results.json would hold if it were about the subjects that are evaluated; None if no policy is.

    Nothing is loaded that the folder does not hold: the rewards, whose code may be anybody's, stay closed.
    """
    recipe = run.recipe
    evaluated = {
        p: [s for s in recipe.seeds if run.is_evaluated(policy_subject(p, s), policy_artifact(p, s))]
        for p in recipe.policies
    }
    seeds = {policy: of for policy, of in evaluated.items() if of}
    if not seeds or not run.is_evaluated(REFERENCE):
        return None
    tables, records = _tables(recipe, run.folder, run.table, seeds)
    results = {
        "name": recipe.name,
        "main": next(iter(seeds)),
        "primary": recipe.evaluate.primary,
        "can_score_new_completions": any("reward" in record for record in records[REFERENCE][recipe.seed]),
        "prepare": run.prepared,
        "scoring_caveats": [],
        "training": {p: {s: run.manifest.facts(policy_artifact(p, s)) for s in of} for p, of in seeds.items()},
    } | tables
    return _compared(results, records, list(seeds))


def _tables(
    recipe: Recipe, folder: Path, rows: Table, seeds: Mapping[str, Iterable[int]]
) -> tuple[dict[str, dict[str, Any]], BySeed]:
    """Decoding -> the table of data, reference and these policies, and the completions that it is made of.

    The data's own completions of the test prompts are there if they have rewards.

    With `unfinished`, unless that is score. A decoding that only some of them have, as policies of an earlier run may,
    is left out.
    """
    records = read_records(folder, seeds, recipe.seed)
    metrics = {name: {seed: read_metrics(folder, _subject(name, seed)) for seed in of} for name, of in records.items()}
    reference, temperature = records[REFERENCE][recipe.seed], recipe.evaluate.temperature
    data = data_completions(test_rows(recipe, rows))
    rewards = {row["group"]: row["rewards"] for row in data}
    tables: dict[str, Any] = {}
    for decoding in DECODINGS:
        if not all(any(r["decoding"] == decoding for r in s) for of in records.values() for s in of.values()):
            continue
        table = {DATA: describe_data(data)} if any(rewards.values()) else {}
        for name, of in records.items():
            row = summarise(of, reference, metrics[name], decoding, temperature)
            table[name] = row | against_data(of, rewards, decoding)
        tables[decoding] = {"table": table}
    return recipe.unfinished_key | tables, records


def data_completions(rows: list[dict[str, Any]]) -> list[DataRecord]:
    """The data's own completions of the test prompts: one text for each prompt, and the rewards of all."""
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


def read_records(folder: Path, seeds: Mapping[str, Iterable[Any]], reference_seed: int) -> BySeed:
    """What the reference and every policy wrote, by seed; the reference under the run's own seed.

    UserError if a file is not as it was written.
    """
    subjects = {REFERENCE: [reference_seed]} | {name: [int(seed) for seed in of] for name, of in seeds.items()}
    manifest = Manifest(folder)
    for subject in {_subject(name, seed) for name, of in subjects.items() for seed in of}:
        manifest.check(evaluation_artifact(subject))
    return {name: {s: read_completions(folder, _subject(name, s)) for s in of} for name, of in subjects.items()}


def _subject(name: str, seed: int) -> str:
    return REFERENCE if name == REFERENCE else policy_subject(name, seed)


def scoring_caveats(run: Run) -> list[str]:
    """What to know about the rewards and judges before believing them."""
    scorers = {f"reward {name}": r for name, r in run.reward.components.items()}
    scorers |= {f"judge {name}": j for name, j in (run.judges.components if run.judges else {}).items()}
    facts = {name: run.manifest.facts(name).get("facts", {}) for name, scorer in scorers.items() if learner(scorer)}
    earlier, source = [], run.recipe
    while source.reward.fitted_in is not None:  # of a later round these are the rounds before
        source = FinishedRun(source.reward.fitted_in).recipe
        earlier.append(source.data)
    return [*fitted_rewards(facts), *dependent_judges(run.recipe, earlier), *idle_scorers(facts)]
