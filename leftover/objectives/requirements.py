"""The refusal of rows that cannot serve an objective, before anything is computed."""

from collections.abc import Sequence

import numpy as np

from leftover.errors import RECIPE, SettingNames, UserError
from leftover.objectives import OBJECTIVES, Columns, Objective

# What an objective may require that is a number of every row.
ROW_NUMBERS = ("reward", "value", "advantage", "reward_quantile")


def called(name: str) -> str:
    """A policy or an objective with its name, for messages."""
    return f"objective '{name}'" if name in OBJECTIVES else f"policy '{name}'"


def check_requirements(
    name: str,
    objective: Objective,
    columns: Columns,
    settings: object = None,
    only: Sequence[str] = ROW_NUMBERS,
    names: SettingNames = RECIPE,
) -> None:
    """Refuse rows without a number that the objective needs, or with negative rewards.

    `only`: the numbers that are known so far; `names`: what the remedy calls the settings.
    """
    needs = objective.needs(settings or objective.settings())
    for number in only:
        if number in needs and (number not in columns or not np.isfinite(columns[number]).any()):
            raise UserError(f"{called(name)} needs the column '{number}', which no training row has")
    if "nonnegative_reward" in needs and (negative := int((columns["reward"] < 0).sum())):
        raise UserError(
            f"{called(name)} needs rewards >= 0 (a negative one would train against its row): {negative} of "
            f"{len(columns['reward'])} rows are below 0, the lowest {np.nanmin(columns['reward']):.4g}; "
            f"{names.negative_rewards}"
        )


def check_columns(name: str, needs: frozenset[str], extras: Sequence[str], found: Sequence[str]) -> None:
    """Refuse prepared rows without a column that the objective reads; `extras`: columns of its extras."""
    missing = [column for column in [*extras, *(needs & {"reference_logprobs"})] if column not in found]
    if missing:
        raise UserError(
            f"{called(name)} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}, which the prepared rows "
            "lack: prepare them for it, or give rows with prompt, completion and reward"
        )


def check_groups(name: str, objective: Objective, group: np.ndarray) -> None:
    """Refuse an objective of groups if no prompt has two rows; `group` [N] ids of the training rows."""
    if objective.unit == "group" and len(np.unique(group)) == len(group):
        raise UserError(
            f"{called(name)} compares completions of one prompt, and each of the {len(group)} training rows has "
            "another prompt: give several completions a prompt (`leftover generate` writes such rows)"
        )
