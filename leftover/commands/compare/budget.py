"""Which methods the rows can serve, and how many updates each gets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leftover.commands.compare.methods import Entry
from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, ONLINE
from leftover.prepare import checks
from leftover.recipe.files import make_recipe
from leftover.recipe.offline import LoLConfig
from leftover.recipe.sections import Recipe
from leftover.runs import claim
from leftover.runs.run import Run
from leftover.training.run import policy_rows, trained_tokens
from leftover.training.selection import run_order, selection, training_columns
from leftover.training.settings import training_args

log = logging.getLogger(__name__)

BUDGETS = ("equal", "paper")


@dataclass(frozen=True)
class Planned:
    """What one run of a method takes: tokens of its rows, prompts included, without padding."""

    updates: int
    tokens: int | None  # None: of completions that are sampled along the way
    selected_rows: int | None = None
    share: float = 1.0  # of the training rows that are selected


def with_policies(recipe: Recipe, policies: dict[str, dict[str, Any]], seeds: list[int] | None = None) -> Recipe:
    """The recipe with other policies; their keys are checked as those of any recipe."""
    changed = {"policies": policies} | ({"seeds": seeds} if seeds is not None else {})
    return make_recipe(recipe.model_dump() | changed, where="compare")


def with_policy(run: Run, name: str, fields: dict[str, Any]) -> Run:
    """The run as if its recipe had this one policy."""
    return Run(with_policies(run.recipe, {name: fields}), run.folder)


def check_scored(run: Run, entries: list[Entry]) -> None:
    """Find the methods that the scored rows cannot serve (`reason`), before a reference or a value is computed."""
    for entry in entries:
        if entry.reason is None:
            entry.reason = refusal(_check, run, entry)


def _check(run: Run, entry: Entry) -> None:
    one = with_policy(run, entry.name, entry.fields)
    claim.check_packages(one.recipe)
    claim.check_rewards(one)
    training_args(one, entry.name, run.recipe.seeds[0])
    checks.check_recipe(one.recipe, one.reward)
    checks.check_prompts(one.recipe, one.table)
    checks.check_rewards(one.recipe, one.reward, one.table)


def refusal(check: Callable[..., None], *arguments: Any) -> str | None:
    """Why `check` refuses its arguments; None where it does not."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return None


def plan_updates(run: Run, entries: list[Entry], budget: str) -> dict[str, Planned]:
    """Give every applicable method its updates (`max_steps`) and, where it draws whole prompts, fewer of them a batch.

    equal: all take as many updates, of about as many tokens. paper: updates are scaled by the share of the training
    rows that a method selects (A-LoL, section 4). Methods that select no row get a `reason`.
    """
    base = _plan(run, "nll", {"objective": "nll", "rows": "all", "draw": "uniform"})
    found: dict[str, Planned] = {}
    for entry in entries:
        if entry.reason is None:
            entry.reason = refusal(_give, run, entry, base, budget, found)
    return found


def _give(run: Run, entry: Entry, base: Planned, budget: str, found: dict[str, Planned]) -> None:
    for key in ("max_steps", "num_train_epochs"):
        if key in entry.fields:
            log.warning("compare: %s.%s is not used: all methods have one budget", entry.name, key)
            del entry.fields[key]
    entry.fields["max_steps"] = base.updates
    if entry.objective in ONLINE:
        found[entry.name] = Planned(base.updates, None)
        return
    planned = _plan(run, entry.name, entry.fields)
    if budget == "paper":
        entry.fields["max_steps"] = max(1, round(base.updates * planned.share))
        planned = _plan(run, entry.name, entry.fields)
    if sized_by_tokens(entry):
        assert planned.tokens is not None and base.tokens is not None
        ratio = (base.tokens / base.updates) / (planned.tokens / planned.updates)
        take_as_many_tokens(entry, _args(run, entry.name, entry.fields).per_device_train_batch_size, ratio)
        planned = _plan(run, entry.name, entry.fields)
    found[entry.name] = planned


def sized_by_tokens(entry: Entry) -> bool:
    """Whether a method draws whole prompts, and leaves open how many a batch."""
    whole_groups = OBJECTIVES[entry.objective].unit == "group" or entry.fields.get("whole_groups")
    return bool(whole_groups) and "per_device_train_batch_size" not in entry.fields


def take_as_many_tokens(entry: Entry, rows: int, ratio: float) -> None:
    """Give a method of whole prompts the batch size at which an update trains on as many tokens as NLL's.

    `ratio`: NLL's tokens an update, of the method's own at `rows` a batch.
    """
    entry.fields["per_device_train_batch_size"] = max(1, round(rows * ratio))


def _args(run: Run, name: str, fields: dict[str, Any]) -> Any:
    return training_args(with_policy(run, name, fields), name, run.recipe.seeds[0])


def _plan(run: Run, name: str, fields: dict[str, Any]) -> Planned:
    one = with_policy(run, name, fields)
    rows = policy_rows(one.recipe, one.table, name)
    columns, args = training_columns(rows), training_args(one, name, run.recipe.seeds[0])
    assert isinstance(args, LoLConfig)  # online methods have no rows to select
    selected, weights, _ = selection(args, columns)
    order, updates = run_order(args, columns, selected, weights)
    num = int(selected.sum())
    return Planned(updates, trained_tokens(rows, order), num, num / len(selected))


def applicable(entries: list[Entry]) -> list[Entry]:
    """The entries that can run. Raises UserError where there is none."""
    found = [entry for entry in entries if entry.reason is None]
    if not found:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in entries)
        raise UserError(f"compare: the rows can serve none of the methods. {reasons}")
    return found


def tell_refused(entries: list[Entry], told: set[str]) -> None:
    """Say which methods do not apply, the ones that the user named loudly; each once."""
    for entry in entries:
        if entry.reason is not None and entry.name not in told:
            told.add(entry.name)
            log.log(logging.WARNING if entry.named else logging.INFO, "compare: %s n/a: %s", entry.name, entry.reason)
