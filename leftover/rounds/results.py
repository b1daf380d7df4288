"""What the rounds gave: every policy of every round on the same test prompts, against the first reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leftover.evaluation.gather import REFERENCE
from leftover.evaluation.statistics import compare, summarise
from leftover.monitoring.finite import plain
from leftover.prepare.readers import test_rows, unique_prompts
from leftover.recipe.needs import needs_of, offline_policies
from leftover.recipe.sections import Recipe
from leftover.rounds.recipes import rounds_of
from leftover.rounds.samples import artifact, samples_path
from leftover.runs.names import policy_artifact, policy_subject, read_completions, read_metrics
from leftover.runs.records import Records, ResultRow
from leftover.runs.run import Run
from leftover.store.files import read_lines

Chains = Mapping[str, Sequence[Run]]  # policy -> its rounds, from the first on


def gather(recipe: Recipe, chains: Chains) -> dict[str, Any]:
    """The content of rounds.json: one row a policy and round, and the first policy's last round against the others'."""
    primary, temperature = recipe.evaluate.primary, recipe.evaluate.temperature
    main, seed = recipe.main_policy, recipe.seeds[0]
    start = chains[main][0]
    reference = read_completions(start.folder, REFERENCE)
    families = {record["group"]: record["family"] for record in reference}
    asked = _prompts(start)
    reference = _paired(reference, families)
    rows: list[ResultRow] = [{"policy": REFERENCE} | summarise({seed: reference}, reference, {}, primary, temperature)]
    last: dict[str, Records] = {}
    for policy, runs in chains.items():
        for number, run in enumerate(runs, start=1):
            assert _prompts(run) == asked  # else nothing could be paired
            subject = policy_subject(policy, seed)
            last[policy] = _paired(read_completions(run.folder, subject), families)
            metrics = {"perplexity": read_metrics(run.folder, subject)["perplexity"]}
            row = summarise({seed: last[policy]}, reference, {seed: metrics}, primary, temperature)
            row.setdefault("kl_to_origin", row.get("kl"))
            rows.append({"policy": policy, "round": number} | row | _costs(policy, runs[:number], seed))
    against = {name: compare({seed: last[main]}, {seed: last[name]}, primary) for name in chains if name != main}
    return plain(
        {"name": recipe.name, "main": main, "primary": primary, **rounds_of(recipe).model_dump(), "rows": rows}
        | {"main_against": against, "off_policy": _off_policy(main, chains[main])}
    )


def _prompts(run: Run) -> list[str]:
    return [row["prompt"] for row in unique_prompts(test_rows(run.recipe, run.table))]


def _paired(records: Records, families: Mapping[int, int]) -> Records:
    """The records with the place of their prompt as its group: tables number the same prompts each in its own way."""
    places = {group: place for place, group in enumerate(sorted({record["group"] for record in records}))}
    in_order = [families[group] for group in sorted(families)]
    return [r | {"group": places[r["group"]], "family": in_order[places[r["group"]]]} for r in records]


def _costs(policy: str, runs: Sequence[Run], seed: int) -> ResultRow:
    """Completion tokens that were generated to train the policy of the last of `runs`, and seconds, of all rounds."""
    last = runs[-1]
    facts = last.manifest.facts(policy_artifact(policy, seed))
    tokens, seconds = facts.get("rollout_tokens", 0), 0.0
    with_value = policy in offline_policies(last.recipe) and "value" in needs_of(last.recipe, policy)
    for run in runs:
        names = [name for name in run.manifest.entries if not name.startswith(("policy ", "evaluation of ", "samples"))]
        names.append(policy_artifact(policy, seed))
        if run is not last:
            names.append(artifact(policy))
            tokens += run.manifest.facts(artifact(policy))["tokens"]
        if with_value:
            tokens += (run.noted.get("value") or {}).get("sampled_tokens", 0)
        costs = [run.manifest.cost(name) for name in names]
        costs += [run.table.manifest.cost(name) for name in run.table.manifest.entries]
        seconds += sum(cost.get("seconds") or 0.0 for cost in costs)
    return {"generated_tokens": tokens, "seconds": seconds}


def _off_policy(policy: str, runs: Sequence[Run]) -> dict[int, dict[int, float]]:
    """Round -> round before it -> mean log pi_ref(y|x) - log pi_sampler(y|x) of the rows that it sampled, in nats.

    Of the last ones the sampler is the reference, and this is 0 but for rounding.
    """
    found: dict[int, dict[int, float]] = {}
    for number, run in enumerate(runs[1:], start=2):
        table = run.table.open("rows", "tokens", "reference")
        for before, sampler in enumerate(runs[: number - 1], start=1):
            path = samples_path(sampler, policy)
            places = {
                f"{path}:{line}": row["sampler_logprob"]
                for line, row in enumerate(read_lines(path), start=1)
                if row["tokens_match"]
            }
            rows = [i for i, where in enumerate(table["where"]) if where in places]
            gaps = [
                float(np.sum(row["reference_logprobs"])) - places[row["where"]]
                for row in table.select(rows)
                if row["kept"]
            ]
            if gaps:
                found.setdefault(number, {})[before] = float(np.mean(gaps))
    return found
