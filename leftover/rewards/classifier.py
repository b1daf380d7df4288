"""A sequence-classification model as a reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leftover.errors import UserError
from leftover.rewards.joins import BLANK_LINE, ROLE_TURNS, Join

ACTIVATIONS = ("softmax", "sigmoid", "none")
SIDES = ("left", "right")


@dataclass(frozen=True)
class _Loaded:
    tokenizer: Any
    model: Any
    label: int
    activation: str
    max_length: int | None
    pad_token_id: int | None  # None: the model declares none


class ClassifierReward:
    """Any `AutoModelForSequenceClassification`, or an OpenAssistant reward model, by folder or Hub id.

    Args:
        model: folder or Hub id.
        label: the class whose score is the reward, by name or number; default: the last one.
        activation: softmax, sigmoid or none; default: none for a declared regression, sigmoid for several labels
            that do not exclude each other and for one output, else softmax.
        join: what the classifier is shown. pair: prompt and completion as the tokenizer's text pair; completion: the
            completion alone; chat: the conversation in the tokenizer's chat template; else a template of text with
            {prompt} and {completion}, in which special tokens such as <|endoftext|> are written out.
        prompt_pattern: a regular expression whose first group is the part of the prompt's text that is shown. A
            prompt that it does not match is an error.
        turns: how a message of a conversation is written, with {role} and {content}: one template, or one for every
            role. With the latter, a prompt that is plain text counts as one turn of the role `user`; else plain text
            stays as it is.
        turn_separator: what stands between two messages.
        strip: white space around prompt, messages and completion is taken away.
        truncation_side: where a text beyond `max_length` is cut; default: left, and right where the prompt is not
            shown or comes last. Of a pair only the prompt is cut, unless the completion leaves it no room.
        max_length: in tokens, special ones included; default: the longest that tokenizer and model take.
        batch_size, dtype, device: as usual; the device defaults to a GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        label: str | int | None = None,
        activation: str | None = None,
        join: str = "pair",
        prompt_pattern: str | None = None,
        turns: str | Mapping[str, str] = ROLE_TURNS,
        turn_separator: str = BLANK_LINE,
        strip: bool = False,
        truncation_side: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str | None = None,
    ):
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("truncation_side", truncation_side, SIDES)
        for name, number in (("max_length", max_length), ("batch_size", batch_size)):
            whole = isinstance(number, int) and not isinstance(number, bool) and number > 0
            if not whole and not (name == "max_length" and number is None):
                raise UserError(f"classifier {name} is {number!r}, not a whole number from 1")
        if isinstance(label, bool):
            raise UserError(f"classifier label is {label}: YAML reads yes, no, on and off as such; put it in quotes")
        self.join = Join(join, prompt_pattern, turns, turn_separator, strip)
        self.truncation_side = _truncation_side(self.join, truncation_side)
        self.path, self.label, self.activation = model, label, activation
        self.max_length, self.batch_size, self.dtype, self.device = max_length, batch_size, dtype, device
        self._loaded: _Loaded | None = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
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

        return {
            "type": "classifier",
            "model": model_identity(self.path),
            "dtype": self.dtype,
            "label": self.label,
            "activation": self.activation,
            "join": self.join.form,
            "prompt_pattern": self.join.prompt_pattern,
            "turns": self.join.turns if isinstance(self.join.turns, str) else dict(self.join.turns),
            "turn_separator": self.join.turn_separator,
            "strip": self.join.strip,
            "truncation_side": self.truncation_side,
            "max_length": self.max_length,
        }

    def _load(self) -> _Loaded:
        if self._loaded is None:
            from leftover.rewards import pretrained

            tokenizer, model = pretrained.load_classifier(self.path, self.dtype)
            max_length = pretrained.longest_input(self.path, self.max_length, tokenizer, model)
            pretrained.check_tokenizer(self.path, tokenizer, self.join, max_length)
            tokenizer.truncation_side = self.truncation_side
            self._loaded = _Loaded(
                tokenizer,
                pretrained.place(self.path, model, self.device),
                pretrained.label_index(self.path, self.label, model.config),
                pretrained.choose_activation(self.path, self.activation, model.config),
                max_length,
                model.config.get_text_config().pad_token_id,
            )
        return self._loaded

    def _encode(
        self, loaded: _Loaded, prompts: Sequence[Any], completions: Sequence[str]
    ) -> list[dict[str, list[int]]]:
        """Token ids of every row (and their types, for models that have such), within max_length, without padding."""
        rows = list(zip(prompts, completions, strict=True))
        if self.join.form == "pair":
            return _encode_pairs(loaded, [self.join.texts(*row) for row in rows])
        tokenizer, chat = loaded.tokenizer, self.join.form == "chat"
        texts = [self._chat_text(tokenizer, *row) if chat else self.join.texts(*row)[0] for row in rows]
        limit = {"truncation": True, "max_length": loaded.max_length} if loaded.max_length else {}
        # A chat template writes the special tokens itself.
        encoded = _tokenize(tokenizer, texts, add_special_tokens=not chat, **limit)
        for row in encoded:
            if not row["input_ids"]:  # an empty text, to which the tokenizer adds nothing
                row |= {name: [0] for name in row} | {"input_ids": [self._token_of_nothing(tokenizer)]}
        return encoded

    def _chat_text(self, tokenizer: Any, prompt: Any, completion: str) -> str:
        from jinja2 import TemplateError

        messages = self.join.messages(prompt, completion)
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template of classifier '{self.path}' refuses a conversation of {roles}: {error}"
            ) from error

    def _token_of_nothing(self, tokenizer: Any) -> int:
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise UserError(f"classifier '{self.path}' cannot read an empty text: its tokenizer has no token for one")


