"""The comparison, top to bottom: methods in, one prepared table, trials, runs, one table of results out."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftover import pipeline
from leftover.commands.compare.budget import Planned, applicable, check_scored, log_refused, plan_updates, with_policies
from leftover.commands.compare.gather import gather
from leftover.commands.compare.jobs import Job, run_jobs
from leftover.commands.compare.methods import Entry, resolve
from leftover.commands.compare.trials import Trials, adopt, choose, make_trials, read_grid, trial_policies, trial_policy
from leftover.commands.compare.write import write_comparison
from leftover.errors import UserError
from leftover.recipe.sections import Recipe
from leftover.runs.claim import claim, open_run
from leftover.runs.finished import FinishedRun
from leftover.runs.run import Run
from leftover.store.manifest import Manifest
from leftover.store.sealed import read_sealed
from leftover.training.settings import effective, policy_settings, training_args

log = logging.getLogger(__name__)

_DEFAULT_SEEDS = 3
_BEFORE_REFERENCE = "score"
FIRST = {"nll": {"objective": "nll"}}


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    methods: str | None = None  # comma-separated; default: the policies of the recipe
    seeds: int | None = None  # how many; default: the recipe's where it names several, else 3
    budget: str = "equal"  # or paper
    jobs: int = 1
    grid: tuple[str, ...] = ()  # none, declared, or KEY=VALUE,VALUE,...; default: the recipe's compare.grid


def seeds_of(recipe: Recipe, number: int | None) -> list[int]:
    """The recipe's seeds, continued by the integers after them or cut to `number`."""
    if number is None:
        number = len(recipe.seeds) if len(recipe.seeds) > 1 else _DEFAULT_SEEDS
    further = (seed for seed in range(recipe.seeds[0], recipe.seeds[0] + number) if seed not in recipe.seeds)
    return [*recipe.seeds, *further][:number]


def compare(recipe: Recipe, options: Options) -> tuple[dict[str, Any], dict[Job, str]]:
    """Prepare once, train every method with every seed, evaluate; what is finished already is reused.

    Writes comparison.md, .csv, .json and pictures into the run's folder. Returns the content of comparison.json, and
    the runs that failed with the ends of their logs. Raises UserError if no method can run or all runs failed.
    """
    if any((recipe.train | own).get("push_to_hub") for own in recipe.policies.values()):
        log.warning("compare: pushes no policy to the Hub: `leftover export RUN --policy NAME --push-to-hub ID` does")
    entries, seeds = resolve(options.methods, recipe), seeds_of(recipe, options.seeds)
    grid = read_grid(options.grid, recipe)
    if trials := make_trials(applicable(entries), grid):  # a faulty grid is refused before anything is computed
        with_policies(recipe, trial_policies(applicable(entries), trials, recipe.train))
    run = open_run(with_policies(recipe, FIRST, seeds))  # which methods apply is found out one by one
    try:
        return _compare(run, entries, seeds, grid, options)
    finally:
        run.close()


def _compare(
    run: Run, entries: list[Entry], seeds: list[int], grid: str | dict[str, Any], options: Options
) -> tuple[dict[str, Any], dict[Job, str]]:
    training_args(run, "nll", seeds[0])  # faulty settings that all share are refused first
    planned = prepare_methods(run, entries, options.budget)
    chosen = applicable(entries)
    trials = make_trials(chosen, grid)
    records = _tune(run, chosen, trials, options.jobs)
    chosen = applicable(entries)
    take(run, {entry.name: entry.fields for entry in chosen})
    for entry in chosen:
        if entry.name in records:
            adopt(run, trial_policy(entry.name, records[entry.name]["chosen"]), entry.name, seeds[0])
    jobs = [Job(None), *(Job(entry.name, seed) for seed in seeds for entry in chosen)]
    failed = run_jobs(run, jobs, options.jobs)
    if len(failed) >= len(jobs) - 1 or Job(None) in failed:
        raise UserError(f"compare: {len(failed)} of {len(jobs)} runs failed. {next(iter(failed.values()))}")
    results = gather(run, failed) | _settings(run.recipe, entries, planned, trials, records, options)
    results["num_runs"] = len(jobs) - 1
    _warn_of_lost(run.folder, results)
    write_comparison(FinishedRun(run.folder, run.recipe), results)
    return results, failed


