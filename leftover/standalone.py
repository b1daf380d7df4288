"""`LoLTrainer` without a recipe: raw rows gain the columns that `leftover prepare` would give them."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.advantages import advantage
from leftover.config import DataSection, ValueSection
from leftover.data.rows import Rejects, as_prompt, check_rows
from leftover.data.tokens import Limits, encode_prompts, tokenise
from leftover.errors import UserError
from leftover.models import load_model, load_tokenizer
from leftover.objectives import OBJECTIVES

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
    """One reward function that adds up several; None where there is none."""
    if reward_funcs is None or callable(reward_funcs):
        return reward_funcs
    functions = list(reward_funcs)

    def total(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [sum(scores) for scores in zip(*(f(prompts, completions) for f in functions), strict=True)]

    return total


def prepare_rows(
    model: Any, tokenizer: Any, args: Any, train: Any, evaluation: Any, reward_func: Callable | None
) -> tuple[Any, Any]:
    """Training and evaluation rows with token ids, reference log-probabilities, values and advantages."""
    if train is not None and "prompt_ids" not in _columns(train):
        train = _prepare_train(model, tokenizer, args, train, reward_func)
    if evaluation is not None and "prompt_ids" not in _columns(evaluation):
        evaluation = _prepare_eval(tokenizer, args, evaluation)
    return train, evaluation


def _columns(rows: Any) -> list[str]:
    names = getattr(rows, "column_names", None)
    return list(names if names is not None else rows[0])


def _limits(args: Any) -> Limits:
    return Limits(args.max_prompt_length, args.max_completion_length)


def _prepare_train(model: Any, tokenizer: Any, args: Any, rows: Iterable[dict], reward_func: Callable | None) -> Any:
    import datasets

    from leftover.data.splits import unique_ids
    from leftover.reference import reference_pass

    checked = checked_rows(rows)
    columns: dict[str, list] = {name: [row[name] for row in checked] for name in checked[0]}
    tokens = tokenise(tokenizer, columns["prompt"], columns["completion"], columns["conversational"], _limits(args))
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
    table["group"] = unique_ids(table["prompt"])
    rewards = [columns["recorded_reward"][i] for i in kept]
    if all(reward is None for reward in rewards) and reward_func is not None:
        prompts = [as_prompt(p, c) for p, c in zip(table["prompt"], table["conversational"], strict=True)]
        rewards = reward_func(prompts, [columns["completion"][i] for i in kept])
    table["reward"] = np.array([np.nan if reward is None else reward for reward in rewards], np.float64)
    requires = OBJECTIVES[args.objective].requires
    needs_value = "value" in requires or args.rows == "leftover"
    if needs_value and not np.isfinite(table["reward"]).any():
        raise UserError(f"objective '{args.objective}' needs scores: give rows a 'reward', or pass reward_funcs")
    if needs_value or "reference_logprobs" in requires:
        view = [{k: table[k][i] for k in ("prompt_ids", "completion_ids")} for i in range(len(kept))]
        table["reference_logprobs"], features = reference_pass(
            model, tokenizer, view, features=needs_value, compute_dtype=args.compute_dtype
        )
        if needs_value:
            values = _values(model, tokenizer, args, table, features, reward_func)
            table["value"] = values
            table["advantage"] = _advantages(table["reward"], values)
    return datasets.Dataset.from_dict(table)


def _advantages(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    import torch

    return advantage(torch.from_numpy(rewards), torch.from_numpy(values)).numpy()


def _values(
    model: Any, tokenizer: Any, args: Any, table: dict, features: np.ndarray | None, reward_func: Callable | None
) -> np.ndarray:
    from leftover.value.estimate import RowConstants, estimate_values

    targets = args.value_targets
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

    values, _ = estimate_values(
        rows,
        settings,
        targets,
        model=model,
        tokenizer=tokenizer,
        compute_dtype=args.compute_dtype,
        seed=args.seed,
        sample_rewards=sample_rewards,
    )
    return values


def mean_sampled_rewards(
    model: Any,
    tokenizer: Any,
    rows: Any,
    chosen: np.ndarray,
    reward_func: Callable,
    settings: ValueSection,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Mean reward, a prompt, of completions that the reference gives for the chosen rows' prompts."""
    from leftover.generate import generate

    prompt_ids = [rows["prompt_ids"][int(i)] for i in chosen]
    prompts = [as_prompt(rows["prompt"][int(i)], rows["conversational"][int(i)]) for i in chosen]
    total = np.zeros(len(chosen))
    # Greedy decoding has one completion a prompt, however many are asked for.
    repeats = settings.samples_per_prompt if settings.decoding == "sample" else 1
    for repeat in range(repeats):
        _, texts = generate(
            model,
            tokenizer,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            sample=settings.decoding == "sample",
            batch_size=batch_size,
            seed=seed + repeat,
            description=f"reference samples {repeat + 1}/{repeats}",
        )
        total += np.asarray(reward_func(prompts, texts))
    return total / repeats


def checked_rows(rows: Iterable[dict], name: str = "train_dataset") -> list[dict]:
    """Rows of the table from a user's dictionaries; faults are raised together."""
    from leftover.data.formats import expand_pair

    located = (pair for i, row in enumerate(rows) for pair in expand_pair(f"{name}[{i}]", row))
    remedy = "Mend them, leave them out, or rename your columns (Dataset.rename_column)"
    with tempfile.TemporaryDirectory() as folder:
        rejects = Rejects(Path(folder) / "rejects")
        return list(check_rows(located, DataSection(path=name), rejects, {}, remedy))


def _prepare_eval(tokenizer: Any, args: Any, rows: Iterable[dict]) -> Any:
    """Evaluation rows may be prompts alone; completions, where given, tell the likelihood."""
    import datasets

    from leftover.data.tokens import cut_prompt

    rows = list(rows)
    if all(row.get("completion") is not None for row in rows):
        checked = checked_rows(rows, "eval_dataset")
        columns = {name: [row[name] for row in checked] for name in ("prompt", "conversational", "completion")}
        tokens = tokenise(tokenizer, columns["prompt"], columns["completion"], columns["conversational"], _limits(args))
        prompt_ids, completion_ids = tokens.prompt_ids, tokens.completion_ids
        rewards = [row["recorded_reward"] for row in checked]
    else:
        checked = checked_rows([{**row, "completion": "-"} for row in rows], "eval_dataset")
        columns = {name: [row[name] for row in checked] for name in ("prompt", "conversational")}
        encoded = encode_prompts(tokenizer, columns["prompt"], columns["conversational"])
        prompt_ids = [cut_prompt(tokenizer, ids, args.max_prompt_length) for ids in encoded]
        completion_ids, rewards = [[] for _ in prompt_ids], [None] * len(prompt_ids)
    from leftover.data.splits import unique_ids

    return datasets.Dataset.from_dict(
        {
            "prompt": columns["prompt"],
            "conversational": columns["conversational"],
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "group": unique_ids(columns["prompt"]),
            "reward": rewards,
        }
    )
