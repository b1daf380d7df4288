"""`LoLTrainer` without a recipe: raw rows gain the columns that `leftover prepare` would give them."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from leftover.data.raw import asked, chat_of, checked_rows, encode_checked, tokenise_checked
from leftover.data.rows import as_prompt
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.models.load import load_model
from leftover.objectives.advantage import advantage
from leftover.objectives.requirements import check_groups
from leftover.recipe.lol_config import objective_of, objective_settings
from leftover.recipe.sections import ValueSection
from leftover.rewards.python import call_reward, check_finite

log = logging.getLogger(__name__)


def load_for_training(model: Any, tokenizer: Any, peft_config: Any) -> tuple[Any, Any]:
    """The model (loaded where a path was given, wrapped where an adapter is asked for) and its tokenizer."""
    path = model if isinstance(model, str) else model.config.name_or_path
    if isinstance(model, str):
        model = load_model(model)
    if tokenizer is None:
        tokenizer = load_tokenizer(path)
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    return model, tokenizer


def summed(reward_funcs: Callable | Sequence[Callable] | None) -> Callable | None:
    """One reward function that adds up one or several, and checks what they return; None where there is none."""
    if reward_funcs is None:
        return None
    functions: list[Any] = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    for function in functions:
        if not callable(function):
            raise UserError(
                f"reward_funcs takes functions, got {function!r:.80}; leftover.rewards.load_reward makes one"
            )

    def total(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        columns = [
            call_reward(f, f"reward function '{getattr(f, '__name__', type(f).__name__)}'", prompts, completions)
            for f in functions
        ]
        totals = [sum(math.nan if s is None else s for s in scores) for scores in zip(*columns, strict=True)]
        check_finite("reward_funcs", totals, completions)
        return totals

    return total


def prepare_rows(
    model: Any,
    tokenizer: Any,
    args: Any,
    train: Any,
    evaluation: Any,
    reward_func: Callable | None,
    facts: dict[str, float],
) -> tuple[Any, Any]:
    """Training and evaluation rows with token ids, reference log-probabilities, values and advantages.

    `facts` gets `value/r2` where a value is fitted.
    """
    if train is not None and "prompt_ids" not in _columns(train, "train_dataset"):
        train = _prepare_train(model, tokenizer, args, train, reward_func, facts)
    if evaluation is not None:
        evaluation = prepare_evaluation(model, tokenizer, args, evaluation)
    return train, evaluation


def _columns(rows: Any, name: str) -> list[str]:
    """Names of the columns of a Dataset or of a list of dictionaries; UserError for anything else."""
    import datasets

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
    model: Any,
    tokenizer: Any,
    args: Any,
    rows: Iterable[dict],
    reward_func: Callable | None,
    facts: dict[str, float],
) -> Any:
    import datasets

    from leftover.data.splits import unique_ids
    from leftover.models.reference import reference_pass
    from leftover.prepare.baseline_constants import add_extra_columns

    checked = checked_rows(rows)
    columns: dict[str, list] = {name: [row[name] for row in checked] for name in checked[0]}
    tokens = tokenise_checked(tokenizer, args, checked)
    if any(columns["conversational"]):
        chat_of(tokenizer, args).warn(tools=any(columns["tools"]))
    if not all(tokens.kept):
        log.warning(
            "%d of %d rows are left out: their completions exceed max_completion_length=%d tokens",
            tokens.kept.count(False),
            len(checked),
            args.max_completion_length,
        )
    kept = [i for i, keep in enumerate(tokens.kept) if keep]
    if not kept:
        raise UserError(f"no row is left: every completion exceeds {args.max_completion_length} tokens")
    table: dict[str, Any] = {
        "prompt": [columns["prompt"][i] for i in kept],
        "conversational": [columns["conversational"][i] for i in kept],
        "prompt_ids": [tokens.prompt_ids[i] for i in kept],
        "completion_ids": [tokens.completion_ids[i] for i in kept],
    }
    table["group"] = unique_ids(asked(checked[i]) for i in kept)
    targets = args.value_targets
    recorded = [columns["recorded_reward"][i] for i in kept]
    completions = [columns["completion"][i] for i in kept]
    prompts = [as_prompt(p, c) for p, c in zip(table["prompt"], table["conversational"], strict=True)]
    if all(reward is None for reward in recorded) and reward_func is not None:
        recorded = reward_func(prompts, completions)
    elif reward_func is not None and targets == "auto" and not _gives(reward_func, prompts, completions, recorded):
        log.warning(
            "reward_funcs do not give the rows' recorded rewards, so the value is fitted on the recorded ones "
            "(value_targets: recorded) and reward_funcs serve evaluate() alone"
        )
        targets = "recorded"
    table["reward"] = np.array([np.nan if reward is None else reward for reward in recorded], np.float64)
    unscored = int(np.isnan(table["reward"]).sum())
    if 0 < unscored < len(kept):
        log.warning("%d of %d rows have no reward: no objective that needs one trains on them", unscored, len(kept))
    objective = objective_of(args)
    needs = objective.needs(objective_settings(args)) | objective.optional
    needs_value = "value" in needs or args.rows == "leftover"
    if needs_value and not np.isfinite(table["reward"]).any():
        raise UserError(f"objective '{args.objective}' needs scores: give rows a 'reward', or pass reward_funcs")
    check_groups(args.objective, objective, np.array(table["group"]))
    if "reward_quantile" in needs and reward_func is None:  # before the reference runs
        raise UserError(f"objective '{args.objective}' scores the reference's own completions: pass reward_funcs")
    if needs_value or "reference_logprobs" in needs:
        view = [{k: table[k][i] for k in ("prompt_ids", "completion_ids")} for i in range(len(kept))]
        with_features = needs_value or "soft_value" in needs
        table["reference_logprobs"], features = reference_pass(
            model, tokenizer, view, features=with_features, compute_dtype=args.compute_dtype
        )
        if "soft_value" in needs:
            table["prompt_features"] = features
        if needs_value:
            values, report = _values(model, tokenizer, args, table, features, reward_func, targets)
            if report["r2"] is not None:
                facts["value/r2"] = report["r2"]
            table["value"] = values
            table["advantage"] = _advantages(table["reward"], values)
    if "is_chosen" in needs:
        chosen = [checked[i]["is_chosen"] for i in kept]
        table["is_chosen"] = [math.nan if one is None else float(one) for one in chosen]
    add_extra_columns(table, needs, model, tokenizer, args, reward_func)
    return datasets.Dataset.from_dict(table)


def _gives(
    reward_func: Callable, prompts: list[Any], completions: list[str], recorded: list[float | None], num_tried: int = 32
) -> bool:
    """Whether the function gives the recorded rewards, by the first rows that have one."""
    tried = [i for i, reward in enumerate(recorded) if reward is not None][:num_tried]
    scores = reward_func([prompts[i] for i in tried], [completions[i] for i in tried])
    return bool(np.allclose(scores, np.array([recorded[i] for i in tried], np.float64), rtol=1e-3, atol=1e-3))


def _advantages(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    import torch

    return advantage(torch.from_numpy(rewards), torch.from_numpy(values)).numpy()


def _values(
    model: Any,
    tokenizer: Any,
    args: Any,
    table: dict,
    features: np.ndarray | None,
    reward_func: Callable | None,
    targets: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    from leftover.prepare.value.estimate import RowConstants, estimate_values
    from leftover.prepare.value.samples import mean_sampled_rewards

    if targets == "auto":
        targets = "reference_samples" if reward_func is not None else "recorded"
    if targets == "reference_samples" and reward_func is None:
        raise UserError("value_targets='reference_samples' scores new completions: pass reward_funcs")
    assert features is not None
    settings = ValueSection(samples_per_prompt=args.value_samples_per_prompt)
    group = table["group"]
    rows = RowConstants(group, group, table["reward"], np.ones(len(group), bool), features, table["prompt_ids"])

    def sample_rewards(chosen: np.ndarray) -> np.ndarray:
        assert reward_func is not None
        return mean_sampled_rewards(
            model, tokenizer, table, chosen, reward_func, settings, args.max_completion_length, args.seed
        )

    return estimate_values(
        rows,
        settings,
        targets,
        model=model,
        tokenizer=tokenizer,
        compute_dtype=args.compute_dtype,
        seed=args.seed,
        sample_rewards=sample_rewards,
    )


def prepare_evaluation(reference: Any, tokenizer: Any, args: Any, rows: Any, name: str = "eval_dataset") -> Any:
    """Evaluation rows may be prompts alone; completions, where given, tell likelihood and log-ratio.

    `reference` is the model before training; None leaves the log-ratio out. Prepared rows are returned as they are.
    """
    import datasets

    from leftover.data.splits import unique_ids
    from leftover.models.reference import reference_pass

    if "prompt_ids" in _columns(rows, name):
        return rows
    rows = list(rows)
    if all(row.get("completion") is not None or row.get("messages") is not None for row in rows):
        checked = checked_rows(rows, name)
        tokens = tokenise_checked(tokenizer, args, checked)
        prompt_ids, completion_ids = tokens.prompt_ids, tokens.completion_ids
        rewards = [row["recorded_reward"] for row in checked]
    else:
        checked = checked_rows([{**row, "completion": "-"} for row in rows], name)
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
        table["reference_logprobs"], _ = reference_pass(
            reference, tokenizer, view, features=False, compute_dtype=args.compute_dtype
        )
    return datasets.Dataset.from_dict(table)
