"""Training from the table: the reference by NLL, and every policy by its objective."""

import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel

from leftover.errors import UserError, located
from leftover.models.load import save_model, whole_weights
from leftover.monitoring.callbacks import CostSoFar, EvaluationsFile, MetricsFile
from leftover.monitoring.memory import give_back, peak_memory
from leftover.monitoring.ranks import is_main_process, told, wait
from leftover.monitoring.signals import obeyed_once_saved
from leftover.monitoring.trackers import own_run
from leftover.monitoring.training_display import shown
from leftover.objectives import ONLINE
from leftover.prepare.checks import check_selection
from leftover.prepare.readers import available_blocks, rows_of_a_prompt, selection_rows, split_rows
from leftover.recipe.eval_metrics import is_of_rows
from leftover.recipe.lol_config import LoLConfig, objective_and_settings
from leftover.recipe.needs import labels_are_rewards, trains_on_chosen
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.runs.keys import base_key
from leftover.runs.names import evaluations_path, policy_artifact, policy_folder
from leftover.runs.run import Run
from leftover.store.checkpoints import CheckpointSums, last_whole_checkpoint
from leftover.store.files import read_json, write_json
from leftover.store.manifest import Key
from leftover.store.table import Table, list_lengths
from leftover.training.extras import row_columns
from leftover.training.ppo.trainer import PPOTrainer
from leftover.training.settings import policy_settings, reference_args, settings_key, subject, training_args
from leftover.training.trainer import LoLTrainer

log = logging.getLogger(__name__)

# Tokens of the validation rows that choose the reference's checkpoint. More cost time and change nothing.
VALIDATION_TOKENS = 20_000


def fit_reference(run: Run) -> None:
    """The reference: NLL on the training rows, or a model given by path, or the base as it is."""
    recipe, folder = run.recipe, run.folder / "reference"
    if recipe.reference.source != "fit":
        log.info("reference: %s, taken from %s", recipe.reference.source, run.reference_path)
        if recipe.reference.source == "as_is" and recipe.model.path is None:
            raise UserError("reference.source: as_is needs model.path: random weights cannot be a reference")
        return
    key = {
        "from": {name: run.table.digest(name) for name in ("tokens", "split")},
        "base": base_key(run),
        "model": recipe.model.model_dump(include={"dtype", "attn_implementation", "lora"}),
        "rows": recipe.data.train_on,
        "train": settings_key(recipe.reference.train),
        "seed": run.seed,
    } | recipe.quantization_key
    if run.manifest.begin("reference", key, partial(run.discard, folder)).finished:
        return
    validation = split_rows(run.table, "validation", ())
    with obeyed_once_saved():
        facts = _train(
            run,
            folder,
            run.models.base(),
            reference_args(recipe, run.folder),
            split_rows(run.table, "train", (), chosen_only=recipe.data.train_on == "chosen"),
            validation.select(_sample(validation, VALIDATION_TOKENS, run.seed)),
            stops_early=True,
        )
        run.manifest.finish("reference", wrote=model_files(folder), logs=log_files(folder), **facts)


def model_files(folder: Path) -> list[Path]:
    """What a trained model is made of: no log, which would not be worth training it again."""
    return [path for path in folder.iterdir() if path.suffix != ".jsonl"] if is_main_process() else []


def log_files(folder: Path) -> list[Path]:
    """Its lines and its completions at evaluations."""
    return sorted(folder.glob("*.jsonl")) if is_main_process() else []


def _sample(rows: Dataset, num_tokens: int, seed: int) -> np.ndarray:
    """Places of rows drawn at random, as many as have `num_tokens` together; at least one."""
    lengths = list_lengths(rows, "prompt_ids") + list_lengths(rows, "completion_ids")
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.sort(order[: max(1, int((lengths[order].cumsum() <= num_tokens).sum()))])


def train_all(run: Run) -> None:
    """Every policy of the recipe with every seed."""
    for name in run.recipe.policies:
        for seed in run.recipe.seeds:
            train_one(run, name, seed)


def train_one(run: Run, name: str, seed: int) -> None:
    """One policy with one seed; nothing if it is trained already."""
    artifact, folder = policy_artifact(name, seed), policy_folder(run.folder, name, seed)
    if not run.manifest.begin(artifact, policy_key(run, name, seed), partial(run.discard, folder)).finished:
        with obeyed_once_saved():
            facts = train_policy(run, name, seed)
            run.manifest.finish(artifact, wrote=model_files(folder), logs=log_files(folder), **facts)


def policy_key(run: Run, name: str, seed: int) -> Key:
    """What a trained policy depends on: its rows, its settings and its seed, and not its name."""
    recipe, table = run.recipe, run.table
    return {
        "from": {block: table.digest(block) for block in ("tokens", "split", *available_blocks(recipe, table, name))},
        "settings": settings_key(policy_settings(recipe, name)),
        "lora": recipe.model.lora.model_dump() if recipe.model.lora else None,
        "rows": recipe.data.train_on,
        "selection": recipe.selection_prompts,
        "seed": seed,
    }


def train_policy(run: Run, name: str, seed: int) -> dict[str, Any]:
    """Train one policy with one seed from the reference; its chosen checkpoint is written to its folder."""
    can_score = run.reward.scores_new_completions
    args = training_args(run, name, seed)
    by_completions = can_score and not is_of_rows(args.metric_for_best_model)
    validation = selection_rows(run.recipe, run.table, rows_of_a_prompt(by_completions))
    check_selection(run.recipe, run.reward, run.table)
    r2 = (run.noted.get("value") or {}).get("r2")
    return _train(
        run,
        policy_folder(run.folder, name, seed),
        run.models.reference(),
        args,
        policy_rows(run.recipe, run.table, name),
        validation,
        reward_func=run.reward if can_score else None,
        r2=r2 if "value" in available_blocks(run.recipe, run.table, name) else None,
    )


