"""What the policies of a recipe need of its rows."""

from typing import Any

from leftover.objectives import ONLINE, Objective
from leftover.recipe.lol_config import LoLConfig, objective_and_settings
from leftover.recipe.sections import Recipe


def records_scores(recipe: Recipe) -> bool:
    """Whether scores must stand in the rows: a reward is their column, and nothing else scores a completion for it."""
    return any(of.get("type") == "column" and not of.get("new_completions") for of in recipe.reward.functions)


def labels_are_rewards(recipe: Recipe) -> bool:
    """Whether the recorded score alone is the reward, so that rows with a `label` are as desirable as it says."""
    functions = recipe.reward.functions
    return len(functions) == 1 and functions[0].get("type") == "column" and functions[0].get("weight", 1) > 0


def offline_policies(recipe: Recipe) -> list[str]:
    """The policies that train on scored rows; the others write completions themselves."""
    return [name for name, fields in recipe.policies.items() if fields.get("objective") not in ONLINE]


def policy_objective(recipe: Recipe, policy: str) -> tuple[Objective, Any]:
    """The objective of a policy, and its settings."""
    return objective_and_settings(recipe.train | recipe.policies[policy])


def called(recipe: Recipe, policy: str) -> str:
    """A policy with its name and its objective, for messages."""
    objective = (recipe.train | recipe.policies[policy]).get("objective", LoLConfig.objective)
    return f"policy '{policy}' (objective {objective})"


def needs_of(recipe: Recipe, policy: str) -> frozenset[str]:
    """What a policy requires: its objective under its settings, and the rows that it selects."""
    objective, settings = policy_objective(recipe, policy)
    selected_by = {"leftover": {"reward", "value", "advantage"}, "top": {"reward"}, "best": {"reward"}}
    return objective.needs(settings) | selected_by.get(rows_of(recipe, policy), frozenset())


def rows_of(recipe: Recipe, policy: str) -> str:
    """all, leftover, top or best: which rows a policy selects."""
    rows = str((recipe.train | recipe.policies[policy]).get("rows", "auto"))
    return policy_objective(recipe, policy)[0].rows if rows == "auto" else rows


def trains_on_chosen(recipe: Recipe, objective: Objective) -> bool:
    """Whether only the chosen of a pair trains: `data.train_on: chosen`, except for objectives that compare the two."""
    return recipe.data.train_on == "chosen" and objective.unit == "completion"
