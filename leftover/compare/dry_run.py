"""`leftover compare --dry-run`: what would be run, from the rows alone; nothing is trained and no folder written."""

from typing import Any

from leftover.compare.budget import applicable, refusal, sized_by_tokens, take_as_many_tokens, with_policies
from leftover.compare.methods import Entry, resolve
from leftover.compare.run import Options, seeds_of
from leftover.compare.trials import make_trials, read_grid, trial_policies
from leftover.config import Recipe
from leftover.errors import UserError
from leftover.plan.rows import Rows, read
from leftover.plan.settings import Unwritten, training_settings
from leftover.plan.sources import offline
from leftover.plan.work import Sizes, Training, plan_training
from leftover.ppo import ONLINE
from leftover.requirements import check_recipe
from leftover.terminal import console
from leftover.training_config import LoLConfig


def dry_run(recipe: Recipe, options: Options) -> None:
    """Print methods, updates, trials and refusals. Raises UserError where the comparison would refuse the recipe."""
    with offline():
        _show(*_plan(recipe, options))


def _plan(recipe: Recipe, options: Options) -> tuple[list[Entry], dict[str, Training], dict[str, Any]]:
    entries, seeds = resolve(options.methods, recipe), seeds_of(recipe, options.seeds)
    rows = read(recipe)
    for entry in entries:
        if entry.reason is None:
            entry.reason = refusal(_check, recipe, entry)
    chosen = applicable(entries)
    if trials := make_trials(chosen, read_grid(options.grid, recipe)):
        with_policies(recipe, trial_policies(chosen, trials, recipe.train))
    base = _training(recipe, Entry("nll", {"objective": "nll", "rows": "all"}, ""), rows)
    plans = {}
    for entry in chosen:
        for key in ("max_steps", "num_train_epochs"):
            entry.fields.pop(key, None)
        share = entry.fields.get("top_percent", 100.0) / 100 if options.budget == "paper" else 1.0
        if base.steps is not None:
            entry.fields["max_steps"] = max(1, round(base.steps * share))
        if entry.objective not in ONLINE:
            try:
                plans[entry.name] = _as_many_tokens(recipe, entry, rows, base)
            except UserError as error:
                entry.reason = str(error)
    facts = {"seeds": seeds, "trials": {name: len(listed) for name, listed in trials.items()}, "base": base}
    return entries, plans, facts | {"budget": options.budget, "rows": rows if isinstance(rows, str) else None}


def _check(recipe: Recipe, entry: Entry) -> None:
    """What the recipe alone tells."""
    run = Unwritten(with_policies(recipe, {entry.name: entry.fields}))
    run.check_rewards()
    check_recipe(run)


def _training(recipe: Recipe, entry: Entry, rows: Rows | str) -> Training:
    run = Unwritten(with_policies(recipe, {entry.name: entry.fields}))
    settings = training_settings(run, policies=True)[entry.name]
    return plan_training(entry.name, settings, Sizes(recipe, rows if isinstance(rows, Rows) else None))


def _as_many_tokens(recipe: Recipe, entry: Entry, rows: Rows | str, base: Training) -> Training:
    """The plan of a method; of whole prompts it takes fewer a batch, as `budget.plan_updates` does."""
    plan = _training(recipe, entry, rows)
    if sized_by_tokens(entry) and plan.seen and base.seen:
        size = recipe.train.get("per_device_train_batch_size", LoLConfig.per_device_train_batch_size)
        take_as_many_tokens(entry, size, base.seen.tokens / plan.seen.tokens)
        plan = _training(recipe, entry, rows)
    return plan


def _show(entries: list[Entry], plans: dict[str, Training], facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="Comparison", title_justify="left")
    for name in ("method", "settings from", "rows", "updates a run", "tokens a run", "trials", "runs"):
        table.add_column(name, overflow="fold")
    runs = 0
    for entry in (e for e in entries if e.reason is None):
        plan, trials = plans.get(entry.name), facts["trials"].get(entry.name, 0)
        own_runs = max(trials - 1, 0) + len(facts["seeds"])  # the chosen trial is the run of its seed
        runs += own_runs
        updates = str(entry.fields.get("max_steps", "unknown"))
        tokens = "as it samples" if plan is None else f"about {plan.seen.tokens:,.0f}" if plan.seen else "unknown"
        drawn = "its own samples" if plan is None else plan.selected
        own = [str(trials) if trials else "–", str(own_runs)]
        table.add_row(entry.name, entry.source, drawn, updates, tokens, *own)
    terminal = console(width=140)
    terminal.print(table)
    for entry in (e for e in entries if e.reason is not None):
        terminal.print(f"- {entry.name}: n/a, {entry.reason}")
    terminal.print(f"- {runs} runs in all, seeds {', '.join(map(str, facts['seeds']))}.")
    if facts["rows"]:
        terminal.print(f"- Rows: {facts['rows']}.")
    if facts["budget"] == "paper":
        terminal.print("- Updates of leftover methods shrink with the share of leftover rows, known after `prepare`.")
    terminal.print(
        "- What needs rewards of a kind (none below 0, a positive advantage) is checked once rows are scored."
    )
