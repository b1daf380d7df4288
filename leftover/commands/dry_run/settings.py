"""The settings that a run would take, checked as a run checks them, without its folder."""

from typing import Any

from leftover.commands.dry_run.shape import find_config
from leftover.errors import UserError, nearest
from leftover.models.load import max_positions
from leftover.recipe.sections import Recipe
from leftover.runs.claim import check_limits, check_rewards, model_positions
from leftover.runs.run import Run

# Settings that LoLConfig refuses on a machine that cannot run them; they change no number of steps.
_MACHINE = (
    "optim",
    "bf16",
    "fp16",
    "tf32",
    "bf16_full_eval",
    "fp16_full_eval",
    "use_cpu",
    "torch_compile",
    "report_to",
)


def checked_run(recipe: Recipe) -> Run:
    """The run of a recipe, checked as `open_run` does, without its folder and without the network.

    Missing packages are part of the plan: it may be made on another machine than the run.
    """
    run = Run(recipe)
    check_rewards(run)
    if recipe.model.path is None:
        positions = model_positions(recipe.model)
    else:
        config, _ = find_config(recipe.model)
        positions = None if config is None else max_positions(config)
    check_limits(recipe, positions)
    return run


def original(recipe: Recipe, training: str, key: str, default: Any = None) -> Any:
    """A setting of a policy, or of the reference, as the recipe has it."""
    fields = recipe.reference.train if training == "reference" else recipe.train | recipe.policies[training]
    return fields.get(key, default)


def dtype_of(recipe: Recipe, training: str) -> str | None:
    """The autocast dtype of a training."""
    if original(recipe, training, "bf16"):
        return "bfloat16"
    return "float16" if original(recipe, training, "fp16") else None


def optimizer_of(recipe: Recipe, training: str) -> str:
    return str(original(recipe, training, "optim", "adamw_torch"))


def training_settings(recipe: Recipe, policies: bool) -> dict[str, Any]:
    """LoLConfig of the reference (where it is fitted) and of every policy, without what only this machine refuses."""
    from leftover.training.settings import reference_args, training_args

    _check_optimizers([recipe.train, recipe.reference.train, *recipe.policies.values()])
    update = {
        "train": _portable(recipe.train),
        "reference": recipe.reference.model_copy(update={"train": _portable(recipe.reference.train)}),
        "policies": {name: _portable(fields) for name, fields in recipe.policies.items()},
    }
    run = Run(recipe.model_copy(update=update))
    found: dict[str, Any] = {}
    if recipe.reference.source == "fit":
        found["reference"] = reference_args(run.recipe, run.folder)
    if policies:
        found |= {name: training_args(run, name, recipe.seeds[0]) for name in recipe.policies}
    return found


def _portable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _MACHINE}


def _check_optimizers(settings: list[dict[str, Any]]) -> None:
    from transformers.training_args import OptimizerNames

    valid = [name.value for name in OptimizerNames]
    for fields in settings:
        if fields.get("optim", valid[0]) not in valid:
            raise UserError(
                f"training settings are refused: optim '{fields['optim']}'{nearest(str(fields['optim']), valid)} is "
                "no optimizer of transformers"
            )
