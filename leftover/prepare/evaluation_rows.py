"""The rows that `evaluate` of a trainer in Python reads: prompts, alone or with completions, and pairs of these."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from leftover.data.chat import Chat, Conversation, ConversationFault
from leftover.data.records import Row
from leftover.data.rows import first_of
from leftover.data.tokens import cut_prompt, encode_prompts
from leftover.errors import UserError
from leftover.models.load import is_encoder_decoder
from leftover.prepare.in_memory import CHAT_REMEDY, chat_of, reference_of, table_of, tokens_of
from leftover.prepare.own_rows import Rows, as_dataset, checked_rows, column_names
from leftover.recipe.policy_config import PolicyConfig

log = logging.getLogger(__name__)

EvaluationRows: TypeAlias = Rows | Mapping[str, Rows] | None  # several data sets by name, as transformers takes them

# The columns of prepared rows.
_EVALUATED = {"prompt_ids", "prompt", "conversational", "group"}


def prepare_evaluations(
    reference: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    args: PolicyConfig,
    rows: EvaluationRows,
) -> Any:
    """One data set of evaluation rows, or several by name, as transformers takes them; see `prepare_evaluation`."""
    two_texts = is_encoder_decoder(reference)
    if rows is None:
        return None
    if not isinstance(rows, Mapping):
        return prepare_evaluation(reference, tokenizer, args, rows, two_texts=two_texts)
    return {
        name: prepare_evaluation(reference, tokenizer, args, of_name, f"eval_dataset[{name!r}]", two_texts=two_texts)
        for name, of_name in rows.items()
    }


def prepare_evaluation(
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    args: PolicyConfig,
    rows: Rows,
    name: str = "eval_dataset",
    *,
    prompts_only: bool = False,
    two_texts: bool = False,
) -> datasets.Dataset:
    """Evaluation rows may be prompts alone; completions, where given, serve for likelihood and log-ratio.

    `reference` is the model before training; None leaves the log-ratio out. Prepared rows are returned as they are.
    `two_texts`: for an encoder-decoder.
    """
    found = column_names(rows)
    if "prompt_ids" in found and (found >= _EVALUATED or "reference_logprobs" in found):
        return as_dataset(rows, name)
    checked = checked_rows(rows, name, args, tokenizer, completions="not used" if prompts_only else "if given")
    chat = chat_of(tokenizer, args, checked, two_texts=two_texts)
    whole = [i for i, row in enumerate(checked) if row["completion"] is not None]
    tokens = tokens_of(chat, args, [checked[i] for i in whole], name)
    ids = dict(zip(whole, zip(tokens.prompt_ids, tokens.completion_ids, strict=True), strict=True))
    if (long := sum(tokens.completion_long)) and not prompts_only:
        log.warning(
            "%s: %d of %d completions are longer than max_completion_length=%d tokens and cut there",
            name, long, len(whole), args.max_completion_length,
        )  # fmt: skip
    faulty = {i for i, fault in zip(whole, tokens.fault, strict=True) if fault}
    alone = _writable(chat, args, {i: row for i, row in enumerate(checked) if i not in ids}, name)
    for i, prompt in zip(alone, _prompts(chat, args, list(alone.values())), strict=True):
        ids[i] = prompt, []
    kept = [i for i in sorted(ids) if i not in faulty]
    if not kept:
        raise UserError(f"{name}: no row is left of {len(checked)}: the chat template can write none")
    checked = [checked[i] for i in kept]
    table = table_of(checked, [ids[i][0] for i in kept], [ids[i][1] for i in kept])
    table["reward"] = [row["recorded_reward"] for row in checked]
    if any(row["is_chosen"] is not None for row in checked):
        table["is_chosen"], table["pair"] = [row["is_chosen"] for row in checked], pairs(checked)
    scored = any(reward is not None for reward in table["reward"]) and bool(whole)
    if reference is None and scored and not prompts_only:
        log.warning(
            "%s: log-ratios need the reference, whose weights have been trained since: pass these rows as eval_dataset "
            "to the trainer", name
        )  # fmt: skip
    if reference is not None and scored:
        read = [i for i, of_row in enumerate(table["completion_ids"]) if of_row]
        of = ([table[name][i] for i in read] for name in ("prompt_ids", "completion_ids"))
        logprobs: list[Any] = [None] * len(checked)
        for i, of_row in zip(read, reference_of(reference, tokenizer, args).read(*of)[0], strict=True):
            logprobs[i] = of_row
        table["reference_logprobs"] = logprobs
    return datasets.Dataset.from_dict(table)


def pairs(checked: Sequence[Row]) -> list[int | None]:
    """The number of the pair that each row is one side of: the two stand side by side, at places that differ in it."""
    found: list[int | None] = [None] * len(checked)
    for i, (one, other) in enumerate(itertools.pairwise(checked)):
        places = one["where"].removesuffix(" chosen"), other["where"].removesuffix(" rejected")
        if (one["is_chosen"], other["is_chosen"]) == (True, False) and places[0] == places[1]:
            found[i] = found[i + 1] = i
    return found


def _writable(chat: Chat, args: PolicyConfig, rows: dict[int, Row], name: str) -> dict[int, Row]:
    """The prompts that the chat template can write, where the others are to be skipped."""
    faults = list[str]()
    for i, row in list(rows.items()) if args.on_bad_row == "skip" else ():
        try:
            if row["conversational"] and "prompt_ids" not in row:
                chat.asked(Conversation.of(row))
        except ConversationFault as fault:
            faults.append(f"{row['where']}: {fault}")
            del rows[i]
    if faults:
        log.warning("%s: %d prompts skipped as faulty; %s", name, len(faults), first_of(faults))
    return rows


def _prompts(chat: Chat, args: PolicyConfig, rows: list[Row]) -> list[list[int]]:
    """Token ids of prompts without a completion."""
    if rows and "prompt_ids" in rows[0]:
        return [row["prompt_ids"] for row in rows]
    encoded = encode_prompts(chat, rows, remedy=CHAT_REMEDY) if rows else []
    return [cut_prompt(chat, ids, args.max_prompt_length) for ids in encoded]
