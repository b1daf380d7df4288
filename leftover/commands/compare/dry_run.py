"""`leftover compare --dry-run`: what would be run, from the rows alone; nothing is trained and no folder written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leftover.commands.compare.budget import applicable, refusal, sized_by_tokens, take_as_many_tokens, with_policies
from leftover.commands.compare.jobs import counted
from leftover.commands.compare.methods import Entry, resolve, with_trial
from leftover.commands.compare.run import Options, seeds_of
from leftover.commands.compare.trials import Trials, make_trials, read_grid, trial_policies
from leftover.commands.plan.build import Plan, build_plan
from leftover.commands.plan.recorded import check_recorded
from leftover.commands.plan.rows import Rows, read
from leftover.commands.plan.settings import checked_run, training_settings
from leftover.commands.plan.show import MEANING, memory_table, plain_table, print_tables, work_table
from leftover.commands.plan.sources import offline
from leftover.commands.plan.work import GROUPS, LEFTOVER, Sizes, Training, plan_training
from leftover.monitoring.terminal import console
from leftover.objectives import ONLINE
from leftover.prepare.checks import check_recipe
from leftover.recipe.offline import LoLConfig
from leftover.recipe.sections import Recipe


@dataclass(frozen=True)
class Comparison:
    """What would be run. `plans`: of every method that applies; `whole`: of the run that they make together."""

    recipe: Recipe
    entries: list[Entry]
    plans: dict[str, Training]
    trials: Trials
    seeds: list[int]
    budget: str
    whole: Plan
    runs_each: int  # trainings of a method; the chosen trial is the run of its seed


def dry_run(recipe: Recipe, options: Options) -> None:
    """Print methods, updates, trials, costs and refusals.

    Raises UserError where the comparison would refuse the recipe, or the rows can serve no method.
    """
    with offline():
        _show(_plan(recipe, options))


def _plan(recipe: Recipe, options: Options) -> Comparison:
    entries, seeds = resolve(options.methods, recipe), seeds_of(recipe, options.seeds)
    rows = read(recipe)
    for entry in entries:
        if entry.reason is None:
            entry.reason = refusal(_check, recipe, entry, rows)
    chosen = applicable(entries)
    if trials := make_trials(chosen, read_grid(options.grid, recipe)):
        with_policies(recipe, trial_policies(chosen, trials, recipe.train))
    base = _training(recipe, Entry("nll", {"objective": "nll", "rows": "all", "draw": "uniform"}, ""), rows)
    plans: dict[str, Training] = {}
    for entry in chosen:
        entry.reason = refusal(_give, recipe, entry, rows, base, options.budget, plans)
    policies = {entry.name: entry.fields for entry in applicable(entries)}
    trials = {name: listed for name, listed in trials.items() if name in policies}
    runs_each = max(len(next(iter(trials.values()), [])) - 1, 0) + len(seeds)
    whole = build_plan(with_policies(recipe, policies, seeds), rows=rows, num_runs=runs_each)
    return Comparison(recipe, entries, plans, trials, seeds, options.budget, whole, runs_each)


def _give(
    recipe: Recipe, entry: Entry, rows: Rows | str, base: Training, budget: str, plans: dict[str, Training]
) -> None:
    """The updates of a method, as `budget.plan_updates` gives them, as far as the rows tell."""
    for key in ("max_steps", "num_train_epochs"):
        entry.fields.pop(key, None)
    if base.steps is not None:
        entry.fields["max_steps"] = base.steps
    plan = _training(recipe, entry, rows)
    if budget == "paper" and base.steps is not None and plan.selected.startswith("top"):
        share = _settings(recipe, entry).top_percent / 100
        entry.fields["max_steps"] = max(1, round(base.steps * share))
        plan = _training(recipe, entry, rows)
    if entry.objective not in ONLINE and sized_by_tokens(entry) and plan.seen and base.seen:
        size = recipe.train.get("per_device_train_batch_size", LoLConfig.per_device_train_batch_size)
        take_as_many_tokens(entry, size, base.seen.tokens / plan.seen.tokens)
        plan = _training(recipe, entry, rows)
    plans[entry.name] = plan


def _check(recipe: Recipe, entry: Entry, rows: Rows | str) -> None:
    """What the recipe and the recorded rewards tell."""
    run = checked_run(with_policies(recipe, {entry.name: entry.fields}))
    check_recipe(run.recipe, run.reward)
    check_recorded(run.recipe, rows)


def _settings(recipe: Recipe, entry: Entry) -> Any:
    return training_settings(with_policies(recipe, {entry.name: entry.fields}), policies=True)[entry.name]


def _training(recipe: Recipe, entry: Entry, rows: Rows | str) -> Training:
    sizes = Sizes(recipe, rows if isinstance(rows, Rows) else None)
    return plan_training(entry.name, _settings(recipe, entry), sizes)


def _show(found: Comparison) -> None:
    columns = ("method", "settings from", "rows", "updates a run", "tokens a run", "trials", "runs")
    table = plain_table("Comparison", *columns, left=3)
    shown = [entry for entry in found.entries if entry.reason is None]
    for entry in shown:
        plan, trials = found.plans[entry.name], len(found.trials.get(entry.name, []))
        cells = [_updates(found, plan), _tokens(found, entry, plan), str(trials or "–"), str(found.runs_each)]
        table.add_row(entry.name, entry.source, _drawn(found.recipe, entry, plan), *cells)
    terminal = console(width=140)
    print_tables(terminal, table, work_table(found.whole), memory_table(found.whole))
    for entry in (e for e in found.entries if e.reason is not None):
        terminal.print(f"- {entry.name}: n/a, {entry.reason}")
    for entry in (e for e in shown if e.name in found.trials):
        told = "; ".join(_trial(entry, trial, found.recipe) for trial in found.trials[entry.name])
        terminal.print(f"- Trials of {entry.name}: {told}.")
    for note in _notes(found, len(shown) * found.runs_each):
        terminal.print(f"- {note}")


def _updates(found: Comparison, plan: Training) -> str:
    if plan.steps is None:
        return "unknown"
    return f"{'at most ' if _shrinks(found, plan) or plan.qualifier == 'at most' else ''}{plan.steps:,}"


def _tokens(found: Comparison, entry: Entry, plan: Training) -> str:
    if entry.objective in ONLINE:
        return "as it samples"
    most = plan.qualifier == "at most" or _shrinks(found, plan)
    return "unknown" if plan.seen is None else f"{'at most ' if most else ''}about {plan.seen.tokens:,.0f}"


def _shrinks(found: Comparison, plan: Training) -> bool:
    """Whether the updates are scaled by a share of rows that is known after `prepare`."""
    return found.budget == "paper" and plan.selected in (LEFTOVER, GROUPS)


def _drawn(recipe: Recipe, entry: Entry, plan: Training) -> str:
    if entry.objective not in ONLINE:
        return plan.selected
    args = _settings(recipe, entry)
    return f"{args.rollouts_per_step:,} completions of its own every {args.updates_per_step:,} updates"


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
    if any(_shrinks(found, plan) for plan in found.plans.values()):
        yield "At most: scaled by the share of rows once advantages and pairs are known; counted whole here."
    if any(plan.qualifier == "at most" for plan in found.plans.values()):
        yield "A policy with released_code takes fewer updates where rows are not left over, as the authors' code does."
    yield "What needs rewards of a kind (none below 0, a positive advantage) is checked once rows are scored."
    if isinstance(whole.rows, str):
        yield f"Rows: {whole.rows}."
    yield from (*whole.notes, *MEANING)
