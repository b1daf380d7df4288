"""The settings that a run would take, checked as a run checks them, without its folder."""

import copy
from typing import Any

from leftover.commands.plan.shape import find_config
from leftover.errors import UserError, nearest
from leftover.models.load import max_positions
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


class Unwritten(Run):
    """A run that claims no folder: the checks of its recipe, and what it would use."""

    def _claim_folder(self) -> None:
        return

    def check_packages(self) -> None:
        """Missing packages are told in the plan: it may be made on another machine than the run."""

    def _positions(self, path: str) -> int | None:
        config, _ = find_config(self.recipe.model)
        return None if config is None else max_positions(config)

    def original(self, training: str, key: str, default: Any = None) -> Any:
        """A setting of a policy, or of the reference, as the recipe has it."""
        recipe = self.recipe
        fields = recipe.reference.train if training == "reference" else recipe.train | recipe.policies[training]
        return fields.get(key, default)

    def dtype_of(self, training: str) -> str | None:
        """The autocast dtype of a training."""
        if self.original(training, "bf16"):
            return "bfloat16"
        return "float16" if self.original(training, "fp16") else None

    def optimizer_of(self, training: str) -> str:
        return str(self.original(training, "optim", "adamw_torch"))


def training_settings(run: Unwritten, policies: bool) -> dict[str, Any]:
    """LoLConfig of the reference (where it is fitted) and of every policy, without what only this machine refuses."""
    from leftover.training.run import _args, reference_settings, training_args

    recipe = run.recipe
    _check_optimizers([recipe.train, recipe.reference.train, *recipe.policies.values()])
    portable = copy.copy(run)
    portable.recipe = recipe.model_copy(
        update={
            "train": _portable(recipe.train),
            "policies": {name: _portable(fields) for name, fields in recipe.policies.items()},
        }
    )
    found: dict[str, Any] = {}
    if recipe.reference.source == "fit":
        reference = reference_settings(_portable(recipe.reference.train))
        found["reference"] = _args(portable, reference, run.folder / "reference", run.seed)
    if policies:
        found |= {name: training_args(portable, name, recipe.seeds[0]) for name in recipe.policies}
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
