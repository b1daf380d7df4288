"""The checks and the training settings of a run, without its folder and without the network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.shape import find_config
from leftover.commands.dry_run.sources import MISSING, on_the_hub
from leftover.commands.dry_run.sources import list_sources as needed
from leftover.data.formats import check_files, list_sources
from leftover.data.hh import listed_rows
from leftover.errors import UserError, looked_for
from leftover.models.load import is_encoder_decoder, max_positions
from leftover.objectives.requirements import check_requirements
from leftover.prepare.checks import check_recipe
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.needs import called, needs_of, offline_policies, policy_objective, trains_on_chosen
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe, autocast_dtype
from leftover.rewards import SumReward
from leftover.runs.claim import (
    check_encoder_decoder,
    check_fitted,
    check_limits,
    check_one_round,
    check_rewards,
    model_positions,
)
from leftover.runs.run import Run

# LoLConfig refuses these on a machine that cannot run them. They do not change the number of steps.
_MACHINE = {
    "optim", "bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cpu", "torch_compile", "report_to",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings of one training that every machine accepts, and two that depend on the device."""

    args: LoLConfig | PPOConfig
    dtype: str | None  # of autocast
    optimizer: str


def checked_reward(recipe: Recipe) -> SumReward:
    """The reward of a recipe, after the checks that `open_run` and `prepare` make before they read rows.

    Missing packages are not refused but listed: the run may be made on another machine.
    """
    check_one_round(recipe)
    run = Run(recipe)
    check_rewards(run)
    config, _ = find_config(recipe.model)
    two_texts = config is not None and is_encoder_decoder(config)
    if recipe.model.path is None:
        positions = model_positions(recipe.model)
    else:
        positions = None if config is None else max_positions(config)
    check_limits(recipe, positions, two_texts=two_texts)
    check_encoder_decoder(recipe, two_texts)
    check_recipe(recipe, run.reward)
    return run.reward


def check_here(recipe: Recipe) -> None:
    """Refuse local files and models that are missing, as the run does; what can be a Hub id is left to it."""
    data, model = recipe.data, recipe.model.path
    check_files(data)
    for path in data.paths:
        if not Path(path).exists() and not on_the_hub(path):
            raise UserError(f"no data file at '{path}' (key data.path){looked_for(path)}")
    if data.drop_listed is not None:
        listed_rows(list_sources(data), data.drop_listed)
    check_fitted(Run(recipe))
    for source in needed(recipe, judges=True):
        if source.state == MISSING:
            raise UserError(f"no {source.purpose} at '{source.name}'{looked_for(source.name)}")
    if model is not None and Path(model).exists() and not (Path(model) / "config.json").is_file():
        model_positions(recipe.model)  # refuses a folder without a model


def check_recorded(recipe: Recipe, rows: Rows | str) -> None:
    """Refuse a policy that needs rewards >= 0 if its rewards are the recorded ones, and some are below.

    Transformed or summed rewards are known only once rows are scored; so is which rows are too long, if only a sample
    of the rows is tokenised.
    """
    as_recorded = recipe.reward.functions == [{"type": "column"}] and recipe.reward.transform is None
    if not as_recorded or not isinstance(rows, Rows) or rows.lengths is None or not rows.lengths.exact:
        return
    for name in offline_policies(recipe):
        objective, _ = policy_objective(recipe, name)
        if "nonnegative_reward" in needs_of(recipe, name):
            trains = rows.where("train", trains_on_chosen(recipe, objective)) & rows.lengths.kept & rows.scored
            if trains.any():
                check_requirements(called(recipe, name), objective, {"reward": rows.recorded[trains]}, only=("reward",))


def training_settings(recipe: Recipe, policies: bool) -> dict[str, Settings]:
    """Settings of the reference (if it is fitted) and of the policies; this machine need not be able to run them."""
    from leftover.training.settings import reference_args, training_args

    update = {
        "train": _portable(recipe.train),
        "reference": recipe.reference.model_copy(update={"train": _portable(recipe.reference.train)}),
        "policies": {name: _portable(fields) for name, fields in recipe.policies.items()},
    }
    run = Run(recipe.model_copy(update=update))
    args = {"reference": reference_args(run.recipe, run.folder)} if recipe.reference.source == "fit" else {}
    args |= {name: training_args(run, name, recipe.seeds[0]) for name in recipe.policies if policies}
    found = {}
    for name, own in args.items():
        fields = recipe.reference.train if name == "reference" else recipe.train | recipe.policies[name]
        found[name] = Settings(own, autocast_dtype(fields), str(fields.get("optim", LoLConfig.optim)))
    return found


def _portable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _MACHINE}
