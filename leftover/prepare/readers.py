"""Rows of the prepared table as training, checkpoint selection and evaluation read them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leftover.errors import UserError
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.needs import needs_of, offline_policies
from leftover.recipe.sections import Recipe
from leftover.runs.run import Run
from leftover.store.table import column, equals


def training_rows(
    run: Run, split: str, blocks: tuple[str, ...], *, chosen_only: bool = False, extras: Sequence[str] = ()
) -> Any:
    """Kept rows of one split as a Dataset with the columns that training reads, and with `extras`."""
    table = run.table.open("rows", "split", "tokens", *blocks)
    keep = equals(table, "split", split) & equals(table, "kept", True)
    if chosen_only:
        is_chosen = equals(table, "is_chosen", True)
        if not is_chosen.any():
            raise UserError("data.train_on: chosen needs rows that say which completion was chosen; none does")
        keep &= is_chosen
    if not keep.any():
        raise UserError(f"the {split} split has no row left after truncation")
    names = ["prompt", "conversational", "group", "prompt_ids", "completion_ids"]
    optional = ("reward", "value", "advantage", "reference_logprobs", *extras)
    names += [n for n in optional if n in table.column_names]
    return table.select_columns(names).select(np.flatnonzero(keep))


def available_blocks(run: Run, policy: str | None = None) -> tuple[str, ...]:
    """Blocks of row constants that every policy and evaluation reads, and those that this policy alone needs.

    What other policies of the recipe need is left out, so that adding or removing one of them retrains none. A block
    that an earlier recipe left in the folder, and that this one does not use, is of other rows or rewards.
    """
    own: tuple[str, ...] = ()
    if policy is not None and policy in offline_policies(run.recipe):
        own = (*(("value",) if "value" in needs_of(run.recipe, policy) else ()), *extra_blocks(run, policy))
    return tuple(block for block in ("reward", "reference", *own) if run.table.has(block))


def selection_rows(run: Run, blocks: tuple[str, ...]) -> Any:
    """Rows of the prompts that choose the checkpoint: validation split, which trained neither value nor policy."""
    rows = training_rows(run, "validation", blocks)
    groups = column(rows, "group")
    chosen = np.random.default_rng(run.seed).permutation(np.unique(groups))
    chosen = chosen[: run.recipe.evaluate.max_selection_prompts]
    return rows.select(np.flatnonzero(np.isin(groups, chosen)))


def training_mask(table: Any) -> np.ndarray:
    """[N] bool: the rows of the training split that are kept."""
    return equals(table, "split", "train") & equals(table, "kept", True)


def test_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of at most `evaluate.max_prompts` unique prompts of the test split, drawn by the recipe's seed."""
    table = run.table.open("rows", "split", "tokens", *available_blocks(run))
    keep = equals(table, "split", "test") & equals(table, "kept", True)
    if not keep.any():
        raise UserError("the test split has no row left after truncation")
    groups = column(table, "group")
    chosen = np.random.default_rng(run.seed).permutation(np.unique(groups[keep]))[: run.recipe.evaluate.max_prompts]
    names = ["prompt", "conversational", "completion", "group", "family_id", "source", "prompt_ids", "completion_ids"]
    names += [n for n in ("reward", "reference_logprobs") if n in table.column_names]
    return list(table.select_columns(names).select(np.flatnonzero(keep & np.isin(groups, chosen))))


def unique_prompts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every prompt, in the order of the prompts' ids."""
    by_group: dict[int, dict] = {}
    for row in rows:
        by_group.setdefault(row["group"], row)
    return [by_group[group] for group in sorted(by_group)]


def extra_blocks(run: Run, policy: str | None = None) -> tuple[str, ...]:
    """Names of the blocks that a policy (None: any) of the recipe asks for."""
    names = [name for name in offline_policies(run.recipe) if policy in (None, name)]
    needed = {extra for name in names for extra in needs_of(run.recipe, name)}
    return tuple(block for block, extra in _EXTRA.items() if extra in needed)


def num_reference_samples(recipe: Recipe) -> int:
    """Completions a prompt, on which the policies that ask for quantiles must agree: the block is theirs together."""
    wanted = {
        name: int((recipe.train | fields).get("reference_samples", LoLConfig.reference_samples))
        for name, fields in recipe.policies.items()
        if name in offline_policies(recipe) and "reward_quantile" in needs_of(recipe, name)
    }
    if len(set(wanted.values())) > 1:
        raise UserError(f"policies rank rewards among different numbers of reference_samples ({wanted}): set one")
    return next(iter(wanted.values()), 0)


# block -> the extra that reads it, and what computes it.
_EXTRA = {"quantile": "reward_quantile", "mismatched": "mismatched_logratio"}
