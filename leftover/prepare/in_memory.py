"""`LoLTrainer` without a recipe: a user's own rows gain the columns that `leftover prepare` would give them."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from leftover.data.chat import Chat, Options
from leftover.data.formats import expand
from leftover.data.records import Record, Row
from leftover.data.rows import as_prompt, check_rows
from leftover.data.splits import unique_ids
from leftover.data.tokens import Limits, Tokenised, cut_prompt, encode_prompts, tokenise
from leftover.errors import UserError
from leftover.objectives.requirements import check_groups
from leftover.prepare.constants import Reference, values_and_advantages
from leftover.prepare.extras import add_extras
from leftover.prepare.value.estimate import RowConstants
from leftover.recipe.data_section import ColumnsSection, DataSection
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.sections import ValueSection

log = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | Sequence[dict[str, Any]]

_REMEDY = "Fix or drop them, or rename your columns (Dataset.rename_column)"
_CHAT_REMEDY = "Fix or drop them, or give the tokenizer another chat_template"
# Rows by which the reward functions are compared with the recorded rewards.
_ROWS_COMPARED = 32


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

    `facts` gets `value/r2` if a value is fitted.
    """
    if train is not None and "prompt_ids" not in _columns(train, "train_dataset"):
        train = _prepare_train(_reference(model, tokenizer, args), args, train, reward_func, facts)
    if evaluation is not None:
        evaluation = prepare_evaluation(model, tokenizer, args, evaluation)
    return train, evaluation


def prepare_evaluation(
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    args: PolicyConfig,
    rows: Rows,
    name: str = "eval_dataset",
) -> Rows:
    """Evaluation rows may be prompts alone; completions, where given, serve for likelihood and log-ratio.

    `reference` is the model before training; None leaves the log-ratio out. Prepared rows are returned as they are.
    """
    if "prompt_ids" in _columns(rows, name):
        return rows
    whole = all(row.get("completion") is not None or row.get("messages") is not None for row in rows)
    checked = checked_rows(rows if whole else [{**row, "completion": "-"} for row in rows], name)
    chat = chat_of(tokenizer, args, checked)
    if whole:
        tokens = _tokenise(chat, args, checked)
        table = _table(checked, tokens.prompt_ids, tokens.completion_ids)
        table["reward"] = [row["recorded_reward"] for row in checked]
    else:
        encoded = encode_prompts(chat, checked, remedy=_CHAT_REMEDY)
        prompt_ids = [cut_prompt(tokenizer, ids, args.max_prompt_length) for ids in encoded]
        table = _table(checked, prompt_ids, [[] for _ in checked]) | {"reward": [None] * len(checked)}
    if reference is not None and any(reward is not None for reward in table["reward"]):
        ids = table["prompt_ids"], table["completion_ids"]
        table["reference_logprobs"], _ = _reference(reference, tokenizer, args).read(*ids)
    return datasets.Dataset.from_dict(table)


def checked_rows(rows: Iterable[Row], name: str = "train_dataset") -> list[Row]:
    """Rows of the table from a user's dictionaries; faults are raised together.

    Besides the columns of ROWS_SCHEMA each has its own `chat_template_kwargs`, as TRL's trainers read them.
    """
    data = DataSection(path=name, columns=ColumnsSection(split=None))
    located = [found for i, row in enumerate(rows) for found in expand(Record(f"{name}[{i}]", row, name, i), data)]
    options = {where: _options(row, where) for where, row in located}
    checked = check_rows(located, data, None, {}, _REMEDY, of_recipe=False)
    return [row | {"chat_template_kwargs": options[row["where"]]} for row in checked]


def _options(row: Row, where: str) -> Options:
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"{where}: 'chat_template_kwargs' is a {type(options).__name__}, not a dictionary of options")
    # A data set gives every row the keys of all rows, with None for those that it lacks.
    return {name: value for name, value in options.items() if value is not None}


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


def _reference(model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: PolicyConfig) -> Reference:
    return Reference(lambda: (model, tokenizer), args.compute_dtype, args.max_completion_length, args.seed)


def chat_of(tokenizer: PreTrainedTokenizerBase, args: PolicyConfig, checked: Sequence[Row] = ()) -> Chat:
    """The tokenizer's chat template, which must have the options of the configuration and of the rows."""
    chat = Chat(tokenizer, args.chat_template_kwargs, args.end_tokens, of_recipe=False)
    chat.check_options({name: value for row in checked for name, value in row["chat_template_kwargs"].items()})
    return chat


def _tokenise(chat: Chat, args: PolicyConfig, checked: list[Row]) -> Tokenised:
    limits = Limits(args.max_prompt_length, args.max_completion_length)
    tokens = tokenise(chat, checked, limits, remedy=_CHAT_REMEDY)
    if any(tokens.system_cut):
        log.warning(
            "%d prompts lost their system turn or tools, which come first, to max_prompt_length=%d",
            sum(tokens.system_cut),
            args.max_prompt_length,
        )
    return tokens


