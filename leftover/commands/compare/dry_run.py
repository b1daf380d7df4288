"""`leftover compare --dry-run`: what would be run, from the rows alone; nothing is trained and no folder written."""

from collections.abc import Iterator
from typing import Any

from leftover.commands.compare.budget import Planned, applicable, give_updates, refuse, with_policies
from leftover.commands.compare.frontier import check_frontier, frontier_seeds, make_strengths, strength_policies
from leftover.commands.compare.jobs import counted
from leftover.commands.compare.methods import Entry, resolve, with_trial
from leftover.commands.compare.run import Options, seeds_of
from leftover.commands.compare.trials import Trials, make_trials, read_grid, trial_policies
from leftover.commands.dry_run.checks import check_here, check_recorded, checked_reward, training_settings
from leftover.commands.dry_run.estimate import estimate_run
from leftover.commands.dry_run.pace import HERE
from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.show import MEANING, memory_table, plain_table, print_tables, work_table
from leftover.commands.dry_run.sources import offline
from leftover.commands.dry_run.work import GROUPS, LEFTOVER, Sizes, Training, estimate_training
from leftover.monitoring.terminal import console
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.trust import no_code

_COLUMNS = ("method", "settings from", "rows", "updates a run", "tokens a run", "trials", "runs")


@no_code()
def dry_run(recipe: Recipe, options: Options, frontier: bool = False) -> None:
    """Print methods, updates, trials (of a frontier: strengths), costs and refusals.

    Raises UserError if the comparison would refuse the recipe, or the rows can serve no method.
    """
    with offline():
        entries, rows = resolve(options.methods, recipe), read(recipe)
        seeds = frontier_seeds(recipe, options) if frontier else seeds_of(recipe, options.seeds)
        refuse(entries, lambda entry: _check(recipe, entry, rows))
        chosen = applicable(entries)
        trials = _trials(recipe, chosen, options, frontier)
        trainings = _trainings(recipe, entries, options.budget, rows)
        shown = applicable(entries)
        if frontier:
            strengths, policies = strength_policies(shown, trials, recipe)
            trials = {name: list(of_method.values()) for name, of_method in strengths.items()}
            runs = {name: len(tried) * len(seeds) for name, tried in trials.items()}
            whole = estimate_run(with_policies(recipe, policies, seeds), "train", rows, frontier=True, device=HERE)
        else:
            # The chosen trial is the run of its seed.
            runs = {entry.name: max(len(trials.get(entry.name, [])) - 1, 0) + len(seeds) for entry in shown}
            own = with_policies(recipe, {entry.name: entry.fields for entry in shown}, seeds)
            whole = estimate_run(own, rows=rows, num_runs=max(runs.values()), device=HERE)
    what = "Strengths" if frontier else "Trials"
    lines, notes = [], [f"{entry.name}: n/a, {entry.reason}" for entry in entries if entry.reason is not None]
    for entry in shown:
        tried = [_trial(entry, trial, recipe) for trial in trials.get(entry.name, [])]
        cells = _cells(_args(recipe, entry), trainings[entry.name], options.budget)
        lines.append((entry.name, entry.source, *cells, str(len(tried) or "–"), str(runs[entry.name])))
        notes += [f"{what} of {entry.name}: {'; '.join(tried)}."] if tried else []
    named = f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
    notes.append(f"{counted(sum(runs.values()))} in all, {named}.")
    notes += _bounds([trainings[entry.name] for entry in shown], options.budget)
    notes += [f"Rows: {rows}."] if isinstance(rows, str) else []
    columns = [what.lower() if name == "trials" else name for name in _COLUMNS]
    tables = [plain_table("Comparison", *columns, left=3, rows=lines), work_table(whole), memory_table(whole)]
    print_tables(console(width=140), tables, [*notes, *whole.notes, *MEANING])
    check_here(recipe)  # last, as in the dry run of a run


def _trials(recipe: Recipe, entries: list[Entry], options: Options, frontier: bool) -> Trials:
    """What is tried of every method; faulty settings are refused."""
    if frontier:
        trials = make_strengths(entries, options.grid, recipe)
        _, policies = strength_policies(entries, trials, recipe)
        check_frontier(recipe, checked_reward(recipe), policies.values())
    else:
        trials = make_trials(entries, read_grid(options.grid, recipe))
        policies = trial_policies(entries, trials, recipe.train) if trials else {}
    if policies:
        with_policies(recipe, policies)
    return trials


def _check(recipe: Recipe, entry: Entry, rows: Rows | str) -> None:
    one = with_policies(recipe, {entry.name: entry.fields})
    checked_reward(one)
    check_recorded(one, rows)


def _args(recipe: Recipe, entry: Entry) -> LoLConfig | PPOConfig:
    return training_settings(with_policies(recipe, {entry.name: entry.fields}), policies=True)[entry.name].args


def _trainings(recipe: Recipe, entries: list[Entry], budget: str, rows: Rows | str) -> dict[str, Training]:
    """Give the entries their updates. Returns a run of each; those that cannot run get a `reason`."""
    sizes, trainings = Sizes(recipe, rows), dict[str, Training]()

    def plan(entry: Entry) -> Planned:
        args = _args(recipe, entry)
        training = trainings[entry.name] = estimate_training(entry.name, args, sizes)
        share = args.top_percent / 100 if isinstance(args, LoLConfig) and training.selected.startswith("top") else None
        tokens = None if training.seen is None else training.seen.tokens
        return Planned(training.steps, tokens, share=share, batch_size=args.per_device_train_batch_size)

    give_updates(entries, budget, plan)
    return trainings


def _scaled_later(training: Training, budget: str) -> bool:
    """Whether the updates are scaled by a share of rows that is known after `prepare`."""
    return budget == "paper" and training.selected in (LEFTOVER, GROUPS)


def _cells(args: LoLConfig | PPOConfig, training: Training, budget: str) -> tuple[str, str, str]:
    """Rows, updates and tokens of a run of a method."""
    bound = "at most " if training.qualifier == "at most" or _scaled_later(training, budget) else ""
    updates = "unknown" if training.steps is None else f"{bound}{training.steps:,}"
    if isinstance(args, PPOConfig):
        written = f"{args.rollouts_per_step:,} completions every {args.updates_per_step:,} updates"
        return written, updates, "as it samples"
    tokens = "unknown" if training.seen is None else f"{bound}about {training.seen.tokens:,.0f}"
    return training.selected, updates, tokens


def _trial(entry: Entry, trial: dict[str, Any], recipe: Recipe) -> str:
    """The values that a trial changes; a factor of the learning rate as the rate itself."""
    if not trial:
        return "its settings as they are"
    named = {"learning_rate" if key == "learning_rate_factor" else key: value for key, value in trial.items()}
    if "learning_rate_factor" in trial:
        named["learning_rate"] = f"{with_trial(entry, trial, recipe.train)['learning_rate']:.3g}"
    return ", ".join(f"{key.removeprefix('objective_settings.')} {value}" for key, value in named.items())


def _bounds(trainings: list[Training], budget: str) -> Iterator[str]:
    """What the comparison itself will know better."""
    if any(_scaled_later(training, budget) for training in trainings):
        yield "At most: updates shrink with the share of rows, which is known once advantages and pairs are."
    if any(training.qualifier == "at most" for training in trainings):
        yield "With released_code a policy takes fewer updates if some rows are not left over, as in the authors' code."
    yield "Whether rewards are from 0 up or advantages positive, as some methods need, is checked once rows are scored."
