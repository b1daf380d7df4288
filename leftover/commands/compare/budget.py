"""Which methods the rows can serve, and how many updates each gets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leftover.commands.compare.methods import Entry
from leftover.errors import UserError
from leftover.objectives import OBJECTIVES
from leftover.prepare import checks
from leftover.recipe.files import make_recipe
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.runs import claim
from leftover.runs.run import Run
from leftover.training.run import policy_rows
from leftover.training.selection import run_order, selection, training_columns
from leftover.training.settings import training_args

log = logging.getLogger(__name__)

_OWN_BUDGET = ("max_steps", "num_train_epochs")


@dataclass(frozen=True)
class Planned:
    """One run of a method; None: known only when the rows can be read or completions have been sampled."""

    updates: int | None
    tokens: float | None  # of its rows, prompts included, without padding
    selected_rows: int | None = None
    share: float | None = 1.0  # of the training rows that are selected
    batch_size: int = 0  # rows; 0 if it writes its own


def with_policies(recipe: Recipe, policies: dict[str, dict[str, Any]], seeds: list[int] | None = None) -> Recipe:
    """The recipe with other policies; their keys are checked as those of any recipe."""
    changed = {"policies": policies} | ({"seeds": seeds} if seeds is not None else {})
    # Its names were checked when it was read; those of trials are not for users.
    made = make_recipe(recipe.model_dump() | changed, where=recipe.where, saved=True)
    return made.marked(recipe.is_of_folder)


def with_policy(run: Run, entry: Entry) -> Run:
    """The run as if its recipe had this one policy."""
    return Run(with_policies(run.recipe, {entry.name: entry.fields}), run.folder)


def refuse(entries: list[Entry], check: Callable[[Entry], None]) -> None:
    """Note as the `reason` of an entry what `check` raises for it; entries with a reason are skipped."""
    for entry in entries:
        if entry.reason is None:
            try:
                check(entry)
            except UserError as error:
                entry.reason = str(error)


def check_scored(run: Run, entries: list[Entry]) -> None:
    """Find the methods that the scored rows cannot serve (`reason`), before a reference or a value is computed."""

    def check(entry: Entry) -> None:
        one = with_policy(run, entry)
        claim.check_packages(one.recipe)
        claim.check_rewards(one)
        training_args(one, entry.name, run.recipe.seeds[0])
        checks.check_recipe(one.recipe, one.reward)
        checks.check_prompts(one.recipe, one.table)
        checks.check_rewards(one.recipe, one.reward, one.table)

    refuse(entries, check)


def plan_updates(run: Run, entries: list[Entry], budget: str) -> dict[str, Planned]:
    """The updates of every method that the prepared rows of `run` can serve (see `give_updates`)."""
    for entry in entries:
        for key in _OWN_BUDGET:
            if entry.reason is None and key in entry.fields:
                log.warning("compare: %s.%s is not used: all methods have one budget", entry.name, key)

    def plan(entry: Entry) -> Planned:
        one = with_policy(run, entry)
        args = training_args(one, entry.name, run.recipe.seeds[0])
        if isinstance(args, PPOConfig):
            return Planned(entry.fields["max_steps"], None)
        columns = training_columns(policy_rows(one.recipe, one.table, entry.name))
        selected, weights, _ = selection(args, columns)
        order, updates = run_order(args, columns, selected, weights)
        number, tokens = int(selected.sum()), int(columns["length"][order.indices].sum())
        return Planned(updates, tokens, number, number / len(selected), args.per_device_train_batch_size)

    return give_updates(entries, budget, plan)


def give_updates(entries: list[Entry], budget: str, plan: Callable[[Entry], Planned]) -> dict[str, Planned]:
    """Set the updates (`max_steps`) of every applicable method, and smaller batches if it draws whole prompts.

    equal: all take as many updates, of about as many tokens. paper: updates are scaled by the share of the training
    rows that a method selects (A-LoL, section 4). Methods that `plan` refuses get a `reason`: they select no row.
    """
    base, found = plan(Entry("nll", {"objective": "nll", "rows": "all", "draw": "uniform"}, "")), dict[str, Planned]()

    def give(entry: Entry) -> None:
        for key in _OWN_BUDGET:
            entry.fields.pop(key, None)
        if base.updates is not None:
            entry.fields["max_steps"] = base.updates
        planned = plan(entry)
        if budget == "paper" and base.updates is not None and planned.share is not None:
            entry.fields["max_steps"] = max(1, round(base.updates * planned.share))
            planned = plan(entry)
        objective = OBJECTIVES.get(entry.objective)  # None: it samples its own completions
        whole_groups = objective is not None and (objective.unit == "group" or entry.fields.get("whole_groups"))
        open_size = whole_groups and "per_device_train_batch_size" not in entry.fields
        if open_size and base.tokens and base.updates and planned.tokens and planned.updates:
            # An update trains on as many tokens as one of NLL does.
            ratio = (base.tokens / base.updates) / (planned.tokens / planned.updates)
            entry.fields["per_device_train_batch_size"] = max(1, round(planned.batch_size * ratio))
            planned = plan(entry)
        found[entry.name] = planned

    refuse(entries, give)
    return found


def applicable(entries: list[Entry]) -> list[Entry]:
    """The entries that can run. Raises UserError if there is none."""
    found = [entry for entry in entries if entry.reason is None]
    if not found:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in entries)
        raise UserError(f"compare: the rows can serve none of the methods. {reasons}")
    return found


def log_refused(entries: list[Entry]) -> None:
    """Log which methods do not apply: a warning for those that the user named."""
    for entry in entries:
        if entry.reason is not None:
            log.log(logging.WARNING if entry.named else logging.INFO, "compare: %s n/a: %s", entry.name, entry.reason)
