"""Hyper-parameters: every method gets as many trials, and the best on the selection prompts is chosen."""

import logging
from typing import Any

from leftover.commands.compare.methods import Entry, declared_trials, with_trial
from leftover.errors import UserError
from leftover.recipe.files import load_yaml
from leftover.recipe.sections import Recipe
from leftover.recipe.training_fields import check_policy
from leftover.runs.names import policy_artifact, policy_folder
from leftover.runs.run import Run
from leftover.training.run import log_files, model_files, policy_key
from leftover.training.settings import training_args

log = logging.getLogger(__name__)

Trials = dict[str, list[dict[str, Any]]]


def read_grid(options: tuple[str, ...], recipe: Recipe) -> str | dict[str, Any]:
    """`--grid`, or else the recipe's: none, declared, method -> trials, or {"*": trials of every method}."""
    if not options:
        return recipe.compare.grid
    if options in (("none",), ("declared",)):
        return options[0]
    trials: list[dict[str, Any]] = [{}]
    for option in options:
        key, separator, values = option.partition("=")
        listed = values.split(",")
        if not separator or not all(value.strip() for value in listed):
            raise UserError(f"--grid takes none, declared, or KEY=VALUE,VALUE,..., got '{option}'")
        trials = [trial | {key: load_yaml(value)} for trial in trials for value in listed]
    return {"*": trials}


def make_trials(entries: list[Entry], grid: str | dict[str, Any]) -> Trials:
    """Method -> its trials; empty without a grid. Raises UserError if methods would get unequal numbers of trials."""
    if grid == "none":
        return {}
    if grid == "declared":
        return {entry.name: declared_trials(entry) for entry in entries}
    assert isinstance(grid, dict)
    unknown = grid.keys() - {entry.name for entry in entries} - {"*"}
    if unknown:
        log.info("compare: the grid of %s is not used: not compared here", ", ".join(sorted(unknown)))
    trials = {e.name: list(grid.get(e.name, grid.get("*")) or declared_trials(e)) for e in entries}
    counts = {name: len(listed) for name, listed in trials.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"compare.grid: every method gets as many trials as the others, found {found} (methods without an entry "
            "have the declared grid)"
        )
    return trials


def trial_policy(name: str, number: int) -> str:
    """The policy, and below `policies/` the folder, of one trial."""
    return f"{name}/trial-{number}"


def trial_policies(entries: list[Entry], trials: Trials, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every trial as a policy of the recipe. Raises UserError for a setting that its method does not have."""
    policies = {}
    for entry in entries:
        for i, trial in enumerate(trials[entry.name]):
            fields = with_trial(entry, trial, shared)
            check_policy(fields, shared, f"compare: the grid of '{entry.name}'")
            policies[trial_policy(entry.name, i)] = fields
    return policies


def choose(run: Run, name: str, trials: list[dict[str, Any]], seed: int) -> tuple[int | None, list[dict[str, Any]]]:
    """The trial whose kept checkpoint did best on the selection prompts, ties to the earlier; and what all did.

    None if no trial was finished. The recipe of `run` has the trials as its policies.
    """
    facts = [run.manifest.facts(policy_artifact(trial_policy(name, i), seed)) for i in range(len(trials))]
    record: list[dict[str, Any]] = [
        {"settings": trial, "selection": found.get("best_metric"), "best_step": found.get("best_step")}
        for trial, found in zip(trials, facts, strict=True)
    ]
    finished = [i for i, trial in enumerate(record) if trial["selection"] is not None]
    if not finished:
        return None, record
    higher = training_args(run, trial_policy(name, finished[0]), seed).greater_is_better
    return (max if higher else min)(finished, key=lambda i: record[i]["selection"]), record


def adopt(run: Run, trial: str, name: str, seed: int) -> None:
    """Make a finished trial the policy `name` of its seed: it was trained from the same rows by the same settings."""
    manifest, key = run.manifest, policy_key(run, name, seed)
    artifact, tried = policy_artifact(name, seed), policy_artifact(trial, seed)
    source, target = (policy_folder(run.folder, policy, seed) for policy in (trial, name))
    done = manifest.status(artifact, key).finished or not manifest.status(tried, key).finished
    if done or not any(source.glob("*.safetensors")):
        return
    manifest.begin(artifact, key, lambda: run.discard(target))
    run.discard(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    manifest.finish(
        artifact, wrote=model_files(target), logs=log_files(target), **manifest.facts(tried), cost=manifest.cost(tried)
    )