def policy_rows(recipe: Recipe, table: Table, name: str) -> Dataset:
    """The training rows that a policy selects from, with the constants and extra columns that its objective reads."""
    fields = recipe.train | recipe.policies[name]
    if fields.get("objective") in ONLINE:
        chosen_only = recipe.data.train_on == "chosen"
        return split_rows(table, "train", available_blocks(recipe, table), chosen_only=chosen_only)
    objective, settings = objective_and_settings(fields)
    optional = objective.optional if labels_are_rewards(recipe) else objective.optional - {"label"}
    return split_rows(
        table,
        "train",
        available_blocks(recipe, table, name),
        chosen_only=trains_on_chosen(recipe, objective),
        extras=row_columns(objective.needs(settings) | optional),
    )


def keep_total_batch(args: LoLConfig | PPOConfig, checkpoints: Path, unfinished: str | None) -> None:
    """Let a training that other processes began go on with as many rows a step.

    `unfinished`: its name, if it continues. Raises UserError if this number of processes cannot take as many.
    """
    path = checkpoints / "launch.json"
    batches = args.gradient_accumulation_steps * args.world_size
    # Read by the first, which writes it below: another might read what is written.
    begun = told(read_json(path) if is_main_process() and unfinished and path.is_file() else None)
    if begun:
        batches = begun["processes"] * begun["gradient_accumulation_steps"]
        if args.deepspeed_plugin is not None and begun["processes"] != args.world_size:
            raise UserError(
                f"{unfinished} was begun by {begun['processes']} processes, each with a part of DeepSpeed's optimizer "
                f"states, which {args.world_size} cannot read: start {begun['processes']}, or remove {checkpoints} to "
                "train it anew"
            )
        if batches % args.world_size:
            fitting = [str(n) for n in range(1, batches + 1) if batches % n == 0]
            raise UserError(
                f"{unfinished} was begun by {begun['processes']} processes, with {batches} batches of "
                f"{args.per_device_train_batch_size} rows a step, which {args.world_size} cannot share: start "
                f"{' or '.join(fitting)}, or remove {checkpoints} to train it anew"
            )
        if begun["processes"] != args.world_size:
            args.gradient_accumulation_steps = batches // args.world_size
            log.info("%s: begun by %d processes, goes on with as many rows a step", unfinished, begun["processes"])
    write_json(path, {"processes": args.world_size, "gradient_accumulation_steps": batches // args.world_size})


def _train(
    run: Run,
    folder: Path,
    model: PreTrainedModel,
    args: LoLConfig | PPOConfig,
    rows: Dataset,
    validation: Dataset,
    reward_func: Callable | None = None,
    r2: float | None = None,
    stops_early: bool = False,
) -> dict[str, Any]:
    """Train `model`, save the chosen checkpoint in `folder`; returns the facts for the manifest.

    `stops_early`: once an evaluation is worse than the best one.
    """
    trainer_class: type[LoLTrainer | PPOTrainer] = PPOTrainer if isinstance(args, PPOConfig) else LoLTrainer
    callbacks = [MetricsFile(folder / "metrics.jsonl"), CostSoFar(run.manifest.note_costs)]
    if reward_func is not None:
        callbacks.append(EvaluationsFile(evaluations_path(folder)))
    callbacks.append(CheckpointSums())  # of what the others have written
    if stops_early and args.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback())
    checkpoints = Path(str(args.output_dir))
    checkpoint = told(last_whole_checkpoint(checkpoints) if is_main_process() else None)
    name = subject(run.folder, folder)
    keep_total_batch(args, checkpoints, name if checkpoint else None)
    lora = run.models.lora_config()
    trainer = trainer_class(model, args, rows, validation, reward_func, run.models.tokenizer, lora, callbacks=callbacks)
    if r2 is not None and isinstance(trainer, LoLTrainer):
        trainer.run_metrics["value/r2"] = r2
    resumed_at = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        log.info("%s: continues at %s", folder.name, Path(checkpoint).name)
    with own_run(trainer, folder), shown(trainer, name), peak_memory() as peak, located(name):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    weights = whole_weights(trainer.model, trainer.accelerator)
    save_model(trainer.accelerator.unwrap_model(trainer.model), run.models.tokenizer, folder, weights)
    history = [entry for entry in trainer.state.log_history if "eval_nll" in entry or "eval_reward/mean" in entry]
    wait()  # until all have loaded the chosen checkpoint
    run.discard(checkpoints)
    facts = {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "best_metric": trainer.state.best_metric,
        "selected_rows": trainer.num_selected,
        "effective_sample_size": trainer.effective_sample_size,
        "seconds": result.metrics.get("train_runtime"),
        "evaluation_seconds": sum(entry["eval_runtime"] for entry in history if entry["step"] > resumed_at),
        **({"resumed_at": resumed_at} if checkpoint else {}),
        **({"skipped_steps": trainer.skipped_steps} if trainer.skipped_steps else {}),
        **peak,
        "evaluations": history,
        **trainer.facts(),
    }
    del trainer, model
    gc.collect()  # they refer to each other
    give_back()
    return facts
