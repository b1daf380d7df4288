"""Text -> token ids, under the one truncation rule: prompts are cut on the left, completions dropped or cut."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from leftover.data.chat import SYSTEM_ROLES, Chat, Conversation, ConversationFault, Turn
from leftover.data.records import Row
from leftover.data.rows import first_of
from leftover.errors import UserError


class Limits(NamedTuple):
    max_prompt_tokens: int
    max_completion_tokens: int
    long_completions: str = "drop"  # or "cut", without end of sequence


class Tokenised(NamedTuple):
    """Token ids of many rows; `kept[i]` is False where completion i was too long and `drop` was asked for."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    kept: list[bool]
    prompt_cut: list[bool]
    completion_long: list[bool]
    system_cut: list[bool]  # the cut prompt began with a system turn or with tools, which the cut takes first
    fault: list[str | None]  # why the chat template cannot write the row


def tokenise(
    chat: Chat, rows: Sequence[Row], limits: Limits, *, skip_faulty: bool = False, remedy: str = ""
) -> Tokenised:
    """Token ids of prompts (with what the tokenizer puts before a text) and completions (closed by their end).

    A conversational completion ends in the token that the chat template closes its turn with. A completion without
    any of `Chat.ends` at its end (plain, or of a template that closes no turn) gets the tokenizer's end of sequence;
    one whose row says `ended` is False gets none.
    Prompt and completion are tokenised together and parted where the prompt ends, since tokens at the seam depend on
    both sides; apart only if a token spans the seam.

    A row that the chat template cannot write is not kept; unless `skip_faulty`, such rows are raised together as
    UserError, with the remedy.
    """
    turns, faults = _turns(chat, rows, remedy, skip_faulty=skip_faulty)
    prompt_ids = _encode(chat, [turn.asked for turn in turns], rows)
    whole_ids = _encode(chat, [turn.whole for turn in turns], rows)
    ends = set(chat.ends)
    out = Tokenised([], [], [], [], [], [], faults)
    for i, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        completion = [] if faults[i] else _completion(chat, turns[i], prompt, whole, ends)
        if rows[i].get("ended") is False and completion[-1:] and completion[-1] in ends:
            completion = completion[:-1]  # its sampler was stopped before an end
        cut, long = len(prompt) > limits.max_prompt_tokens, len(completion) > limits.max_completion_tokens
        out.prompt_ids.append(cut_prompt(chat.tokenizer, prompt, limits.max_prompt_tokens))
        out.completion_ids.append(completion[: limits.max_completion_tokens])
        out.kept.append(not faults[i] and (not long or limits.long_completions == "cut"))
        out.prompt_cut.append(cut)
        out.completion_long.append(long)
        out.system_cut.append(cut and rows[i]["conversational"] and _has_system(Conversation.of(rows[i])))
    return out


def encode_prompts(chat: Chat, rows: Sequence[Row], remedy: str = "") -> list[list[int]]:
    """Token ids of each prompt as the model would be asked to continue it, uncut; UserError with the rows' faults."""
    turns, _ = _turns(chat, rows, remedy, prompts_only=True)
    return _encode(chat, [turn.asked for turn in turns], rows)


def cut_prompt(tokenizer: Tokenizer, ids: list[int], limit: int) -> list[int]:
    """The last `limit` tokens of a prompt; a leading beginning-of-sequence token is kept in front."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def decode_completions(
    tokenizer: Tokenizer, completion_ids: Sequence[Sequence[int]], ends: Collection[int] = ()
) -> list[str]:
    """Text of completions, without their end, special tokens and outer white space: what rewards and readers see."""
    # An end need not be a special token, which decoding would leave out.
    inside = [list(ids[:-1] if ids and ids[-1] in ends else ids) for ids in completion_ids]
    return [text.strip() for text in tokenizer.batch_decode(inside, skip_special_tokens=True)]


def _turns(
    chat: Chat, rows: Sequence[Row], remedy: str, *, skip_faulty: bool = False, prompts_only: bool = False
) -> tuple[list[Turn], list[str | None]]:
    """All rows as text, and the faults of those that the chat template cannot write, whose text is empty."""

    def write(row: Row) -> Turn:
        if not row["conversational"]:
            return Turn(row["prompt"], "" if prompts_only else row["prompt"] + row["completion"])
        conversation = Conversation.of(row)
        return Turn(chat.asked(conversation), "") if prompts_only else chat.turn(conversation, row["completion"])

    turns, faults = [Turn("", "")] * len(rows), list[str | None]([None]) * len(rows)
    for i, row in enumerate(rows):
        try:
            turns[i] = write(row)
        except ConversationFault as fault:
            faults[i] = str(fault)
    found = [f"{rows[i].get('where', f'row {i}')}: {fault}" for i, fault in enumerate(faults) if fault]
    if found and not skip_faulty:
        refusal = f"{len(found)} conversations cannot be written by the chat template; {first_of(found)}"
        raise UserError(f"{refusal}\n{remedy}".strip())
    return turns, faults


def _encode(chat: Chat, texts: Sequence[str], rows: Sequence[Row]) -> list[list[int]]:
    """Token ids, none closed by the tokenizer; a template has written the special tokens of a conversation already."""
    ids: list[list[int]] = [[] for _ in texts]
    for of_chat in (False, True):
        chosen = [i for i, row in enumerate(rows) if bool(row["conversational"]) is of_chat]
        if chosen:
            encoded = chat.tokenizer([texts[i] for i in chosen], add_special_tokens=not of_chat)["input_ids"]
            for i, sequence in zip(chosen, encoded, strict=True):
                # Some tokenizers close every text.
                closed = not of_chat and len(sequence) > 1 and sequence[-1] == chat.tokenizer.eos_token_id
                ids[i] = sequence[:-1] if closed else sequence
    return ids


def _completion(chat: Chat, turn: Turn, prompt: list[int], whole: list[int], ends: Collection[int]) -> list[int]:
    """Token ids behind the prompt, closed by one end; tokenised apart if a token spans the seam."""
    completion = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt or not completion:
        completion = chat.tokenizer(turn.whole.removeprefix(turn.asked), add_special_tokens=False)["input_ids"]
    return completion if completion[-1:] and completion[-1] in ends else [*completion, chat.tokenizer.eos_token_id]


def _has_system(conversation: Conversation) -> bool:
    return bool(conversation.tools) or conversation.messages[0]["role"] in SYSTEM_ROLES
