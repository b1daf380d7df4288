"""What recorded rewards tell before anything is scored."""

from leftover.commands.dry_run.rows import Rows
from leftover.objectives.requirements import check_requirements
from leftover.recipe.needs import declared_by, needs_of, offline_policies, trains_on_chosen
from leftover.recipe.sections import Recipe


def check_recorded(recipe: Recipe, rows: Rows | str) -> None:
    """Refuse a policy that needs rewards >= 0 where the recorded ones are its rewards, and some are below.

    Rewards that are transformed or summed are known once rows are scored; so is, of a sample, which rows are dropped
    as too long.
    """
    as_recorded = recipe.reward.functions == [{"type": "column"}] and recipe.reward.transform is None
    if not as_recorded or not isinstance(rows, Rows) or rows.lengths is None or not rows.lengths.exact:
        return
    for name in offline_policies(recipe):
        objective, _ = declared_by(recipe, name)
        if "nonnegative_reward" in needs_of(recipe, name):
            trains = rows.where("train", trains_on_chosen(recipe, objective)) & rows.lengths.kept & rows.scored
            if trains.any():
                check_requirements(name, objective, {"reward": rows.recorded[trains]}, only=("reward",))
