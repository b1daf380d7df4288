"""What a run would refuse, found without its folder and the network, and the training settings that it would take."""

from dataclasses import dataclass
from typing import Any

from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.shape import find_config
from leftover.models.load import max_positions
from leftover.objectives.requirements import check_requirements
from leftover.prepare.checks import check_recipe
from leftover.recipe.needs import declared_by, needs_of, offline_policies, trains_on_chosen
from leftover.recipe.offline import LoLConfig
from leftover.recipe.online import PPOConfig
from leftover.recipe.sections import Recipe, autocast_dtype
from leftover.rewards import SumReward
from leftover.runs.claim import check_limits, check_rewards, model_positions
from leftover.runs.run import Run

# Settings that LoLConfig refuses on a machine that cannot run them; they change no number of steps.
_MACHINE = {
    "optim", "bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cpu", "torch_compile", "report_to",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Of one training: what it takes on any machine, and what the recipe says of the device."""

    args: LoLConfig | PPOConfig
    dtype: str | None  # of autocast
    optimizer: str


def checked_reward(recipe: Recipe) -> SumReward:
    """The reward of a recipe that is checked as `open_run` and `prepare` check it before they read rows.

    Missing packages are reported, not refused: the run may be made on another machine.
    """
    run = Run(recipe)
    check_rewards(run)
    if recipe.model.path is None:
        positions = model_positions(recipe.model)
    else:
        config, _ = find_config(recipe.model)
        positions = None if config is None else max_positions(config)
    check_limits(recipe, positions)
    check_recipe(recipe, run.reward)
    return run.reward


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


def training_settings(recipe: Recipe, policies: bool) -> dict[str, Settings]:
    """Settings of the reference (where it is fitted) and of every policy, without what only this machine refuses."""
    from leftover.training.settings import reference_args, training_args

    update = {
        "train": _portable(recipe.train),
        "reference": recipe.reference.model_copy(update={"train": _portable(recipe.reference.train)}),
        "policies": {name: _portable(fields) for name, fields in recipe.policies.items()},
    }
    run = Run(recipe.model_copy(update=update))
    found: dict[str, Settings] = {}
    if recipe.reference.source == "fit":
        found["reference"] = _settings(reference_args(run.recipe, run.folder), recipe.reference.train)
    for name in recipe.policies if policies else ():
        found[name] = _settings(training_args(run, name, recipe.seeds[0]), recipe.train | recipe.policies[name])
    return found


def _settings(args: LoLConfig | PPOConfig, fields: dict[str, Any]) -> Settings:
    return Settings(args, autocast_dtype(fields), str(fields.get("optim", LoLConfig.optim)))


def _portable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _MACHINE}
