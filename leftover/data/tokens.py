"""Text -> token ids, under the one truncation rule: prompts are cut on the left, completions dropped or cut."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from leftover.data.rows import as_prompt
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


def tokenise(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], conversational: Sequence[bool], limits: Limits
) -> Tokenised:
    """Token ids of prompts (with what the tokenizer puts before a text) and completions (closed by their end).

    A plain completion ends in the tokenizer's end of sequence; a conversational one in whatever the chat
    template closes the turn with. Prompt and completion are tokenised together and parted where the prompt
    ends, since tokens at the seam depend on both sides; where that is not possible, apart.
    """
    prompt_ids = encode_prompts(tokenizer, prompts, conversational)
    whole_ids = _encode_whole(tokenizer, prompts, completions, conversational)
    out = Tokenised([], [], [], [], [])
    for i, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            completion = whole[len(prompt) :]
        elif conversational[i]:
            completion = _turn_apart(tokenizer, prompts[i], completions[i])
        else:
            completion = tokenizer(completions[i], add_special_tokens=False)["input_ids"]
        if not conversational[i]:
            completion = [*completion, tokenizer.eos_token_id]
        long = len(completion) > limits.max_completion_tokens
        out.prompt_ids.append(cut_prompt(tokenizer, prompt, limits.max_prompt_tokens))
        out.completion_ids.append(completion[: limits.max_completion_tokens])
        out.kept.append(not long or limits.long_completions == "cut")
        out.prompt_cut.append(len(prompt) > limits.max_prompt_tokens)
        out.completion_long.append(long)
    return out


def encode_prompts(tokenizer: Any, prompts: Sequence[str], conversational: Sequence[bool]) -> list[list[int]]:
    """Token ids of each prompt as the model would be asked to continue it, uncut."""
    ids: list[list[int]] = [[] for _ in prompts]
    plain = [i for i, chat in enumerate(conversational) if not chat]
    if plain:
        encoded = tokenizer([prompts[i] for i in plain])["input_ids"]
        for i, sequence in zip(plain, encoded, strict=True):
            # Some tokenizers close every text; a prompt is not closed.
            closed = sequence and sequence[-1] == tokenizer.eos_token_id and len(sequence) > 1
            ids[i] = sequence[:-1] if closed else sequence
    for i, chat in enumerate(conversational):
        if chat:
            ids[i] = _template(tokenizer, as_prompt(prompts[i], True), add_generation_prompt=True)
    return ids


def cut_prompt(tokenizer: Any, ids: list[int], limit: int) -> list[int]:
    """The last `limit` tokens of a prompt; a leading beginning-of-sequence token is kept in front."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def decode_completions(tokenizer: Any, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Text of completions, without special tokens and outer white space: what rewards and readers see."""
    return [text.strip() for text in tokenizer.batch_decode(list(completion_ids), skip_special_tokens=True)]


def _encode_whole(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], conversational: Sequence[bool]
) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in prompts]
    plain = [i for i, chat in enumerate(conversational) if not chat]
    if plain:
        texts = [prompts[i] + completions[i] for i in plain]
        for i, sequence in zip(plain, tokenizer(texts)["input_ids"], strict=True):
            ids[i] = sequence[:-1] if sequence[-1:] == [tokenizer.eos_token_id] else sequence
    for i, chat in enumerate(conversational):
        if chat:
            ids[i] = _up_to_last_end(tokenizer, _template(tokenizer, _conversation(prompts[i], completions[i])))
    return ids


def _conversation(prompt: str, completion: str) -> list[dict[str, str]]:
    return [*as_prompt(prompt, True), {"role": "assistant", "content": completion}]


def _turn_apart(tokenizer: Any, prompt: str, completion: str) -> list[int]:
    """Token ids of the last turn's text alone, for templates whose seam lies within a token."""
    asked = tokenizer.apply_chat_template(as_prompt(prompt, True), tokenize=False, add_generation_prompt=True)
    told = tokenizer.apply_chat_template(_conversation(prompt, completion), tokenize=False)
    if not told.startswith(asked) or told == asked:
        raise UserError(
            "the chat template writes a prompt differently once a completion follows it, so the tokens of the "
            "completion cannot be told apart; set model.chat_template to a template whose generation prompt "
            "is a prefix of the whole conversation"
        )
    ids = tokenizer(told.removeprefix(asked), add_special_tokens=False)["input_ids"]
    return _up_to_last_end(tokenizer, ids)


def _up_to_last_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """Cut what a template writes after the turn's own end (many add a line break): it is never generated."""
    ends = {tokenizer.eos_token_id}
    for position in range(len(ids) - 1, max(len(ids) - 4, -1), -1):
        if ids[position] in ends:
            return ids[: position + 1]
    return ids


def _template(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    if tokenizer.chat_template is None:
        raise UserError(
            "the rows are conversations, but the tokenizer has no chat template; set model.chat_template in the "
            "recipe (a template, a file, or 'plain'), or chat_template on the tokenizer you pass"
        )
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))
