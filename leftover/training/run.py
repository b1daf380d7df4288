"""Training from the table: the reference by NLL, and every policy by its objective."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from leftover.errors import UserError
from leftover.models.load import save_model
from leftover.monitoring.callbacks import MetricsFile, last_whole_checkpoint
from leftover.monitoring.costs import cost_callback
from leftover.monitoring.memory import peak_memory
from leftover.monitoring.trackers import own_run
from leftover.monitoring.training_display import shown
from leftover.objectives.online import ONLINE
from leftover.prepare.readers import available_blocks, selection_rows, training_rows
from leftover.publish.hub import HUB_KEYS
from leftover.recipe.lol_config import REFERENCE_DEFAULTS, LoLConfig, objective_and_settings, objective_settings
from leftover.recipe.needs import trains_on_chosen
from leftover.recipe.ppo_config import PPOConfig, own_settings
from leftover.runs.names import policy_folder
from leftover.runs.run import Run
from leftover.store.manifest import digest, read_json
from leftover.store.table import column, list_lengths
from leftover.training.batch_extras import row_columns
from leftover.training.ppo.trainer import PPOTrainer
from leftover.training.trainer import LoLTrainer

log = logging.getLogger(__name__)

# Settings that change what is said, where or with how much memory, not what is computed: they are in no key.
_SILENT = {
    "report_to", "run_name", "logging_steps", "logging_dir", "disable_tqdm", "log_level", "dataloader_num_workers",
    "dataloader_pin_memory", "save_total_limit", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", *HUB_KEYS,
}  # fmt: skip


def cadence(settings: dict[str, Any]) -> dict[str, Any]:
    """Every run is evaluated ten times (as the released runs) and saved then, and the best checkpoint is kept.

    Saving follows the evaluations that `settings` ask for: the best of them could not be kept otherwise.
    """
    every = {"strategy": settings.get("eval_strategy", "steps"), "steps": settings.get("eval_steps", 0.1)}
    found = {f"{what}_{name}": value for what in ("eval", "save") for name, value in every.items()}
    return found | {"save_total_limit": 1, "load_best_model_at_end": True}


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings without those that no number depends on."""
    return {name: value for name, value in settings.items() if name not in _SILENT}


def discard(folder: Path) -> None:
    """Remove the model, checkpoints and metrics of an earlier key."""
    shutil.rmtree(folder, ignore_errors=True)


def reference_settings(own: dict[str, Any]) -> dict[str, Any]:
    """Fields of LoLConfig of the reference's training: the checkpoint of the lowest NLL is kept."""
    best = {"metric_for_best_model": "nll", "greater_is_better": False}
    return cadence(own) | REFERENCE_DEFAULTS | best | own | {"objective": "nll"}


def train_reference(run: Run) -> dict[str, Any]:
    """Fit the reference by NLL; the checkpoint of lowest validation NLL is written to `reference/`."""
    folder = run.folder / "reference"
    settings = reference_settings(run.recipe.reference.train)
    chosen_only = run.recipe.data.train_on == "chosen"
    trainer = _trainer(
        run,
        run.load_base(),
        _args(run, settings, folder, run.seed),
        training_rows(run, "train", (), chosen_only=chosen_only),
        _some(training_rows(run, "validation", ()), run.seed),
        peft_config=run.lora_config(),
        reward_func=None,
    )
    return _fit(trainer, run, folder)


_MAX_LIKELIHOOD_ROWS = 2000  # of validation, which choose the reference's checkpoint: more cost more than they tell


def _some(rows: Any, seed: int) -> Any:
    chosen = np.random.default_rng(seed).permutation(len(rows))[:_MAX_LIKELIHOOD_ROWS]
    return rows.select(np.sort(chosen))


def train_policy(run: Run, name: str, seed: int) -> dict[str, Any]:
    """Train one policy with one seed from the reference; its chosen checkpoint is written to its folder."""
    folder = policy_folder(run, name, seed)
    can_score = run.reward.scores_new_completions
    args = training_args(run, name, seed)
    validation = selection_rows(run, available_blocks(run))
    if not can_score:
        _check_selection_scores(validation)
    trainer = _trainer(
        run,
        run.load_reference(),
        args,
        policy_rows(run, name),
        validation,
        peft_config=run.lora_config(),
        reward_func=run.reward if can_score else None,
    )
    r2 = (read_json(run.folder / "prepare.json").get("value") or {}).get("r2")
    if r2 is not None and "value" in available_blocks(run, name) and isinstance(trainer, LoLTrainer):
        trainer.run_metrics["value/r2"] = r2
    return _fit(trainer, run, folder)


def policy_rows(run: Run, name: str) -> Any:
    """The training rows that a policy selects from, with the constants and extra columns that its objective reads."""
    fields = run.recipe.train | run.recipe.policies[name]
    if fields.get("objective") in ONLINE:
        return training_rows(run, "train", available_blocks(run), chosen_only=run.recipe.data.train_on == "chosen")
    objective, settings = objective_and_settings(fields)
    return training_rows(
        run,
        "train",
        available_blocks(run, name),
        chosen_only=trains_on_chosen(run.recipe, objective),
        extras=row_columns(objective.needs(settings) | objective.optional),
    )


def policy_settings(run: Run, name: str) -> dict[str, Any]:
    """Fields of LoLConfig (online: of PPOConfig) of one policy: what all share, and its own."""
    shared, own = run.recipe.train, run.recipe.policies[name]
    if own.get("objective") in ONLINE:
        # Said here and not in `_args` alone, so that it is in the key: it is trained on completions of this length.
        return {"max_completion_length": run.max_new_tokens} | own_settings(shared, own)
    return shared | own