def _table(checked: list[Row], prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> dict[str, Any]:
    def asked(row: Row) -> str:
        # The same messages with other tools or template options are another prompt.
        options = json.dumps(row["chat_template_kwargs"], sort_keys=True) if row["chat_template_kwargs"] else ""
        return "\0".join([row["prompt"], row["tools"] or "", options])

    table: dict[str, Any] = {name: [row[name] for row in checked] for name in ("prompt", "conversational", "where")}
    table |= {"prompt_ids": prompt_ids, "completion_ids": completion_ids}
    return table | {"group": unique_ids(map(asked, checked))}


def _prepare_train(
    reference: Reference, args: LoLConfig, rows: Iterable[Row], reward_func: Callable | None, facts: dict[str, float]
) -> datasets.Dataset:
    checked, table = _tokenised(reference.load()[1], args, rows)
    objective = objective_of(args)
    needs = objective.needs(objective_settings(args)) | objective.optional
    if args.rows == "leftover":
        needs |= {"value"}
    table["reward"], targets = _rewards(checked, args.value_targets, reward_func)
    _check(args, needs, targets, table, reward_func)
    if needs & {"value", "reference_logprobs"}:
        ids = table["prompt_ids"], table["completion_ids"]
        table["reference_logprobs"], features = reference.read(*ids, features=bool(needs & {"value", "soft_value"}))
        if "soft_value" in needs:
            table["prompt_features"] = features
        if "value" in needs:
            group, trains = table["group"], np.ones(len(checked), bool)
            constants = RowConstants(group, group, table["reward"], trains, features, table["prompt_ids"])
            settings = ValueSection(samples_per_prompt=args.value_samples_per_prompt)
            try:
                table["value"], table["advantage"], report = values_and_advantages(
                    constants, table, reference, settings, targets, reward_func
                )
            except UserError as error:  # it names the key of a recipe
                raise UserError(str(error).replace("value.targets: ", "value_targets=")) from error
            if report["r2"] is not None:
                facts["value/r2"] = report["r2"]
    if "is_chosen" in needs:
        table["is_chosen"] = [math.nan if row["is_chosen"] is None else float(row["is_chosen"]) for row in checked]
    add_extras(table, needs, reference, args.reference_samples, reward_func)
    return datasets.Dataset.from_dict(table)


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, args: LoLConfig, rows: Iterable[Row]
) -> tuple[list[Row], dict[str, Any]]:
    """The checked rows that fit the limits, and their prompts and token ids as a table."""
    checked = checked_rows(rows)
    chat = chat_of(tokenizer, args, checked)
    tokens = _tokenise(chat, args, checked)
    if any(row["conversational"] for row in checked):
        chat.warn(tools=any(row["tools"] for row in checked))
    kept = [i for i, keep in enumerate(tokens.kept) if keep]
    if not kept:
        raise UserError(
            f"every completion is longer than max_completion_length={args.max_completion_length} tokens: raise it"
        )
    if len(kept) < len(checked):
        log.warning(
            "%d of %d rows dropped: their completions exceed max_completion_length=%d tokens",
            len(checked) - len(kept),
            len(checked),
            args.max_completion_length,
        )
    checked = [checked[i] for i in kept]
    prompt_ids, completion_ids = ([ids[i] for i in kept] for ids in (tokens.prompt_ids, tokens.completion_ids))
    return checked, _table(checked, prompt_ids, completion_ids)


def _rewards(checked: list[Row], targets: str, reward_func: Callable | None) -> tuple[np.ndarray, str]:
    """Recorded rewards, [N], or those of the function if none is recorded; and the kind of value targets."""
    prompts = [as_prompt(row["prompt"], row["conversational"]) for row in checked]
    completions = [row["completion"] for row in checked]
    rewards = np.array([row["recorded_reward"] for row in checked], np.float64)
    scored = np.flatnonzero(np.isfinite(rewards))[:_ROWS_COMPARED]
    if reward_func is None:
        return rewards, "recorded" if targets == "auto" else targets
    if len(scored) == 0:
        rewards = np.array(reward_func(prompts, completions), np.float64)
    elif targets == "auto":
        scores = reward_func([prompts[i] for i in scored], [completions[i] for i in scored])
        if not np.allclose(scores, rewards[scored], rtol=1e-3, atol=1e-3):
            log.warning(
                "reward_funcs do not give the rows' recorded rewards, so the value is fitted on the recorded ones "
                "(value_targets: recorded) and reward_funcs serve evaluate() alone"
            )
            targets = "recorded"
    return rewards, "reference_samples" if targets == "auto" else targets


def _check(
    args: LoLConfig, needs: frozenset[str], targets: str, table: dict[str, Any], reward_func: Callable | None
) -> None:
    """Refuse what the rows cannot serve, before the reference runs."""
    scored = np.isfinite(table["reward"])
    if 0 < scored.sum() < len(scored):
        log.warning("%d of %d rows have no reward: objectives that need one skip them", (~scored).sum(), len(scored))
    if "value" in needs and not scored.any():
        raise UserError(f"objective '{args.objective}' needs scores: give rows a 'reward', or pass reward_funcs")
    check_groups(args.objective, objective_of(args), table["group"])
    if "reward_quantile" in needs and reward_func is None:
        raise UserError(f"objective '{args.objective}' scores the reference's own completions: pass reward_funcs")
    if "value" in needs and targets == "reference_samples" and reward_func is None:
        raise UserError("value_targets='reference_samples' scores new completions: pass reward_funcs")
