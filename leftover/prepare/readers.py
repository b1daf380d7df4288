"""Rows of the prepared table as training, checkpoint selection and evaluation read them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from leftover.errors import UserError
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.needs import needs_of, offline_policies
from leftover.recipe.sections import Recipe
from leftover.store.table import Table, column, equals

# The columns that training reads, if the table has them.
_COLUMNS = ("prompt", "conversational", "group", "prompt_ids", "completion_ids", "where")
_CONSTANTS = ("reward", "value", "advantage", "reference_logprobs")
# Of one held-out prompt: a log may hold a hundred thousand of one, and every model would read each.
ROWS_OF_A_PROMPT = 64
# The same where new completions are scored: these say which checkpoint and policy is best, and each row that is read
# beside them, for its likelihood and its place in the log-ratio's order, is read with its whole prompt.
ROWS_BESIDE_COMPLETIONS = 2
# block -> the extra that reads it
_EXTRA = {"quantile": "reward_quantile", "mismatched": "mismatched_logratio", "features": "soft_value"}


def split_rows(
    table: Table, split: str, blocks: tuple[str, ...], *, chosen_only: bool = False, extras: Sequence[str] = ()
) -> Dataset:
    """Kept rows of one split as a Dataset with the columns that training reads, and with `extras`."""
    rows = table.open("rows", "split", "tokens", *blocks)
    keep = equals(rows, "split", split) & equals(rows, "kept", True)
    if chosen_only:
        keep &= equals(rows, "is_chosen", True)
    if not keep.any():
        raise UserError(
            f"the {split} split has no row left: all of its completions are too long (rejected_rows.jsonl lists them); "
            "raise data.max_completion_tokens, or set data.long_completions: cut"
        )
    names = [name for name in (*_COLUMNS, *_CONSTANTS, *extras) if name in rows.column_names]
    return rows.select_columns(names).select(np.flatnonzero(keep))


def available_blocks(recipe: Recipe, table: Table, policy: str | None = None) -> tuple[str, ...]:
    """Blocks of row constants that every policy and evaluation reads, and those that this policy alone needs.

    Blocks that only other policies need are not among them, so that adding or removing a policy retrains no other. A
    block that this recipe does not use was left by an earlier one, for other rows or rewards.
    """
    own: tuple[str, ...] = ()
    if policy is not None and policy in offline_policies(recipe):
        own = (*(("value",) if "value" in needs_of(recipe, policy) else ()), *extra_blocks(recipe, policy))
    return tuple(block for block in ("reward", "reference", *own) if table.has(block))


def rows_of_a_prompt(scores_new_completions: bool) -> int:
    """How many rows of a held-out prompt policies read at most."""
    return ROWS_BESIDE_COMPLETIONS if scores_new_completions else ROWS_OF_A_PROMPT


def selection_rows(recipe: Recipe, table: Table, most_of_a_prompt: int = ROWS_OF_A_PROMPT) -> Dataset:
    """Rows of the prompts that choose the checkpoint: validation split, which trained neither value nor policy."""
    rows = split_rows(table, "validation", available_blocks(recipe, table), extras=("family_id", "source"))
    return _of_some_prompts(rows, recipe.selection_prompts, most_of_a_prompt, recipe.seed)


def test_rows(recipe: Recipe, table: Table, most_of_a_prompt: int = ROWS_OF_A_PROMPT) -> list[dict[str, Any]]:
    """Rows of at most `evaluate.max_prompts` unique prompts of the test split, drawn by the recipe's seed."""
    return list(test_set(recipe, table, most_of_a_prompt))


def test_set(recipe: Recipe, table: Table, most_of_a_prompt: int = ROWS_OF_A_PROMPT) -> Dataset:
    """`test_rows`, none of which is read yet."""
    extras = ("completion", "family_id", "source")
    rows = split_rows(table, "test", available_blocks(recipe, table), extras=extras)
    return _of_some_prompts(rows, recipe.test_prompts, most_of_a_prompt, recipe.seed)


def _of_some_prompts(rows: Dataset, num_prompts: int, most_of_a_prompt: int, seed: int) -> Dataset:
    """Rows of prompts drawn at random; of a prompt with more than `most_of_a_prompt` so many, drawn too."""
    groups, rng = column(rows, "group"), np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(groups))[:num_prompts]
    drawn = rng.permutation(np.flatnonzero(np.isin(groups, chosen)))
    drawn = drawn[np.argsort(groups[drawn], kind="stable")]
    _, first, of_prompt = np.unique(groups[drawn], return_index=True, return_inverse=True)
    place = np.arange(len(drawn)) - first[of_prompt]
    return rows.select(np.sort(drawn[place < most_of_a_prompt]))


def training_mask(table: Dataset) -> np.ndarray:
    """[N] bool: the rows of the training split that are kept."""
    return equals(table, "split", "train") & equals(table, "kept", True)


def unique_prompts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every prompt, in the order of the prompts' ids."""
    by_group = {row["group"]: row for row in reversed(rows)}
    return [by_group[group] for group in sorted(by_group)]


def extra_blocks(recipe: Recipe, policy: str | None = None) -> tuple[str, ...]:
    """Names of the blocks that a policy (None: any) of the recipe asks for."""
    names = [name for name in offline_policies(recipe) if policy in (None, name)]
    needed = {extra for name in names for extra in needs_of(recipe, name)}
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
