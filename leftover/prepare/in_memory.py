"""`LoLTrainer` without a recipe: a user's own rows gain the columns that `leftover prepare` would give them."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from leftover.data.chat import Chat
from leftover.data.records import Row
from leftover.data.rows import as_prompt, first_of
from leftover.data.splits import unique_ids
from leftover.data.tokens import Limits, Tokenised, tokenise
from leftover.errors import PYTHON, UserError
from leftover.models.load import is_encoder_decoder
from leftover.objectives.requirements import check_groups
from leftover.prepare.constants import Reference, values_and_advantages
from leftover.prepare.extras import add_extras
from leftover.prepare.own_rows import CONSTANTS, Rows, as_dataset, checked_rows, column_names
from leftover.prepare.value.estimate import RowConstants
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.sections import ValueSection

log = logging.getLogger(__name__)

CHAT_REMEDY = "Fix or drop them, give the tokenizer another chat_template, or set on_bad_row='skip'"
# Rows by which the reward functions are compared with the recorded rewards.
_ROWS_COMPARED = 32
# Prompts that the reference completes for the value.
_VALUE_PROMPTS = 2000


def prepare_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    args: LoLConfig,
    rows: Rows | None,
    reward_func: Callable | None,
    facts: dict[str, float],
) -> datasets.Dataset | None:
    """Training rows with token ids, reference log-probabilities, values and advantages; prepared rows as they are.

    `facts` gets `value/r2` if a value is fitted.
    """
    if rows is None:
        return None
    found, needs = column_names(rows), _needs(args)
    computed = needs & {"value", "reference_logprobs", "soft_value", "reward_quantile", "mismatched_logratio"}
    if "prompt_ids" in found and (found & CONSTANTS or not computed):
        return as_dataset(rows, "train_dataset")
    return _prepare(reference_of(model, tokenizer, args), args, rows, reward_func, facts)


def _needs(args: LoLConfig) -> frozenset[str]:
    """What the objective reads of its rows, where it is there, and the rows that it selects."""
    objective = objective_of(args)
    needs = objective.needs(objective_settings(args)) | objective.optional
    return needs | {"value"} if args.rows == "leftover" else needs


def reference_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: PolicyConfig) -> Reference:
    load, limit = (lambda: (model, tokenizer)), args.max_completion_length
    return Reference(load, args.compute_dtype, limit, args.seed, args.generation, args.unfinished)


def chat_of(
    tokenizer: PreTrainedTokenizerBase, args: PolicyConfig, checked: Sequence[Row] = (), *, two_texts: bool = False
) -> Chat:
    """The tokenizer's chat template, which must have the options of the configuration and of the rows.

    `two_texts`: for an encoder-decoder.
    """
    chat = Chat(tokenizer, args.chat_template_kwargs, args.end_tokens, PYTHON, two_texts)
    chat.check_options({name: value for row in checked for name, value in row["chat_template_kwargs"].items()})
    return chat


def tokens_of(chat: Chat, args: PolicyConfig, checked: list[Row], name: str) -> Tokenised:
    """Token ids of whole rows; of rows that are tokens already those, as they are."""
    if not checked or "prompt_ids" in checked[0]:
        prompt_ids, completion_ids = ([row[ids] for row in checked] for ids in ("prompt_ids", "completion_ids"))
        no = [False] * len(checked)
        return Tokenised(prompt_ids, completion_ids, [True] * len(checked), no, no, no, [None] * len(checked))
    limits = Limits(args.max_prompt_length, args.max_completion_length)
    tokens = tokenise(chat, checked, limits, skip_faulty=args.on_bad_row == "skip", remedy=CHAT_REMEDY)
    faults = [f"{row['where']}: {fault}" for row, fault in zip(checked, tokens.fault, strict=True) if fault]
    if faults:
        log.warning("%s: %d of %d rows skipped as faulty; %s", name, len(faults), len(checked), first_of(faults))
    if any(tokens.system_cut):
        log.warning(
            "%d prompts lost their system turn or tools, which come first, to max_prompt_length=%d",
            sum(tokens.system_cut),
            args.max_prompt_length,
        )
    return tokens


def table_of(checked: list[Row], prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> dict[str, Any]:
    def asked(row: Row) -> str:
        if "prompt_ids" in row:  # whose text may be that of others
            return " ".join(map(str, row["prompt_ids"]))
        # The same messages with other tools or template options are another prompt.
        options = json.dumps(row["chat_template_kwargs"], sort_keys=True) if row["chat_template_kwargs"] else ""
        return "\0".join([row["prompt"], row["tools"] or "", options])

    table: dict[str, Any] = {name: [row[name] for row in checked] for name in ("prompt", "conversational", "where")}
    table |= {"prompt_ids": prompt_ids, "completion_ids": completion_ids}
    return table | {"group": unique_ids(map(asked, checked))}


def _prepare(
    reference: Reference, args: LoLConfig, rows: Rows, reward_func: Callable | None, facts: dict[str, float]
) -> datasets.Dataset:
    # Functions score rows without a `reward`, but kto learns from labels wherever rows have them.
    labels = reward_func is None or "label" in objective_of(args).optional
    checked, table = _tokenised(*reference.load(), args, rows, labels)
    needs = _needs(args)
    table["reward"], targets = _rewards(checked, args.value_targets, reward_func)
    if (targets, args.value_targets) == ("recorded", "auto") and len(set(table["group"])) == 1:
        targets = "group_loo"  # all rows are completions of one prompt
    _check(args, needs, targets, table, reward_func)
    if needs & {"value", "reference_logprobs"}:
        ids = table["prompt_ids"], table["completion_ids"]
        table["reference_logprobs"], features = reference.read(*ids, features=bool(needs & {"value", "soft_value"}))
        if "soft_value" in needs:
            table["prompt_features"] = features
        if "value" in needs:
            group, trains = table["group"], np.ones(len(checked), bool)
            constants = RowConstants(group, group, table["reward"], trains, features, table["prompt_ids"])
            settings = ValueSection(num_prompts=_VALUE_PROMPTS, samples_per_prompt=args.value_samples_per_prompt)
            try:
                table["value"], table["advantage"], report = values_and_advantages(
                    constants, table, reference, settings, targets, reward_func
                )
            except UserError as error:  # it names the key of a recipe
                raise UserError(str(error).replace("value.targets: ", "value_targets=")) from error
            if report["r2"] is not None:
                facts["value/r2"] = report["r2"]
    for name in needs & {"is_chosen", "label"}:
        table[name] = [math.nan if row[name] is None else float(row[name]) for row in checked]
    add_extras(table, needs, reference, args.reference_samples, reward_func)
    return datasets.Dataset.from_dict(table)


def _tokenised(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: LoLConfig, rows: Rows, labels: bool
) -> tuple[list[Row], dict[str, Any]]:
    """The checked rows that fit the limits, and their prompts and token ids as a table."""
    checked = checked_rows(rows, "train_dataset", args, tokenizer, labels=labels)
    chat = chat_of(tokenizer, args, checked, two_texts=is_encoder_decoder(model))
    tokens = tokens_of(chat, args, checked, "train_dataset")
    if any(row["conversational"] for row in checked):
        chat.warn(tools=any(row["tools"] for row in checked))
    kept = [i for i, keep in enumerate(tokens.kept) if keep]
    long, faulty = sum(tokens.completion_long), sum(fault is not None for fault in tokens.fault)
    if not kept and not long:
        raise UserError(f"train_dataset: no row is left of {len(checked)}: the chat template can write none")
    if not kept:
        raise UserError(
            f"every completion is longer than max_completion_length={args.max_completion_length} tokens: raise it"
        )
    if long:
        log.warning(
            "%d of %d rows dropped: their completions exceed max_completion_length=%d tokens",
            len(checked) - len(kept) - faulty,
            len(checked),
            args.max_completion_length,
        )
    checked = [checked[i] for i in kept]
    prompt_ids, completion_ids = ([ids[i] for i in kept] for ids in (tokens.prompt_ids, tokens.completion_ids))
    return checked, table_of(checked, prompt_ids, completion_ids)


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
    who = f"the objective '{args.objective}'"
    if needs & {"value", "reward"} and not scored.any():
        name = args.columns.get("reward", "reward")
        raise UserError(
            f"{who} needs scores: no row has one in the column {name!r}; give rows one, name yours by "
            "columns={'reward': ...} (and labels={'good': 1, 'bad': 0} where it holds classes), or pass reward_funcs"
        )
    check_groups(who, objective_of(args), table["group"])
    if "reward_quantile" in needs and reward_func is None:
        raise UserError(f"{who} scores the reference's own completions: pass reward_funcs")
    if "value" in needs and targets == "reference_samples" and reward_func is None:
        raise UserError("value_targets='reference_samples' scores new completions: pass reward_funcs")
