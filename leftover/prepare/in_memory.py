"""`LoLTrainer` without a recipe: raw rows gain the columns that `leftover prepare` would give them."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from leftover.data.raw import asked, chat_of, checked_rows, encode_checked, tokenise_checked
from leftover.data.rows import as_prompt
from leftover.data.splits import unique_ids
from leftover.errors import UserError
from leftover.objectives import Objective
from leftover.objectives.requirements import check_groups
from leftover.prepare.constants import values_and_advantages
from leftover.prepare.extras import add_extras
from leftover.prepare.reference import Reference
from leftover.prepare.value.estimate import RowConstants
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.sections import ValueSection

log = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | Sequence[dict[str, Any]]


def prepare_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    args: LoLConfig,
    train: Rows | None,
    evaluation: Rows | None,
    reward_func: Callable | None,
    facts: dict[str, float],
) -> tuple[Any, Any]:
    """Training and evaluation rows with token ids, reference log-probabilities, values and advantages.

    `facts` gets `value/r2` where a value is fitted.
    """
    if train is not None and "prompt_ids" not in _columns(train, "train_dataset"):
        train = _prepare_train(_reference(model, tokenizer, args), args, train, reward_func, facts)
    if evaluation is not None:
        evaluation = prepare_evaluation(model, tokenizer, args, evaluation)
    return train, evaluation


def _reference(model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: PolicyConfig) -> Reference:
    return Reference(lambda: (model, tokenizer), args.compute_dtype, args.max_completion_length, args.seed)


def _columns(rows: Any, name: str) -> list[str]:
    """Names of the columns of a Dataset or of a list of dictionaries; UserError for anything else."""
    if isinstance(rows, datasets.Dataset):
        return list(rows.column_names)
    if isinstance(rows, dict):  # a DatasetDict is one
        raise UserError(f"{name} is a dictionary of {', '.join(map(str, rows))}: choose one split of it")
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{name} is a {type(rows).__name__}; give a datasets.Dataset or a list of dictionaries "
            "(datasets.load_dataset reads files, datasets.Dataset.from_pandas a data frame)"
        )
    if not rows:
        raise UserError(f"{name} holds no row")
    return list(rows[0])


def _prepare_train(
    reference: Reference, args: LoLConfig, rows: Iterable[dict], reward_func: Callable | None, facts: dict[str, float]
) -> datasets.Dataset:
    checked, tokens = _tokenised(reference.load()[1], args, rows)
    table: dict[str, Any] = {name: [row[name] for row in checked] for name in ("prompt", "conversational")}
    table |= tokens | {"group": unique_ids(asked(row) for row in checked)}
    recorded, targets = _rewards(table, checked, args.value_targets, reward_func)
    table["reward"] = np.array([np.nan if reward is None else reward for reward in recorded], np.float64)
    objective = objective_of(args)
    needs = objective.needs(objective_settings(args)) | objective.optional
    needs_value = "value" in needs or args.rows == "leftover"
    _check(args.objective, objective, needs, needs_value, targets, table, reward_func)
    if needs_value or "reference_logprobs" in needs:
        view = [
            {"prompt_ids": p, "completion_ids": c}
            for p, c in zip(table["prompt_ids"], table["completion_ids"], strict=True)
        ]
        with_features = needs_value or "soft_value" in needs
        table["reference_logprobs"], features = reference.read(view, features=with_features)
        if "soft_value" in needs:
            table["prompt_features"] = features
        if needs_value:
            everything = np.ones(len(checked), bool)
            constants = RowConstants(
                table["group"], table["group"], table["reward"], everything, features, table["prompt_ids"]
            )
            settings = ValueSection(samples_per_prompt=args.value_samples_per_prompt)
            table["value"], table["advantage"], report = values_and_advantages(
                constants, table, reference, settings, targets, reward_func
            )
            if report["r2"] is not None:
                facts["value/r2"] = report["r2"]
    if "is_chosen" in needs:
        table["is_chosen"] = [math.nan if row["is_chosen"] is None else float(row["is_chosen"]) for row in checked]
    add_extras(table, needs, reference, args.reference_samples, reward_func)
    return datasets.Dataset.from_dict(table)


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, args: LoLConfig, rows: Iterable[dict]
) -> tuple[list[dict], dict[str, Any]]:
    """The checked rows that fit the limits, and their token ids."""
    checked = checked_rows(rows)
    tokens = tokenise_checked(tokenizer, args, checked)
    if any(row["conversational"] for row in checked):
        chat_of(tokenizer, args).warn(tools=any(row["tools"] for row in checked))
    kept = [i for i, keep in enumerate(tokens.kept) if keep]
    if not kept:
        raise UserError(f"no row is left: every completion exceeds {args.max_completion_length} tokens")
    if len(kept) < len(checked):
        log.warning(
            "%d of %d rows dropped: their completions exceed max_completion_length=%d tokens",
            len(checked) - len(kept),
            len(checked),
            args.max_completion_length,
        )
    ids = {name: [getattr(tokens, name)[i] for i in kept] for name in ("prompt_ids", "completion_ids")}
    return [checked[i] for i in kept], ids


def _rewards(
    table: dict[str, Any], checked: list[dict], targets: str, reward_func: Callable | None
) -> tuple[Sequence[float | None], str]:
    """Recorded rewards, or those of the function where none is recorded; and the kind of value targets."""
    prompts = [as_prompt(p, c) for p, c in zip(table["prompt"], table["conversational"], strict=True)]
    completions, recorded = [row["completion"] for row in checked], [row["recorded_reward"] for row in checked]
    if all(reward is None for reward in recorded) and reward_func is not None:
        recorded = reward_func(prompts, completions)
    elif reward_func is not None and targets == "auto" and not _gives(reward_func, prompts, completions, recorded):
        log.warning(
            "reward_funcs do not give the rows' recorded rewards, so the value is fitted on the recorded ones "
            "(value_targets: recorded) and reward_funcs serve evaluate() alone"
        )
        targets = "recorded"
    if targets == "auto":
        targets = "reference_samples" if reward_func is not None else "recorded"
    return recorded, targets


def _gives(
    reward_func: Callable, prompts: list[Any], completions: list[str], recorded: list[float | None], num_tried: int = 32
) -> bool:
    """Whether the function gives the recorded rewards, by the first rows that have one."""
    tried = [i for i, reward in enumerate(recorded) if reward is not None][:num_tried]
    scores = reward_func([prompts[i] for i in tried], [completions[i] for i in tried])
    return bool(np.allclose(scores, np.array([recorded[i] for i in tried], np.float64), rtol=1e-3, atol=1e-3))


def _check(
    name: str,
    objective: Objective,
    needs: frozenset[str],
    needs_value: bool,
    targets: str,
    table: dict[str, Any],
    reward_func: Callable | None,
) -> None:
    """Refuse what the rows cannot serve, before the reference runs."""
    scored = np.isfinite(table["reward"])
    if 0 < scored.sum() < len(scored):
        log.warning("%d of %d rows have no reward: objectives that need one skip them", (~scored).sum(), len(scored))
    if needs_value and not scored.any():
        raise UserError(f"objective '{name}' needs scores: give rows a 'reward', or pass reward_funcs")
    check_groups(name, objective, np.array(table["group"]))
    if "reward_quantile" in needs and reward_func is None:
        raise UserError(f"objective '{name}' scores the reference's own completions: pass reward_funcs")
    if needs_value and targets == "reference_samples" and reward_func is None:
        raise UserError("value_targets='reference_samples' scores new completions: pass reward_funcs")


def prepare_evaluation(
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    args: PolicyConfig,
    rows: Rows,
    name: str = "eval_dataset",
) -> Rows:
    """Evaluation rows may be prompts alone; completions, where given, tell likelihood and log-ratio.

    `reference` is the model before training; None leaves the log-ratio out. Prepared rows are returned as they are.
    """
    if "prompt_ids" in _columns(rows, name):
        return rows
    raw: list[dict[str, Any]] = list(rows)
    if all(row.get("completion") is not None or row.get("messages") is not None for row in raw):
        checked = checked_rows(raw, name)
        tokens = tokenise_checked(tokenizer, args, checked)
        prompt_ids, completion_ids = tokens.prompt_ids, tokens.completion_ids
        rewards = [row["recorded_reward"] for row in checked]
    else:
        checked = checked_rows([{**row, "completion": "-"} for row in raw], name)
        prompt_ids = encode_checked(tokenizer, args, checked)
        completion_ids, rewards = [[] for _ in prompt_ids], [None] * len(prompt_ids)
    table: dict[str, Any] = {
        "prompt": [row["prompt"] for row in checked],
        "conversational": [row["conversational"] for row in checked],
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "group": unique_ids(asked(row) for row in checked),
        "reward": rewards,
    }
    if reference is not None and any(reward is not None for reward in rewards):
        view = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
        table["reference_logprobs"], _ = _reference(reference, tokenizer, args).read(view)
    return datasets.Dataset.from_dict(table)
