"""`leftover compare --dry-run`: what would be run, from the rows alone; nothing is trained and no folder written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leftover.commands.compare.budget import Planned, applicable, give_updates, refuse, with_policies
from leftover.commands.compare.jobs import counted
from leftover.commands.compare.methods import Entry, resolve, with_trial
from leftover.commands.compare.run import Options, seeds_of
from leftover.commands.compare.trials import Trials, make_trials, read_grid, trial_policies
from leftover.commands.dry_run.checks import check_recorded, checked_reward, training_settings
from leftover.commands.dry_run.estimate import Estimate, estimate_run
from leftover.commands.dry_run.rows import read
from leftover.commands.dry_run.show import MEANING, memory_table, plain_table, print_tables, work_table
from leftover.commands.dry_run.sources import offline
from leftover.commands.dry_run.work import GROUPS, LEFTOVER, Sizes, Training, estimate_training
from leftover.monitoring.terminal import console
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe


@dataclass(frozen=True)
class Comparison:
    """What would be run. `trainings`: by method, of those that apply; `whole`: of the run that they make together."""

    recipe: Recipe
    entries: list[Entry]
    trainings: dict[str, Training]
    trials: Trials
    seeds: list[int]
    budget: str
    whole: Estimate
    runs_each: int  # trainings of a method; the chosen trial is the run of its seed

    def bound(self, training: Training) -> str:
        """Of its updates and tokens: "at most " where they shrink with a share of rows that is known later."""
        return "at most " if training.qualifier == "at most" or self.scaled_later(training) else ""

    def scaled_later(self, training: Training) -> bool:
        """Whether the updates are scaled by a share of rows that is known after `prepare`."""
        return self.budget == "paper" and training.selected in (LEFTOVER, GROUPS)


def dry_run(recipe: Recipe, options: Options) -> None:
    """Print methods, updates, trials, costs and refusals.

    Raises UserError where the comparison would refuse the recipe, or the rows can serve no method.
    """
    with offline():
        _show(_estimate(recipe, options))


def _estimate(recipe: Recipe, options: Options) -> Comparison:
    entries, seeds, rows = resolve(options.methods, recipe), seeds_of(recipe, options.seeds), read(recipe)
    sizes, trainings = Sizes(recipe, rows), dict[str, Training]()

    def check(entry: Entry) -> None:
        one = with_policies(recipe, {entry.name: entry.fields})
        checked_reward(one)
        check_recorded(one, rows)

    def plan(entry: Entry) -> Planned:
        args = _args(recipe, entry)
        training = trainings[entry.name] = estimate_training(entry.name, args, sizes)
        share = args.top_percent / 100 if isinstance(args, LoLConfig) and training.selected.startswith("top") else None
        tokens = None if training.seen is None else training.seen.tokens
        return Planned(training.steps, tokens, share=share, batch_size=args.per_device_train_batch_size)

    refuse(entries, check)
    chosen = applicable(entries)
    if trials := make_trials(chosen, read_grid(options.grid, recipe)):
        with_policies(recipe, trial_policies(chosen, trials, recipe.train))
    give_updates(entries, options.budget, plan)
    policies = {entry.name: entry.fields for entry in applicable(entries)}
    trials = {name: listed for name, listed in trials.items() if name in policies}
    runs_each = max(len(next(iter(trials.values()), [])) - 1, 0) + len(seeds)
    whole = estimate_run(with_policies(recipe, policies, seeds), rows=rows, num_runs=runs_each)
    shown = {name: trainings[name] for name in policies}
    return Comparison(recipe, entries, shown, trials, seeds, options.budget, whole, runs_each)


def _args(recipe: Recipe, entry: Entry) -> LoLConfig | PPOConfig:
    return training_settings(with_policies(recipe, {entry.name: entry.fields}), policies=True)[entry.name].args


def _show(found: Comparison) -> None:
    columns = ("method", "settings from", "rows", "updates a run", "tokens a run", "trials", "runs")
    table = plain_table("Comparison", *columns, left=3)
    shown = [entry for entry in found.entries if entry.reason is None]
    for entry in shown:
        trials, cells = len(found.trials.get(entry.name, [])), _cells(found, entry, found.trainings[entry.name])
        table.add_row(entry.name, entry.source, *cells, str(trials or "–"), str(found.runs_each))
    terminal = console(width=140)
    print_tables(terminal, table, work_table(found.whole), memory_table(found.whole))
    for entry in (e for e in found.entries if e.reason is not None):
        terminal.print(f"- {entry.name}: n/a, {entry.reason}")
    for entry in (e for e in shown if e.name in found.trials):
        described = "; ".join(_trial(entry, trial, found.recipe) for trial in found.trials[entry.name])
        terminal.print(f"- Trials of {entry.name}: {described}.")
    for note in _notes(found, len(shown) * found.runs_each):
        terminal.print(f"- {note}")


def _cells(found: Comparison, entry: Entry, training: Training) -> tuple[str, str, str]:
    """Rows, updates and tokens of a run of a method."""
    args, bound = _args(found.recipe, entry), found.bound(training)
    updates = "unknown" if training.steps is None else f"{bound}{training.steps:,}"
    if isinstance(args, PPOConfig):
        written = f"{args.rollouts_per_step:,} completions of its own every {args.updates_per_step:,} updates"
        return written, updates, "as it samples"
    tokens = "unknown" if training.seen is None else f"{bound}about {training.seen.tokens:,.0f}"
    return training.selected, updates, tokens


def _trial(entry: Entry, trial: dict[str, Any], recipe: Recipe) -> str:
    """The values that a trial changes, the learning rate as it comes to be."""
    if not trial:
        return "its settings as they are"
    rate = with_trial(entry, trial, recipe.train).get("learning_rate")
    named = {"learning_rate" if key == "learning_rate_factor" else key: value for key, value in trial.items()}
    if "learning_rate_factor" in trial:
        named["learning_rate"] = f"{rate:.3g}"
    return ", ".join(f"{key.removeprefix('objective_settings.')} {value}" for key, value in named.items())


def _notes(found: Comparison, runs: int) -> Iterator[str]:
    whole = found.whole
    seeds = f"seed{'s' * (len(found.seeds) != 1)} {', '.join(map(str, found.seeds))}"
    yield f"{counted(runs)} in all, {seeds}."
    if any(map(found.scaled_later, found.trainings.values())):
        yield "At most: scaled by the share of rows once advantages and pairs are known; counted whole here."
    if any(training.qualifier == "at most" for training in found.trainings.values()):
        yield "A policy with released_code takes fewer updates where rows are not left over, as the authors' code does."
    yield "What needs rewards of a kind (none below 0, a positive advantage) is checked once rows are scored."
    if isinstance(whole.rows, str):
        yield f"Rows: {whole.rows}."
    yield from (*whole.notes, *MEANING)
