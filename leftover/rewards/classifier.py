"""A sequence-classification model as a reward."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from leftover.errors import UserError
from leftover.rewards.base import STRICT, Prompt
from leftover.rewards.joins import Join

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from leftover.rewards.pretrained import Classifier

Encoded = dict[str, list[int]]  # one row: `input_ids`, and what else the tokenizer gives its model


@dataclass(config=STRICT, kw_only=True)
class ClassifierReward(Join):
    """Any `AutoModelForSequenceClassification`, or an OpenAssistant reward model, by folder or Hub id.

    Args:
        model: folder or Hub id.
        label: the class whose score is the reward, by name or number; default: the last one.
        activation: default: none for a declared regression, sigmoid for one output and for several labels that do not
            exclude each other, else softmax.
        join: what the classifier is shown. pair: prompt and completion as the tokenizer's text pair; completion: the
            completion alone; chat: the conversation in the tokenizer's chat template; else a template of text with
            {prompt} and {completion}, in which special tokens such as <|endoftext|> are written out.
        prompt_pattern: a regular expression whose first group is the part of the prompt's text that is shown. A
            prompt that it does not match is an error.
        turns: how a message of a conversation is written, with {role} and {content}: one template, or one for every
            role. With the latter, a prompt that is plain text counts as one turn of the role `user`; else plain text
            stays as it is.
        turn_separator: text between two messages.
        strip: remove white space around prompt, messages and completion.
        truncation_side: where a text beyond `max_length` is cut; default: left, and right where the prompt is not
            shown or comes last. Of a pair only the prompt is cut, unless the completion leaves it no room.
        max_length: in tokens, special ones included; default: the longest that tokenizer and model take.
        batch_size, dtype, device: as usual; the device defaults to a GPU where there is one.
    """

    model: str
    label: int | str | None = None
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    dtype: str = "float32"
    device: str | None = None

    @field_validator("label", mode="before")
    @classmethod
    def _is_not_a_truth_value(cls, label: object) -> object:
        if isinstance(label, bool):
            raise ValueError(f"{label}: YAML reads yes, no, on and off as such; put it in quotes")
        return label

    def __post_init__(self) -> None:
        super().__post_init__()
        sparing: Literal["left", "right"] = "left" if self.completion_last else "right"
        if self.truncation_side is None:
            self.truncation_side = sparing if self.shows_prompt else "right"
        elif self.truncation_side != sparing and self.shows_prompt and self.join != "pair":
            raise ValueError(
                f"truncation_side {self.truncation_side} would cut the completion of a long row under "
                f"join: {self.join!r}; set it to {sparing}"
            )
        self._loaded: Classifier | None = None

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        import torch

        loaded = self._load()
        if not completions:
            return []
        rows = self._encode(loaded, prompts, completions)
        # Longest first: least padding, and a batch that does not fit fails at once.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            with torch.inference_mode():
                logits = loaded.model(**_collate([rows[i] for i in chosen], loaded)).logits.float()
            for i, score in zip(chosen, _activate(logits, loaded.activation)[:, loaded.label].tolist(), strict=True):
                scores[i] = score
        return scores

    def identity(self) -> dict[str, Any]:
        from leftover.models.reference import model_identity

        settings = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}
        return {"type": "classifier", **settings, "model": model_identity(self.model)}

    def _load(self) -> "Classifier":
        if self._loaded is None:
            from leftover.rewards.pretrained import load

            try:
                self._loaded = load(self)
            except UserError as error:
                raise UserError(f"classifier '{self.model}': {error}") from error
        return self._loaded

    def _encode(self, loaded: "Classifier", prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Encoded]:
        """Token ids of every row (and their types, for models that have such), within max_length, without padding."""
        rows = list(zip(prompts, completions, strict=True))
        if self.join == "pair":
            return _encode_pairs(loaded, [self.texts(*row) for row in rows])
        tokenizer, chat = loaded.tokenizer, self.join == "chat"
        texts = [self._chat_text(tokenizer, *row) if chat else self.texts(*row)[0] for row in rows]
        limit = {"truncation": True, "max_length": loaded.max_length} if loaded.max_length else {}
        # A chat template writes the special tokens itself.
        encoded = _tokenize(tokenizer, texts, add_special_tokens=not chat, **limit)
        for row in encoded:
            if not row["input_ids"]:  # an empty text, to which the tokenizer adds nothing
                row |= {name: [0] for name in row} | {"input_ids": [self._token_of_nothing(tokenizer)]}
        return encoded

    def _chat_text(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, completion: str) -> str:
        from jinja2 import TemplateError

        messages = self.messages(prompt, completion)
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template of classifier '{self.model}' refuses a conversation of {roles}: {error}"
            ) from error

    def _token_of_nothing(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise UserError(f"classifier '{self.model}' cannot read an empty text: its tokenizer has no token for one")


def _encode_pairs(loaded: "Classifier", pairs: list[tuple[str, ...]]) -> list[Encoded]:
    """Pairs within max_length. The prompt is cut; where the completion leaves it no room, the longer of both."""
    tokenizer, max_length = loaded.tokenizer, loaded.max_length
    prompts, completions = ([pair[side] for pair in pairs] for side in (0, 1))
    if max_length is None:
        return _tokenize(tokenizer, prompts, completions)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    alone = _tokenize(tokenizer, completions, add_special_tokens=False)
    strategies = ["only_first" if len(row["input_ids"]) < room else "longest_first" for row in alone]
    encoded: list[Encoded] = [{}] * len(pairs)
    for strategy in set(strategies):
        chosen = [i for i, of in enumerate(strategies) if of == strategy]
        cut = {"truncation": strategy, "max_length": max_length}
        rows = _tokenize(tokenizer, [prompts[i] for i in chosen], [completions[i] for i in chosen], **cut)
        for i, row in zip(chosen, rows, strict=True):
            encoded[i] = row
    return encoded


def _tokenize(tokenizer: "PreTrainedTokenizerBase", *texts: list[str], **options: Any) -> list[Encoded]:
    """One dictionary a row, of `input_ids` and of what else the tokenizer gives its model."""
    columns = tokenizer(*texts, return_attention_mask=False, verbose=False, **options)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _collate(rows: list[Encoded], loaded: "Classifier") -> "dict[str, Tensor]":
    """Rows as padded tensors [B, L] on the model's device, with the mask of what is no padding."""
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


def _activate(logits: "Tensor", activation: str) -> "Tensor":
    return {"softmax": lambda: logits.softmax(-1), "sigmoid": logits.sigmoid, "none": lambda: logits}[activation]()
