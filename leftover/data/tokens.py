"""Text -> token ids, under the one truncation rule: prompts are cut on the left, completions dropped or cut."""

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from leftover.data.chat import SYSTEM_ROLES, Chat, Conversation, ConversationFault, Options, Turn
from leftover.data.rows import as_prompt, first_of
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


class Template(NamedTuple):
    """A chat template and what it gets beside the messages, for each row; and how messages name rows and a remedy."""

    chat: Chat
    tools: Sequence[str | None] | None = None  # as JSON text
    options: Sequence[Options] | None = None
    where: Sequence[str] | None = None
    remedy: str = ""

    def conversation(self, i: int, prompt: str) -> Conversation:
        tools = self.tools[i] if self.tools is not None else None
        options = self.options[i] if self.options is not None else None
        return Conversation(as_prompt(prompt, True), json.loads(tools) if tools else None, options)


def tokenise(
    tokenizer: "Tokenizer",
    prompts: Sequence[str],
    completions: Sequence[str],
    conversational: Sequence[bool],
    limits: Limits,
    template: Template | None = None,
    faults: dict[int, str] | None = None,
) -> Tokenised:
    """Token ids of prompts (with what the tokenizer puts before a text) and completions (closed by their end).

    A conversational completion ends in the token that the chat template closes its turn with. A completion without
    any of `Chat.ends` at its end (plain, or of a template that closes no turn) gets the tokenizer's end of sequence.
    Prompt and completion are tokenised together and parted where the prompt ends, since tokens at the seam depend on
    both sides; apart only where a token spans the seam.

    `faults` gets the faults of rows by their numbers, and such a row is not kept; without it UserError lists them.
    """
    template = template or Template(Chat(tokenizer))
    wrong: dict[int, str] = {} if faults is None else faults
    turns = _turns(template, prompts, conversational, completions, faults)
    prompt_ids = _encode(tokenizer, [turn.asked for turn in turns], conversational)
    whole_ids = _encode(tokenizer, [turn.whole for turn in turns], conversational)
    ends = set(template.chat.ends)
    out = Tokenised([], [], [], [], [], [])
    for i, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        completion = _completion(tokenizer, turns[i], prompt, whole, ends) if i not in wrong else []
        cut, long = len(prompt) > limits.max_prompt_tokens, len(completion) > limits.max_completion_tokens
        out.prompt_ids.append(cut_prompt(tokenizer, prompt, limits.max_prompt_tokens))
        out.completion_ids.append(completion[: limits.max_completion_tokens])
        out.kept.append(i not in wrong and (not long or limits.long_completions == "cut"))
        out.prompt_cut.append(cut)
        out.completion_long.append(long)
        out.system_cut.append(cut and conversational[i] and _has_system(template.conversation(i, prompts[i])))
    return out


def encode_prompts(
    tokenizer: "Tokenizer",
    prompts: Sequence[str],
    conversational: Sequence[bool],
    template: Template | None = None,
    faults: dict[int, str] | None = None,
) -> list[list[int]]:
    """Token ids of each prompt as the model would be asked to continue it, uncut; `faults` as in `tokenise`."""
    turns = _turns(template or Template(Chat(tokenizer)), prompts, conversational, None, faults)
    return _encode(tokenizer, [turn.asked for turn in turns], conversational)


def refusal(faults: dict[str, str], remedy: str) -> str:
    """One message for the faults of rows, given by the place of the row."""
    first = first_of(f"{where}: {fault}" for where, fault in faults.items())
    return f"{len(faults)} conversations cannot be written by the chat template; {first}\n{remedy}"


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
    template: Template,
    prompts: Sequence[str],
    conversational: Sequence[bool],
    completions: Sequence[str] | None,
    faults: dict[int, str] | None,
) -> list[Turn]:
    """Prompts (and completions) as the template writes them; empty for a row whose fault goes to `faults`."""
    turns = [Turn(prompt, prompt + (completions[i] if completions else "")) for i, prompt in enumerate(prompts)]
    found: dict[int, str] = {}
    for i in (i for i in range(len(prompts)) if conversational[i]):
        conversation = template.conversation(i, prompts[i])
        try:
            if completions is None:
                turns[i] = Turn(template.chat.asked(conversation), "")
            else:
                turns[i] = template.chat.turn(conversation, completions[i])
        except ConversationFault as fault:
            found[i], turns[i] = str(fault), Turn("", "")
    if found and faults is None:
        where = template.where or [f"row {i}" for i in range(len(prompts))]
        raise UserError(refusal({where[i]: fault for i, fault in found.items()}, template.remedy))
    if faults is not None:
        faults |= found
    return turns


def _encode(tokenizer: "Tokenizer", texts: Sequence[str], conversational: Sequence[bool]) -> list[list[int]]:
    """Token ids, none closed by the tokenizer; a template has written the special tokens of a conversation already."""
    ids: list[list[int]] = [[] for _ in texts]
    for chat in (False, True):
        chosen = [i for i in range(len(texts)) if bool(conversational[i]) is chat]
        if chosen:
            encoded = tokenizer([texts[i] for i in chosen], add_special_tokens=not chat)["input_ids"]
            for i, sequence in zip(chosen, encoded, strict=True):
                # Some tokenizers close every text.
                closed = not chat and len(sequence) > 1 and sequence[-1] == tokenizer.eos_token_id
                ids[i] = sequence[:-1] if closed else sequence
    return ids


def _completion(
    tokenizer: "Tokenizer", turn: Turn, prompt: list[int], whole: list[int], ends: Collection[int]
) -> list[int]:
    """Token ids behind the prompt, closed by one end; tokenised apart where a token spans the seam."""
    completion = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt or not completion:
        completion = tokenizer(turn.whole.removeprefix(turn.asked), add_special_tokens=False)["input_ids"]
    return completion if completion[-1:] and completion[-1] in ends else [*completion, tokenizer.eos_token_id]


def _has_system(conversation: Conversation) -> bool:
    return bool(conversation.tools) or conversation.messages[0]["role"] in SYSTEM_ROLES
