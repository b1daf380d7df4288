"""Text -> token ids, under the one truncation rule: prompts are cut on the left, completions dropped or cut."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from leftover.data.chat import SYSTEM_ROLES, Chat, Conversation, ConversationFault, Turn
from leftover.data.records import Row
from leftover.data.rows import first_of
from leftover.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


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


def tokenise(
    chat: Chat, rows: Sequence[Row], limits: Limits, faults: dict[int, str] | None = None, remedy: str = ""
) -> Tokenised:
    """Token ids of prompts (with what the tokenizer puts before a text) and completions (closed by their end).

    A conversational completion ends in the token that the chat template closes its turn with. A completion without
    any of `Chat.ends` at its end (plain, or of a template that closes no turn) gets the tokenizer's end of sequence.
    Prompt and completion are tokenised together and parted where the prompt ends, since tokens at the seam depend on
    both sides; apart only where a token spans the seam.

    `faults` gets the faults of rows by their numbers, and such a row is not kept. Without it they are raised together
    as UserError, with the remedy.
    """
    faults, turns = _turns(chat, rows, faults, remedy)
    prompt_ids = _encode(chat, [turn.asked for turn in turns], rows)
    whole_ids = _encode(chat, [turn.whole for turn in turns], rows)
    ends = set(chat.ends)
    out = Tokenised([], [], [], [], [], [])
    for i, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        completion = [] if i in faults else _completion(chat, turns[i], prompt, whole, ends)
        cut, long = len(prompt) > limits.max_prompt_tokens, len(completion) > limits.max_completion_tokens
        out.prompt_ids.append(cut_prompt(chat.tokenizer, prompt, limits.max_prompt_tokens))
        out.completion_ids.append(completion[: limits.max_completion_tokens])
        out.kept.append(i not in faults and (not long or limits.long_completions == "cut"))
        out.prompt_cut.append(cut)
        out.completion_long.append(long)
        out.system_cut.append(cut and rows[i]["conversational"] and _has_system(Conversation.of(rows[i])))
    return out


def encode_prompts(chat: Chat, rows: Sequence[Row], remedy: str = "") -> list[list[int]]:
    """Token ids of each prompt as the model would be asked to continue it, uncut; UserError with the rows' faults."""
    _, turns = _turns(chat, rows, None, remedy, prompts_only=True)
    return _encode(chat, [turn.asked for turn in turns], rows)


def cut_prompt(tokenizer: "Tokenizer", ids: list[int], limit: int) -> list[int]:
    """The last `limit` tokens of a prompt; a leading beginning-of-sequence token is kept in front."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def decode_completions(
    tokenizer: "Tokenizer", completion_ids: Sequence[Sequence[int]], ends: Collection[int] = ()
) -> list[str]:
    """Text of completions, without their end, special tokens and outer white space: what rewards and readers see."""
    # An end need not be a special token, which decoding would leave out.
    inside = [list(ids[:-1] if ids and ids[-1] in ends else ids) for ids in completion_ids]
    return [text.strip() for text in tokenizer.batch_decode(inside, skip_special_tokens=True)]


def _turns(
    chat: Chat, rows: Sequence[Row], faults: dict[int, str] | None, remedy: str, prompts_only: bool = False
) -> tuple[dict[int, str], list[Turn]]:
    """The faults of rows by their numbers, and all rows as text; a faulty one is empty."""
    found, turns = {} if faults is None else faults, list[Turn]()
    for i, row in enumerate(rows):
        try:
            if not row["conversational"]:
                turns.append(Turn(row["prompt"], row["prompt"] + ("" if prompts_only else row["completion"])))
            elif prompts_only:
                turns.append(Turn(chat.asked(Conversation.of(row)), ""))
            else:
                turns.append(chat.turn(Conversation.of(row), row["completion"]))
        except ConversationFault as fault:
            found[i] = str(fault)
            turns.append(Turn("", ""))
    if faults is None and found:
        first = first_of(f"{rows[i].get('where', f'row {i}')}: {fault}" for i, fault in found.items())
        raise UserError(f"{len(found)} conversations cannot be written by the chat template; {first}\n{remedy}".strip())
    return found, turns


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
    """Token ids behind the prompt, closed by one end; tokenised apart where a token spans the seam."""
    completion = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt or not completion:
        completion = chat.tokenizer(turn.whole.removeprefix(turn.asked), add_special_tokens=False)["input_ids"]
    return completion if completion[-1:] and completion[-1] in ends else [*completion, chat.tokenizer.eos_token_id]


def _has_system(conversation: Conversation) -> bool:
    return bool(conversation.tools) or conversation.messages[0]["role"] in SYSTEM_ROLES