def _warn_of_lost(folder: Path, results: dict[str, Any]) -> None:
    """Warn of methods and seeds that only the comparison before had, whose files are replaced."""
    path = folder / "comparison.json"
    before = read_sealed(path) or {"methods": {}, "seeds": []}
    gone = {what: [str(one) for one in before[what] if one not in results[what]] for what in ("methods", "seeds")}
    if lost := [f"{what} {', '.join(names)}" for what, names in gone.items() if names]:
        log.warning(
            "compare: comparison.md no longer shows %s; name them to have them back, without training",
            " and ".join(lost),
        )


def take(run: Run, policies: dict[str, dict[str, Any]], quiet: bool = True) -> None:
    """Make these the policies of the run, also for processes that read its folder.

    Then compute what they use: the reference and all constants of rows; `quiet`: without a line for each in the log.
    """
    run.recipe = with_policies(run.recipe, policies)
    claim(run)
    steps, progress = list(pipeline.STEPS), logging.getLogger(Manifest.__module__)
    progress.disabled = quiet
    try:
        for name in steps[steps.index(_BEFORE_REFERENCE) + 1 :]:
            pipeline.STEPS[name](run)
    finally:
        progress.disabled = False


def prepare_methods(run: Run, entries: list[Entry], budget: str) -> dict[str, Planned]:
    """Prepare the table and plan the updates; methods that it cannot serve are refused as early as possible."""
    pipeline.prepare(run, _BEFORE_REFERENCE)
    check_scored(run, entries)
    log_refused(entries)
    chosen = applicable(entries)
    take(run, {entry.name: entry.fields for entry in chosen}, quiet=False)
    planned = plan_updates(run, chosen, budget)
    log_refused(chosen)
    for entry in applicable(entries):
        plan = planned[entry.name]
        tokens = "on completions that it samples" if plan.tokens is None else f"of {plan.tokens:,} tokens in all"
        log.info("compare: %s takes %d updates a run, %s", entry.name, plan.updates, tokens)
    return planned


def _tune(run: Run, entries: list[Entry], trials: Trials, jobs: int) -> dict[str, dict[str, Any]]:
    """Train all trials with the first seed and give every method the settings of the best.

    No test prompt is read here: the score is that of the kept checkpoint on the selection prompts.
    """
    if not trials:
        return {}
    seed, shared = run.recipe.seeds[0], run.recipe.train
    policies = trial_policies(entries, trials, shared)
    take(run, policies)
    failed = run_jobs(run, [Job(policy, seed, evaluate=False) for policy in policies], jobs)
    records: dict[str, dict[str, Any]] = {}
    for entry in entries:
        number, record = choose(run, entry.name, trials[entry.name], seed)
        own = []
        for i, trial in enumerate(record):
            if said := failed.get(Job(trial_policy(entry.name, i), seed, evaluate=False)):
                trial["failed"] = said
                own.append(said)
        if number is None:
            entry.reason = f"all of its trials failed: {next(iter(own), 'none was scored')}"
            continue
        entry.fields = policies[trial_policy(entry.name, number)]
        records[entry.name] = {"chosen": number, "trials": record}
        log.info("compare: %s: trial %d of %d, %s", entry.name, number + 1, len(record), record[number]["settings"])
    return records


def _settings(
    recipe: Recipe, entries: list[Entry], planned: dict[str, Planned], trials: Trials, records: dict, options: Options
) -> dict[str, Any]:
    """What the comparison was made of, for comparison.json."""
    methods = {
        entry.name: {
            "source": entry.source,
            "settings": effective(policy_settings(recipe, entry.name)),
            "updates": planned[entry.name].updates,
            "planned_tokens": planned[entry.name].tokens,
            "selected_rows": planned[entry.name].selected_rows,
            "selected_share": planned[entry.name].share,
            **records.get(entry.name, {}),
        }
        for entry in applicable(entries)
    }
    return {
        "budget": options.budget,
        "num_trials": len(next(iter(trials.values()))) if trials else 1,
        "methods": methods,
        "not_applicable": {entry.name: entry.reason for entry in entries if entry.reason is not None},
    }
