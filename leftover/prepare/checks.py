"""What the policies of a recipe ask of its rows and rewards, and their refusal as early as the data allow."""

import numpy as np

from leftover.errors import UserError
from leftover.monitoring.trackers import check_trackers
from leftover.objectives.advantage import differ
from leftover.objectives.requirements import check_groups, check_requirements
from leftover.prepare.readers import selection_rows, training_mask
from leftover.recipe.data_section import Constant, DataSection
from leftover.recipe.needs import called, needs_of, offline_policies, policy_objective, trains_on_chosen
from leftover.recipe.sections import Recipe
from leftover.rewards import ColumnReward, SumReward
from leftover.runs.names import score_block
from leftover.store.table import Table, column, equals


def value_targets(recipe: Recipe, reward: SumReward) -> str:
    """The kind of value targets; `auto`: recorded if the reward has a recorded column, else reference_samples.

    With one prompt for all rows: group_loo.
    """
    targets = recipe.value.targets
    if targets == "auto" and isinstance(recipe.data.columns.prompt, Constant):
        return "group_loo"  # all rows are completions of the one prompt
    if targets == "auto":
        return "recorded" if reward.has_recorded_scores else "reference_samples"
    if targets == "reference_samples" and not reward.scores_new_completions:
        raise UserError(
            "value.targets: reference_samples scores new completions, but the rewards are a recorded column; use "
            "recorded or group_loo"
        )
    return targets


def needs_value(recipe: Recipe) -> bool:
    """Whether any policy of the recipe uses values or the leftover selection."""
    return any("value" in needs_of(recipe, name) for name in offline_policies(recipe))


def check_recipe(recipe: Recipe, reward: SumReward) -> None:
    """Refuse what the recipe alone shows to be impossible."""
    for name in offline_policies(recipe):
        if "reward_quantile" in needs_of(recipe, name) and not reward.scores_new_completions:
            raise UserError(
                f"{called(recipe, name)} ranks rewards among those of the reference's own completions, and recorded "
                "scores cannot score these: give reward.functions that do"
            )
    if recipe.value.own_samples and needs_value(recipe):
        targets = value_targets(recipe, reward)
        if targets != "reference_samples":
            raise UserError(
                f"value.own_samples needs samples of the reference, and value.targets is {targets}: set "
                "value.targets: reference_samples with a reward that scores new completions, or remove own_samples"
            )


def check_reporting(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed."""
    for section, fields in recipe.training_sections.items():
        check_trackers(fields.get("report_to"), f"{section}.report_to")


NAME_SCORES = "name the column of scores in data.columns.reward, or give reward.functions that score the rows"
NONE_CHOSEN = (
    "data.train_on: chosen needs chosen/rejected pairs or a column is_chosen, and no training row is marked as "
    "chosen: set data.train_on: all, or give such rows"
)


KEEP_LONG = "raise data.max_completion_tokens, or set data.long_completions: cut"


def all_too_long(data: DataSection) -> UserError:
    """The refusal of rows of which none is left by the length limit."""
    return UserError(
        f"every completion is longer than data.max_completion_tokens ({data.max_completion_tokens}); {KEEP_LONG}"
    )


def check_prompts(recipe: Recipe, table: Table) -> None:
    """Refuse rows of which a policy can train on none, or compare none, before anything is scored."""
    rows = table.open("rows", "split", "tokens")
    trains = training_mask(rows)
    if recipe.data.train_on == "chosen" and not (trains & equals(rows, "is_chosen", True)).any():
        raise UserError(NONE_CHOSEN)
    group = column(rows, "group")[trains]
    for name in offline_policies(recipe):
        check_groups(called(recipe, name), policy_objective(recipe, name)[0], group)


def _check_any_score(recipe: Recipe, reward: SumReward, table: Table, trains: np.ndarray) -> None:
    """Refuse rewards that score no training row, whatever the policies: no checkpoint could be chosen either.

    Policies that write their own completions need no scored rows, if something else scores those.
    """
    if np.isfinite(column(table.open("reward"), "reward")[trains]).any():
        return
    if not offline_policies(recipe) and reward.scores_new_completions:
        return
    silent = []
    for name, component in reward.components.items():
        block = score_block(name)
        if not np.isfinite(column(table.open(block), f"reward/{name}")[trains]).any():
            silent.append((name, isinstance(component, ColumnReward)))
    functions = ", ".join(f"'{name}'" for name, is_column in silent if not is_column)
    if functions:
        raise UserError(
            f"no training row has a reward: {functions} (reward.functions) gave no score (None) for any of them; let "
            "it return a number for the rows that it can judge"
        )
    if silent:
        raise UserError(f"no training row has a score in the column '{recipe.data.columns.reward}'; {NAME_SCORES}")
    raise UserError(
        f"no training row has a score of all of {', '.join(reward.components)}: set reward.missing to impute or "
        "renormalise"
    )


def check_selection(recipe: Recipe, reward: SumReward, table: Table) -> None:
    """Refuse recorded scores of the validation rows that can choose no checkpoint."""
    if reward.scores_new_completions:
        return
    rows = selection_rows(recipe, table)
    scores = column(rows, "reward")
    scores = scores[np.isfinite(scores)]
    if len(scores) < 3 or np.ptp(scores) == 0:
        raise UserError(
            f"the checkpoint is chosen by the rank correlation with recorded scores, and the {len(rows)} selection "
            f"rows have {len(scores)} scores ({len(np.unique(scores))} distinct): raise data.validation_size or "
            "evaluate.max_selection_prompts"
        )


def check_rewards(recipe: Recipe, reward: SumReward, table: Table) -> None:
    """Refuse a policy that the rewards cannot serve, before the reference is fitted for it."""
    rows = table.open("rows", "split", "tokens", "reward")
    everything = {name: column(rows, name).astype(np.float64) for name in ("reward", "group", "is_chosen")}
    trains = training_mask(rows)
    _check_any_score(recipe, reward, table, trains)
    for name in offline_policies(recipe):
        (objective, _), needs, policy = policy_objective(recipe, name), needs_of(recipe, name), called(recipe, name)
        chosen_only = trains_on_chosen(recipe, objective)
        inside = trains & (everything["is_chosen"] == 1) if chosen_only else trains
        columns = {key: values[inside] for key, values in everything.items()}
        scores = columns["reward"]
        known = scores[np.isfinite(scores)]
        if "reward" in needs and not len(known):
            raise UserError(
                f"{policy} needs scores, and no {'chosen ' * chosen_only}training row has one; {NAME_SCORES}"
            )
        if "advantage" in needs and not differ(known) and value_targets(recipe, reward) != "reference_samples":
            # Left to the arithmetic, advantages of rounding errors would be trained on.
            which, remedy = "", "give scores that differ"
            if chosen_only:
                which, remedy = "with data.train_on: chosen ", "set data.train_on: all, give scores in chosen_reward"
            raise UserError(
                f"{policy}: {which}all recorded rewards are equal ({known.max():g}), so that no training "
                f"row has a positive advantage; {remedy}, or give reward.functions"
            )
        if "nonnegative_reward" in needs:
            check_requirements(policy, objective, columns, only=("reward",))
        if objective.usable is not None and not objective.usable(columns, np.isfinite(scores)).any():
            raise UserError(
                f"{policy} compares completions of one prompt by their rewards, and no training prompt has two "
                "of different reward"
            )
