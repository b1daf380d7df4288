"""The whole training settings of a run's reference and policies: what the recipe sets, and our defaults."""

from pathlib import Path
from typing import Any

from leftover.errors import UserError, one_line
from leftover.objectives import ONLINE
from leftover.publish.hub import HUB_KEYS
from leftover.recipe.lol_config import REFERENCE_DEFAULTS, LoLConfig, objective_settings
from leftover.recipe.policy_config import cadence
from leftover.recipe.ppo_config import PPOConfig, own_settings
from leftover.recipe.sections import Recipe
from leftover.runs.names import policy_folder
from leftover.runs.run import Run
from leftover.store.sealed import digest

# Settings that change what is printed, where, or with how much memory, not what is computed: they are in no key.
_SILENT = {
    "report_to", "run_name", "logging_steps", "logging_dir", "disable_tqdm", "log_level", "dataloader_num_workers",
    "dataloader_pin_memory", "save_total_limit", "save_on_signal", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", *HUB_KEYS,
}  # fmt: skip


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings without those that no number depends on."""
    return {name: value for name, value in settings.items() if name not in _SILENT}


def settings_key(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings as they stand in keys.

    Those that once meant something else have a word more: what was trained under them then is trained anew.
    """
    found = effective(settings)
    if found.get("max_tokens_per_batch"):
        found["loss_divided_by"] = "units of a step on average"  # once: of this step
    if found.get("objective") == "awr":
        found["advantages"] = "centred"
    return found


def policy_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """Fields of LoLConfig (online: of PPOConfig) of one policy: the shared ones and its own."""
    # The rule for completions without an end is here for the key: it chooses the checkpoint.
    shared, own = recipe.train | recipe.unfinished_key, recipe.policies[name]
    if own.get("objective") in ONLINE:
        # Here and not in `_config` alone, so that it is in the key: the policy trains on completions of this length.
        return {"max_completion_length": recipe.max_new_tokens} | own_settings(shared, own)
    return shared | own


def training_args(run: Run, name: str, seed: int) -> LoLConfig | PPOConfig:
    """The whole settings of one policy; UserError for what its config or the objective refuses."""
    metric = "reward/mean" if run.reward.scores_new_completions else "logratio/rank_correlation"
    own = policy_settings(run.recipe, name)
    settings = cadence(own) | _best_by(own, metric, greater_is_better=True) | own
    args = _config(run.recipe, settings, run.folder, policy_folder(run.folder, name, seed), seed)
    if isinstance(args, LoLConfig):
        objective_settings(args)
    return args


def reference_args(recipe: Recipe, run_folder: Path) -> LoLConfig | PPOConfig:
    """The whole settings of the reference's training by NLL: the checkpoint of the lowest NLL is kept."""
    own = recipe.reference.train
    best = _best_by(own, "nll", greater_is_better=False)
    settings = cadence(own) | REFERENCE_DEFAULTS | best | own | {"objective": "nll"}
    return _config(recipe, settings, run_folder, run_folder / "reference", recipe.seed)


def try_out(args: LoLConfig | PPOConfig) -> None:
    """Raises UserError for what transformers and torch refuse when a training begins, hours later."""
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.utils import is_liger_kernel_available

    if args.fsdp and args.world_size == 1:
        raise UserError("fsdp parts a model among processes, and this is one: leave it out, or start several")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("use_liger_kernel: true needs the package liger-kernel: install it, or leave the setting out")
    one = torch.nn.Linear(1, 1)
    tried = "torch_compile, torch_compile_backend or torch_compile_mode"
    try:
        if args.torch_compile:
            torch.compile(one, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)
        if args.optim_target_modules is None:
            tried = f"optim: {args.optim}, optim_args, adam_beta1, adam_beta2, learning_rate or weight_decay"
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, one)  # type: ignore[arg-type]
            made = optimizer(one.parameters(), **options)
            tried = f"lr_scheduler_type: {args.lr_scheduler_type} or lr_scheduler_kwargs"
            get_scheduler(args.lr_scheduler_type, made, 1, 10, dict(args.lr_scheduler_kwargs or {}))  # type: ignore[arg-type]
    except Exception as error:  # another type for every cause
        raise UserError(f"training settings are refused ({tried}): {one_line(error)}") from error


def subject(run_folder: Path, folder: Path) -> str:
    """The name of what trains in `folder`: reference, or policy and seed."""
    parts = folder.relative_to(run_folder).parts
    return "-".join(parts[1:] or parts)


def _best_by(own: dict[str, Any], metric: str, *, greater_is_better: bool) -> dict[str, Any]:
    """By what the checkpoint is chosen; of a metric that `own` names, the config knows which way it is better."""
    if "metric_for_best_model" in own:
        return {}
    return {"metric_for_best_model": metric, "greater_is_better": greater_is_better}


def _config(
    recipe: Recipe, settings: dict[str, Any], run_folder: Path, folder: Path, seed: int
) -> LoLConfig | PPOConfig:
    defaults: dict[str, Any] = {
        **recipe.training_defaults,
        "disable_tqdm": False,  # `shown` turns moving bars off where nothing may move
        "project": recipe.name,
        "run_name": f"{recipe.name}-{subject(run_folder, folder)}-{digest([str(run_folder), settings])[:6]}",
    }
    config = PPOConfig if settings.get("objective") in ONLINE else LoLConfig
    settings = {name: value for name, value in settings.items() if name not in HUB_KEYS}
    own: dict[str, Any] = {"output_dir": str(folder / "checkpoints"), "seed": seed} | defaults
    try:
        return config(**(own | settings))
    except UserError:
        raise
    except Exception as error:  # transformers raises a different type for every cause
        names = [name for name, value in settings.items() if _refusal(config, own | {name: value}) == str(error)]
        which = f"'{names[0]}' is {settings[names[0]]!r:.60}: " if names else ""
        raise UserError(f"training settings are refused: {which}{one_line(error)}") from error


def _refusal(config: type[LoLConfig | PPOConfig], settings: dict[str, Any]) -> str | None:
    try:
        config(**settings)
    except Exception as error:  # as above
        return str(error)
    return None
