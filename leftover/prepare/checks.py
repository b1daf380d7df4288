"""What the policies of a recipe ask of its rows and rewards, and their refusal as early as the data allow."""

import numpy as np

from leftover.errors import UserError
from leftover.monitoring.trackers import check_trackers
from leftover.objectives import Columns
from leftover.objectives.requirements import check_groups, check_requirements
from leftover.prepare.readers import training_mask
from leftover.recipe.needs import needs_of, offline_policies, policy_objective, trains_on_chosen
from leftover.recipe.sections import Recipe
from leftover.runs.run import Run
from leftover.store.table import column


def needs_value(run: Run) -> bool:
    """Whether any policy of the recipe uses values or the leftover selection."""
    return any("value" in needs_of(run.recipe, name) for name in offline_policies(run.recipe))


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
        check_groups(name, policy_objective(run.recipe, name)[0], group)


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
        objective, _ = policy_objective(run.recipe, name)
        rows = trains & (everything["is_chosen"] == 1) if trains_on_chosen(run.recipe, objective) else trains
        _check_policy(run, name, {column: values[rows] for column, values in everything.items()})


def _check_policy(run: Run, name: str, columns: Columns) -> None:
    objective, _ = policy_objective(run.recipe, name)
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
