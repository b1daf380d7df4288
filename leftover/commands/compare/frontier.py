"""`leftover compare --frontier`: every method at several strengths; all checkpoints are points of its curve."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from leftover.commands.compare.budget import Planned, applicable, with_policies
from leftover.commands.compare.curves import gather_curves
from leftover.commands.compare.jobs import Job, run_jobs
from leftover.commands.compare.methods import Entry, declared_strengths, resolve, with_trial
from leftover.commands.compare.run import FIRST, Options, prepare_methods, seeds_of, take
from leftover.commands.compare.trials import Trials, make_trials, read_grid
from leftover.commands.compare.write import write_frontier
from leftover.errors import UserError
from leftover.evaluation.gather import scoring_caveats
from leftover.monitoring.finite import plain
from leftover.recipe.files import read_yaml
from leftover.recipe.sections import Recipe
from leftover.recipe.training_fields import check_policy
from leftover.rewards import SumReward
from leftover.runs.claim import claim, open_run
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_artifact, slug
from leftover.runs.run import Run
from leftover.store.files import write_text
from leftover.store.manifest import Manifest, as_json
from leftover.training.settings import effective, policy_settings, settings_key, training_args

log = logging.getLogger(__name__)

Strengths = dict[str, dict[str, dict[str, Any]]]  # method -> policy -> what it changes of the method


def frontier(recipe: Recipe, options: Options) -> tuple[dict[str, Any], dict[Job, str]]:
    """Prepare once, train every method at every strength; what is finished already is reused.

    Writes frontier.md, .csv, .json and .svg into the run's folder, and report.html if that has results. Returns the
    content of frontier.json, and the runs that failed with the ends of their logs. Raises UserError if no method can
    run or all runs failed.
    """
    entries, seeds = resolve(options.methods, recipe), frontier_seeds(recipe, options)
    trials = make_strengths(applicable(entries), options.grid, recipe)
    _, policies = strength_policies(applicable(entries), trials, recipe)  # faulty ones are refused before anything
    with_policies(recipe, policies)
    before = _recipe_before(Path(recipe.output_dir))
    run = open_run(with_policies(recipe, FIRST, seeds))
    try:
        with _left_as(before, run):
            check_frontier(recipe, run.reward, policies.values())
            training_args(run, "nll", seeds[0])  # faulty settings that all share are refused first
            planned = prepare_methods(run, entries, options.budget)
            results, failed = _train(run, entries, trials, planned, options)
            run.recipe = with_policies(run.recipe, {entry.name: entry.fields for entry in applicable(entries)})
            claim(run)
        write_frontier(FinishedRun(run.folder), results)
        return results, failed
    finally:
        run.close()


@contextlib.contextmanager
def _left_as(before: str | None, run: Run) -> Iterator[None]:
    """The recipe of an earlier run or comparison is put back, whose policies and page are in the folder."""
    try:
        yield
    finally:
        if before is not None:
            write_text(run.folder / "recipe.yaml", before)


def frontier_seeds(recipe: Recipe, options: Options) -> list[int]:
    """One seed unless more are asked for: strengths and checkpoints are many runs already."""
    return seeds_of(recipe, options.seeds or 1)


def _train(
    run: Run, entries: list[Entry], trials: Trials, planned: dict[str, Planned], options: Options
) -> tuple[dict[str, Any], dict[Job, str]]:
    chosen, seeds = applicable(entries), run.recipe.seeds
    strengths, policies = strength_policies(chosen, trials, run.recipe)
    take(run, policies)
    reference = Job(None, checkpoints=True)
    jobs = [Job(policy, seed, checkpoints=True) for seed in seeds for policy in policies]
    failed = run_jobs(run, [reference, *jobs], options.jobs)
    if len(failed) >= len(jobs) or reference in failed:
        raise UserError(f"compare: {len(failed)} of {len(jobs) + 1} runs failed. {next(iter(failed.values()))}")
    lost = {(job.policy, job.seed) for job in failed}
    done = {policy: [seed for seed in seeds if (policy, seed) not in lost] for policy in policies}
    methods = {
        entry.name: {
            "source": entry.source,
            "updates": planned[entry.name].updates,
            "settings": effective(policy_settings(run.recipe, next(iter(strengths[entry.name])))),
            "strengths": strengths[entry.name],
        }
        for entry in chosen
    }
    results = {
        "name": run.recipe.name,
        "seeds": seeds,
        "budget": options.budget,
        "methods": methods,
        "not_applicable": {entry.name: entry.reason for entry in entries if entry.reason is not None},
        "failed": {str(job): said for job, said in failed.items()},
        "num_runs": len(jobs),
        "scoring_caveats": scoring_caveats(run),
        **gather_curves(run, strengths, done),
    }
    return plain(results), failed


def make_strengths(entries: list[Entry], options: tuple[str, ...], recipe: Recipe) -> Trials:
    """Method -> its strengths: by its knob, or as `--grid` or a mapping in the recipe's `compare.grid` says."""
    grid = read_grid(options, recipe)
    if options and isinstance(grid, str):
        return make_trials(entries, grid) or {entry.name: [{}] for entry in entries}
    own = {} if isinstance(grid, str) else grid  # the recipe's words are about choosing settings
    return {e.name: list(own.get(e.name, own.get("*")) or declared_strengths(e)) for e in entries}


