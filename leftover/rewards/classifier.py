"""A sequence-classification model as a reward."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from leftover.errors import UserError, located
from leftover.rewards.base import STRICT, Prompt
from leftover.rewards.joins import ClassifierSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from leftover.rewards.pretrained import Classifier

Encoded = dict[str, list[int]]  # one row: `input_ids`, and what else the tokenizer gives its model


@dataclass(config=STRICT, kw_only=True)
class ClassifierReward(ClassifierSettings):
    """Any `AutoModelForSequenceClassification`, or an OpenAssistant reward model; see `ClassifierSettings`."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        import torch

        loaded = self._loaded
        if not completions:
            return []
        rows = self._encode(prompts, completions)
        # Longest first: least padding, and a batch that does not fit fails at once.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            with torch.inference_mode():
                logits = loaded.model(**_collate([rows[i] for i in chosen], loaded)).logits.float()
            if loaded.activation != "none":
                logits = logits.softmax(-1) if loaded.activation == "softmax" else logits.sigmoid()
            for i, score in zip(chosen, logits[:, loaded.label].tolist(), strict=True):
                scores[i] = score
        return scores

    def identity(self) -> dict[str, Any]:
        from leftover.models.reference import model_identity

        settings = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}
        return {"type": "classifier", **settings, "model": model_identity(self.model)}

    @cached_property
    def _loaded(self) -> "Classifier":
        from leftover.rewards.pretrained import load

        with located(f"classifier '{self.model}'"):
            return load(self)

    def _encode(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Encoded]:
        """Token ids of every row (and their types, for models that have such), within max_length, without padding."""
        rows = list(zip(prompts, completions, strict=True))
        if self.join == "pair":
            return _encode_pairs(self._loaded, [self.texts(*row) for row in rows])
        tokenizer, length, chat = self._loaded.tokenizer, self._loaded.max_length, self.join == "chat"
        texts = [self._chat_text(tokenizer, *row) if chat else self.texts(*row)[0] for row in rows]
        # A chat template writes the special tokens itself.
        if chat:
            cut = {"truncation": bool(length), "max_length": length}
            encoded = tokenize(tokenizer, texts, add_special_tokens=False, **cut)
        else:
            encoded = framed(tokenizer, texts, length)
        for row in encoded:
            if not row["input_ids"]:  # an empty text, to which the tokenizer adds nothing
                token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
                if token is None:
                    raise UserError(f"classifier '{self.model}' cannot read an empty text: its tokenizer has no token")
                row |= {name: [0] for name in row} | {"input_ids": [token]}
        return encoded

    def _chat_text(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, completion: str) -> str:
        from jinja2 import TemplateError

        messages = self.messages(prompt, completion)
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            where = f"the chat template of classifier '{self.model}'"
            raise UserError(f"{where} refuses a conversation of {roles}: {error}") from error


def _encode_pairs(loaded: "Classifier", pairs: list[tuple[str, ...]]) -> list[Encoded]:
    """Pairs within max_length. The prompt is cut; if the completion leaves it no room, the longer of both."""
    tokenizer, max_length = loaded.tokenizer, loaded.max_length
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


def _collate(rows: list[Encoded], loaded: "Classifier") -> "dict[str, Tensor]":
    """Rows as padded tensors [B, L] on the model's device, with the attention mask."""
    from leftover.data.collate import pad

    config, padding = loaded.model.config, loaded.pad_token_id
    if padding is None:
        # The model looks for its last token by this id. It knows none, so any will do that ends no row; the end of
        # text would hide the one that a row may end in.
        last = {row["input_ids"][-1] for row in rows}
        padding = next(token_id for token_id in range(len(rows) + 1) if token_id not in last)
        config.get_text_config().pad_token_id = padding
    # XLNet reads its summary at the last position of the batch, padding or not.
    left = config.model_type == "xlnet"
    ids, mask = pad([row["input_ids"] for row in rows], padding, left=left)
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    # Generic tokenizers give types for every model; GPT-2 would take them for words.
    if "token_type_ids" in rows[0] and (left or getattr(config, "type_vocab_size", 0) > 1):
        batch["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0, left=left)[0]
    return {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
