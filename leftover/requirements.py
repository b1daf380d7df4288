"""What the policies of a recipe ask of its rows and rewards, and their refusal as early as the data allow."""

from typing import Any

import numpy as np

from leftover.config import Recipe
from leftover.errors import UserError
from leftover.objectives import Columns, Objective
from leftover.ppo import ONLINE
from leftover.selection import check_groups, check_requirements
from leftover.table import column, equals
from leftover.trackers import check_trackers
from leftover.training_config import declared
from leftover.workspace import Run


def offline_policies(recipe: Recipe) -> list[str]:
    """The policies that train on scored rows; the others write and score completions of their own."""
    return [name for name, fields in recipe.policies.items() if fields.get("objective") not in ONLINE]


def declared_by(recipe: Recipe, policy: str) -> tuple[Objective, Any]:
    """The objective of a policy, and its settings."""
    return declared(recipe.train | recipe.policies[policy])


def needs_of(recipe: Recipe, policy: str) -> frozenset[str]:
    """What a policy requires: its objective under its settings, and the rows that it selects."""
    objective, settings = declared_by(recipe, policy)
    selected_by = {"leftover": {"reward", "value", "advantage"}, "top": {"reward"}}
    return objective.needs(settings) | selected_by.get(rows_of(recipe, policy), frozenset())


def needs_value(run: Run) -> bool:
    """Whether any policy of the recipe uses values or the leftover selection."""
    return any("value" in needs_of(run.recipe, name) for name in offline_policies(run.recipe))


def rows_of(recipe: Recipe, policy: str) -> str:
    """all, leftover or top: which rows a policy selects."""
    rows = str((recipe.train | recipe.policies[policy]).get("rows", "auto"))
    return declared_by(recipe, policy)[0].rows if rows == "auto" else rows


def check_recipe(run: Run) -> None:
    """Refuse what the recipe alone shows to be impossible."""
    for name in offline_policies(run.recipe):
        if "reward_quantile" in needs_of(run.recipe, name) and not run.reward.scores_new_completions:
            raise UserError(
                f"policy '{name}' ranks rewards among those of the reference's own completions, and recorded scores "
                "cannot score these: give reward.functions that do"
            )


def check_reporting(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed."""
    sections = {"train": recipe.train, "reference.train": recipe.reference.train}
    for section, fields in (sections | {f"policies.{n}": fields for n, fields in recipe.policies.items()}).items():
        check_trackers(fields.get("report_to"), f"{section}.report_to")


def check_prompts(run: Run) -> None:
    """Refuse a policy that compares completions where no prompt has two of them; known before anything is scored."""
    table = run.table.open("rows", "split", "tokens")
    group = column(table, "group")[training_mask(table)]
    for name in offline_policies(run.recipe):
        check_groups(name, declared_by(run.recipe, name)[0], group)


def check_rewards(run: Run) -> None:
    """Refuse a policy that the rewards cannot serve, before the reference is fitted for it."""
    table = run.table.open("rows", "split", "tokens", "reward")
    everything = {
        "reward": column(table, "reward"),
        "group": column(table, "group"),
        "is_chosen": column(table, "is_chosen").astype(np.float64),
    }
    trains = training_mask(table)
    for name in offline_policies(run.recipe):
        objective, _ = declared_by(run.recipe, name)
        rows = trains & (everything["is_chosen"] == 1) if trains_on_chosen(run.recipe, objective) else trains
        _check_policy(run, name, {column: values[rows] for column, values in everything.items()})


def trains_on_chosen(recipe: Recipe, objective: Objective) -> bool:
    """Whether only the chosen of a pair trains: `data.rows: chosen`, but for objectives that compare the two."""
    return recipe.data.rows == "chosen" and objective.unit == "completion"


def training_mask(table: Any) -> np.ndarray:
    """[N] bool: the rows of the training split that are kept."""
    return equals(table, "split", "train") & equals(table, "kept", True)


def _check_policy(run: Run, name: str, columns: Columns) -> None:
    objective, _ = declared_by(run.recipe, name)
    needs, reward = needs_of(run.recipe, name), columns["reward"]
    if "reward" in needs and not np.isfinite(reward).any():
        raise UserError(
            f"policy '{name}' needs scores, and no training row has one in the column "
            f"'{run.recipe.data.columns.reward}': name the column in data.columns.reward, or give reward.functions"
        )
    if "advantage" in needs and np.nanmax(reward) == np.nanmin(reward) and run.value_targets != "reference_samples":
        # Left to the arithmetic, advantages of rounding errors would be trained on.
        raise UserError(
            f"policy '{name}': all recorded rewards are equal ({np.nanmax(reward):g}), so that no training row has "
            "a positive advantage: there is nothing left over to train on"
        )
    if "nonnegative_reward" in needs:
        check_requirements(name, objective, {"reward": reward}, only=("reward",))
    if objective.usable is not None and not objective.usable(columns, np.isfinite(reward)).any():
        raise UserError(
            f"policy '{name}' compares completions of one prompt by their rewards, and no training prompt has two of "
            "different reward"
        )