def strength_policies(
    entries: list[Entry], trials: Trials, recipe: Recipe
) -> tuple[Strengths, dict[str, dict[str, Any]]]:
    """Every strength as a policy NAME/SETTING-VALUE, and NAME, which a run of the recipe has trained already; with
    other settings (a budget may change them) it is NAME/frontier, and the run's own stays.

    A strength that changes nothing of an earlier one is left out. Raises UserError for a setting that its method does
    not have.
    """
    strengths: Strengths = {}
    policies: dict[str, dict[str, Any]] = {}
    for entry in entries:
        strengths[entry.name], seen = {}, list[dict[str, Any]]()
        for trial in trials[entry.name]:
            fields = with_trial(entry, trial, recipe.train)
            check_policy(fields, recipe.train, f"compare: the strengths of '{entry.name}'")
            if fields not in seen:
                seen.append(fields)
                policy = _policy(entry.name, trial, fields, recipe)
                strengths[entry.name][policy] = trial
                policies[policy] = fields
    return strengths, policies


def _policy(name: str, trial: dict[str, Any], fields: dict[str, Any], recipe: Recipe) -> str:
    values = {key.rpartition(".")[2]: value for key, value in trial.items()}
    named = (f"{key}-{value:g}" if isinstance(value, float) else f"{key}-{value}" for key, value in values.items())
    if label := slug("_".join(named)):
        return f"{name}/{label}"
    earlier = f"{name}/default"  # so called by an earlier version
    if (Path(recipe.output_dir) / "policies" / earlier).is_dir():
        return earlier
    return f"{name}/frontier" if _trained_otherwise(name, fields, recipe) else name


def _trained_otherwise(name: str, fields: dict[str, Any], recipe: Recipe) -> bool:
    """Whether the run has trained a policy of this name with other settings, such as before the budget changed them."""
    known = Manifest(Path(recipe.output_dir)).entries
    settings = as_json(settings_key(policy_settings(with_policies(recipe, {name: fields}), name)))
    trained = (known.get(policy_artifact(name, seed)) for seed in recipe.seeds)
    return any(entry["key"]["settings"] != settings for entry in trained if entry)


def check_frontier(recipe: Recipe, reward: SumReward, policies: Iterable[dict[str, Any]]) -> None:
    """Refuse what leaves checkpoints without a reward or a KL."""
    if recorded := reward.only_recorded:
        raise UserError(
            f"compare --frontier scores what checkpoints write, and the scores of '{recorded[0]}' are recorded: take a "
            "reward function, or give the column `new_completions`"
        )
    for fields in policies:
        found = recipe.train | fields
        if found.get("eval_decoding", "sample") != "sample":
            raise UserError("compare --frontier measures KL on sampled completions: set train.eval_decoding to sample")
        if found.get("eval_strategy", "steps") == "no":
            raise UserError("compare --frontier draws checkpoints: set train.eval_strategy to steps")


def _recipe_before(folder: Path) -> str | None:
    """The recipe.yaml that an earlier command left; None without one, or if it is that of a killed frontier."""
    path = folder / "recipe.yaml"
    content = read_yaml(path) if path.is_file() else None
    policies = content.get("policies") if isinstance(content, dict) else None
    if not isinstance(policies, dict) or any("/" in str(name) for name in policies):
        return None
    return path.read_text(encoding="utf-8")
