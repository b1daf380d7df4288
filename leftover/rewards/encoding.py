"""What a classifier reads: the token ids of rows, cut to its length; the same when it is trained and when it scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leftover.errors import UserError
from leftover.rewards.base import Prompt
from leftover.rewards.joins import ClassifierSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoded = dict[str, list[int]]  # one row: `input_ids`, and what else the tokenizer gives its model


def encode_rows(
    settings: ClassifierSettings,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
) -> list[Encoded]:
    """Token ids of every row (and their types, for models that have such), within max_length, without padding.

    The tokenizer must cut where the settings say (`truncation_side`).
    """
    rows = list(zip(prompts, completions, strict=True))
    if settings.join == "pair":
        return _encode_pairs(tokenizer, max_length, [settings.texts(*row) for row in rows])
    chat = settings.join == "chat"
    texts = [_chat_text(settings, tokenizer, *row) if chat else settings.texts(*row)[0] for row in rows]
    # A chat template writes the special tokens itself.
    if chat:
        cut = {"truncation": bool(max_length), "max_length": max_length}
        encoded = tokenize(tokenizer, texts, add_special_tokens=False, **cut)
    else:
        encoded = framed(tokenizer, texts, max_length)
    for row in encoded:
        if not row["input_ids"]:  # an empty text, to which the tokenizer adds nothing
            token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            if token is None:
                raise UserError(f"classifier '{settings.model}' cannot read an empty text: its tokenizer has no token")
            row |= {name: [0] for name in row} | {"input_ids": [token]}
    return encoded


def _chat_text(
    settings: ClassifierSettings, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, completion: str
) -> str:
    from jinja2 import TemplateError

    messages = settings.messages(prompt, completion)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        where = f"the chat template of classifier '{settings.model}'"
        raise UserError(f"{where} refuses a conversation of {roles}: {error}") from error


def _encode_pairs(
    tokenizer: "PreTrainedTokenizerBase", max_length: int | None, pairs: list[tuple[str, ...]]
) -> list[Encoded]:
    """Pairs within max_length. The prompt is cut; if the completion leaves it no room, the longer of both."""
    prompts, completions = ([pair[side] for pair in pairs] for side in (0, 1))
    if max_length is None:
        return tokenize(tokenizer, prompts, completions)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    alone = tokenize(tokenizer, completions, add_special_tokens=False)
    strategies = ["only_first" if len(row["input_ids"]) < room else "longest_first" for row in alone]
    encoded: dict[int, Encoded] = {}
    for strategy in set(strategies):
        chosen = [i for i, of in enumerate(strategies) if of == strategy]
        cut = {"truncation": strategy, "max_length": max_length}
        rows = tokenize(tokenizer, [prompts[i] for i in chosen], [completions[i] for i in chosen], **cut)
        encoded |= zip(chosen, rows, strict=True)
    return [encoded[i] for i in range(len(pairs))]


def framed(tokenizer: "PreTrainedTokenizerBase", texts: list[str], max_length: int | None) -> list[Encoded]:
    """Texts with what the tokenizer puts around them, within max_length; a text that begins or ends so already gets no
    second one."""
    from leftover.data.encode import Encoder

    encoder, cut = Encoder(tokenizer), max_length is not None
    opening, closing = map(encoder.decode, encoder.around)
    begun = [bool(opening) and text.startswith(opening) for text in texts]
    ended = [bool(closing) and text.endswith(closing) for text in texts]
    usual = [i for i in range(len(texts)) if not (begun[i] or ended[i])]
    encoded: dict[int, Encoded] = {}
    if usual:
        rows = tokenize(tokenizer, [texts[i] for i in usual], truncation=cut, max_length=max_length)
        encoded |= zip(usual, rows, strict=True)
    for i in set(range(len(texts))).difference(usual):
        before, behind = (
            ids[:0] if there else ids for ids, there in zip(encoder.around, (begun[i], ended[i]), strict=True)
        )
        room = max_length - len(before) - len(behind) if max_length is not None else None
        (row,) = tokenize(tokenizer, [texts[i]], add_special_tokens=False, truncation=cut, max_length=room)
        types = {name: [0] * len(before) + values + [0] * len(behind) for name, values in row.items()}
        encoded[i] = types | {"input_ids": [*before, *row["input_ids"], *behind]}
    return [encoded[i] for i in range(len(texts))]


def tokenize(tokenizer: "PreTrainedTokenizerBase", *texts: list[str], **options: Any) -> list[Encoded]:
    """One dictionary a row, of `input_ids` and of what else the tokenizer gives its model."""
    columns = tokenizer(*texts, return_attention_mask=False, verbose=False, **options)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
