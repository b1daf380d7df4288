"""What the policies of a recipe need of its rows."""

from typing import Any

from leftover.objectives import ONLINE, Objective
from leftover.recipe.lol_config import objective_and_settings
from leftover.recipe.sections import Recipe


def offline_policies(recipe: Recipe) -> list[str]:
    """The policies that train on scored rows; the others write completions themselves."""
    return [name for name, fields in recipe.policies.items() if fields.get("objective") not in ONLINE]


def policy_objective(recipe: Recipe, policy: str) -> tuple[Objective, Any]:
    """The objective of a policy, and its settings."""
    return objective_and_settings(recipe.train | recipe.policies[policy])


def needs_of(recipe: Recipe, policy: str) -> frozenset[str]:
    """What a policy requires: its objective under its settings, and the rows that it selects."""
    objective, settings = policy_objective(recipe, policy)
    selected_by = {"leftover": {"reward", "value", "advantage"}, "top": {"reward"}}
    return objective.needs(settings) | selected_by.get(rows_of(recipe, policy), frozenset())


def rows_of(recipe: Recipe, policy: str) -> str:
    """all, leftover or top: which rows a policy selects."""
    rows = str((recipe.train | recipe.policies[policy]).get("rows", "auto"))
    return policy_objective(recipe, policy)[0].rows if rows == "auto" else rows


def trains_on_chosen(recipe: Recipe, objective: Objective) -> bool:
    """Whether only the chosen of a pair trains: `data.train_on: chosen`, except for objectives that compare the two."""
    return recipe.data.train_on == "chosen" and objective.unit == "completion"