def _check_selection_scores(rows: Any) -> None:
    scores = column(rows, "reward")
    scores = scores[np.isfinite(scores)]
    if len(scores) < 3 or np.ptp(scores) == 0:
        raise UserError(
            f"the checkpoint is chosen by the rank correlation with recorded scores, and the {len(rows)} selection "
            f"rows have {len(scores)} scores ({len(np.unique(scores))} distinct): raise data.validation_size or "
            "evaluate.max_selection_prompts"
        )


def training_args(run: Run, name: str, seed: int) -> LoLConfig | PPOConfig:
    """The whole settings of one policy; UserError for what its config or the objective refuses."""
    metric = "reward/mean" if run.reward.scores_new_completions else "logratio/rank_correlation"
    own = policy_settings(run, name)
    settings = cadence(own) | {"metric_for_best_model": metric, "greater_is_better": True} | own
    args = _args(run, settings, policy_folder(run, name, seed), seed)
    if isinstance(args, LoLConfig):
        objective_settings(args)
    return args


def _args(run: Run, settings: dict[str, Any], folder: Path, seed: int) -> LoLConfig | PPOConfig:
    data = run.recipe.data
    defaults: dict[str, Any] = {
        "max_prompt_length": data.max_prompt_tokens,
        "max_completion_length": run.max_new_tokens,
        "chat_template_kwargs": run.recipe.model.template_options,
        "end_tokens": run.recipe.model.end_tokens,
        "per_device_eval_batch_size": run.recipe.evaluate.batch_size,
        "disable_tqdm": False,  # where nothing may move, `shown` sees to it
        "project": run.recipe.name,
        "run_name": f"{run.recipe.name}-{_subject(run, folder)}-{digest([str(run.folder), settings])[:6]}",
    }
    config = PPOConfig if settings.get("objective") in ONLINE else LoLConfig
    settings = {name: value for name, value in settings.items() if name not in HUB_KEYS}
    try:
        return config(output_dir=str(folder / "checkpoints"), seed=seed, **(defaults | settings))
    except (TypeError, ValueError) as error:
        raise UserError(f"training settings are refused: {error}") from error


def _trainer(
    run: Run,
    model: Any,
    args: LoLConfig | PPOConfig,
    train: Any,
    validation: Any,
    *,
    peft_config: Any,
    reward_func: Any,
) -> LoLTrainer | PPOTrainer:
    trainer_class: Any = PPOTrainer if isinstance(args, PPOConfig) else LoLTrainer
    return trainer_class(
        model,
        args,
        train,
        validation,
        reward_func,
        run.tokenizer,
        peft_config,
        callbacks=[MetricsFile(Path(str(args.output_dir)).parent / "metrics.jsonl"), cost_callback(run.manifest)],
    )


def _fit(trainer: LoLTrainer | PPOTrainer, run: Run, folder: Path) -> dict[str, Any]:
    checkpoint = last_whole_checkpoint(Path(str(trainer.args.output_dir)))
    if checkpoint:
        log.info("%s: continues at %s", folder.name, Path(checkpoint).name)
    with own_run(trainer, folder), shown(trainer, _subject(run, folder)), peak_memory() as peak:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    save_model(trainer.accelerator.unwrap_model(trainer.model), run.tokenizer, folder)
    history = [entry for entry in trainer.state.log_history if "eval_nll" in entry or "eval_reward/mean" in entry]
    shutil.rmtree(str(trainer.args.output_dir), ignore_errors=True)
    return {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "best_metric": trainer.state.best_metric,
        "selected_rows": trainer.num_selected,
        "effective_sample_size": trainer.effective_sample_size,
        "seconds": result.metrics.get("train_runtime"),
        **({"resumed_at": int(Path(checkpoint).name.rpartition("-")[2])} if checkpoint else {}),
        **peak,
        "evaluations": history,
        **(trainer.facts() if isinstance(trainer, PPOTrainer) else _offline_facts(trainer)),
    }


def _subject(run: Run, folder: Path) -> str:
    """reference, or policy and seed."""
    return "-".join(folder.relative_to(run.folder).parts[-2:])


def _offline_facts(trainer: LoLTrainer) -> dict[str, Any]:
    tokens = trained_tokens(trainer.train_dataset, trainer.draw_order)
    return {"trained_tokens": tokens, **trainer.selection_facts}


def trained_tokens(rows: Any, order: Any) -> int:
    """Tokens of the rows of a whole draw order: of prompts and completions, without padding."""
    lengths = list_lengths(rows, "prompt_ids") + list_lengths(rows, "completion_ids")
    return int(lengths[order.indices].sum())


def fit_reference(run: Run) -> None:
    """The reference: NLL on the training rows, or a model given by path, or the base as it is."""
    recipe = run.recipe
    if recipe.reference.source != "fit":
        log.info("reference: %s, taken from %s", recipe.reference.source, run.reference_path)
        if recipe.reference.source == "as_is" and recipe.model.path is None:
            raise UserError("reference.source: as_is needs model.path: random weights cannot be a reference")
        return
    from leftover.training.run import discard, effective, train_reference

    key = {
        "from": {name: run.table.digest(name) for name in ("tokens", "split")},
        "base": run.base_key,
        "model": recipe.model.model_dump(include={"dtype", "attn_implementation", "lora"}),
        "rows": recipe.data.train_on,
        "train": effective(recipe.reference.train),
        "seed": run.seed,
    } | run.quantization_key
    if not run.manifest.begin("reference", key, lambda: discard(run.folder / "reference")).finished:
        run.manifest.finish("reference", **train_reference(run))