def _encode_pairs(loaded: _Loaded, pairs: list[tuple[str, ...]]) -> list[dict[str, list[int]]]:
    """Pairs within max_length. The prompt is cut; where the completion leaves it no room, the longer of both."""
    tokenizer, max_length = loaded.tokenizer, loaded.max_length
    prompts, completions = ([pair[side] for pair in pairs] for side in (0, 1))
    if max_length is None:
        return _tokenize(tokenizer, prompts, completions)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    alone = _tokenize(tokenizer, completions, add_special_tokens=False)
    strategies = ["only_first" if len(row["input_ids"]) < room else "longest_first" for row in alone]
    encoded: list[dict[str, list[int]]] = [{}] * len(pairs)
    for strategy in set(strategies):
        chosen = [i for i, of in enumerate(strategies) if of == strategy]
        cut = {"truncation": strategy, "max_length": max_length}
        rows = _tokenize(tokenizer, [prompts[i] for i in chosen], [completions[i] for i in chosen], **cut)
        for i, row in zip(chosen, rows, strict=True):
            encoded[i] = row
    return encoded


def _tokenize(tokenizer: Any, *texts: list[str], **options: Any) -> list[dict[str, list[int]]]:
    """One dictionary a row, of `input_ids` and of what else the tokenizer gives its model."""
    columns = tokenizer(*texts, return_attention_mask=False, verbose=False, **options)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _collate(rows: list[dict[str, list[int]]], loaded: _Loaded) -> dict[str, Any]:
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


def _activate(logits: Any, activation: str) -> Any:
    return {"softmax": lambda: logits.softmax(-1), "sigmoid": logits.sigmoid, "none": lambda: logits}[activation]()


def _truncation_side(join: Join, side: str | None) -> str:
    """The setting, or the side that spares the completion. Raises UserError where the setting would not."""
    sparing = "left" if join.completion_last else "right"
    if side is None:
        return sparing if join.shows_prompt else "right"
    if side != sparing and join.shows_prompt and join.form != "pair":
        raise UserError(
            f"classifier truncation_side {side} would cut the completion of a long row under join: {join.form!r}; "
            f"set it to {sparing}"
        )
    return side


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"classifier {name} '{value}' is not one of {', '.join(choices)}")
