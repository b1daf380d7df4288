"""A sequence-classification model as a reward."""

from collections.abc import Sequence
from typing import Any

from leftover.errors import UserError


class ClassifierReward:
    """Any `AutoModelForSequenceClassification`, by folder or Hub id.

    Args:
        model: folder or Hub id.
        label: the class whose score is the reward, by name or number; default: the last one.
        activation: softmax, sigmoid or none; default: sigmoid for one output, softmax for several.
        pair: give the tokenizer prompt and completion as a text pair (else the completion alone).
        max_length, batch_size, dtype, device: as usual; the device defaults to a GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        label: str | int | None = None,
        activation: str | None = None,
        pair: bool = True,
        max_length: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str | None = None,
    ):
        if activation not in (None, "softmax", "sigmoid", "none"):
            raise UserError(f"classifier activation '{activation}' is not one of softmax, sigmoid, none")
        self.path, self.label, self.activation, self.pair = model, label, activation, pair
        self.max_length, self.batch_size, self.dtype, self.device = max_length, batch_size, dtype, device
        self._loaded: tuple[Any, Any, int, str, int | None] | None = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        import torch

        tokenizer, model, label, activation, max_length = self._load()
        texts = [_as_text(prompt) for prompt in prompts]
        # Longest first: least padding, and a batch that does not fit fails at once.
        order = sorted(range(len(completions)), key=lambda i: -len(texts[i]) * self.pair - len(completions[i]))
        scores = [0.0] * len(completions)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            answers = [completions[i] for i in chosen]
            inputs = ([texts[i] for i in chosen], answers) if self.pair else (answers,)
            encoded = tokenizer(*inputs, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(
                model.device
            )
            with torch.inference_mode():
                logits = model(**encoded).logits.float()
            if activation == "softmax":
                logits = logits.softmax(-1)
            elif activation == "sigmoid":
                logits = logits.sigmoid()
            for i, score in zip(chosen, logits[:, label].tolist(), strict=True):
                scores[i] = score
        return scores

    def identity(self) -> dict[str, Any]:
        from leftover.reference import model_identity

        settings = {"label": self.label, "activation": self.activation, "pair": self.pair}
        return (
            {"type": "classifier", "model": model_identity(self.path), "dtype": self.dtype}
            | settings
            | {"max_length": self.max_length}
        )

    def _load(self) -> tuple[Any, Any, int, str, int | None]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            from leftover.models import first_line, torch_dtype

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.path)
                model = AutoModelForSequenceClassification.from_pretrained(self.path, dtype=torch_dtype(self.dtype))
            except (OSError, ValueError) as error:
                raise UserError(f"no sequence classifier at '{self.path}': {first_line(error)}") from error
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            activation = self.activation or ("sigmoid" if model.config.num_labels == 1 else "softmax")
            max_length = self.max_length
            if max_length is None and tokenizer.model_max_length > 10**6:
                max_length = _positions(model)
            label = self._label_index(model.config)
            self._loaded = (tokenizer, model.to(device).eval(), label, activation, max_length)
        return self._loaded

    def _label_index(self, config: Any) -> int:
        if self.label is None:
            return config.num_labels - 1
        if isinstance(self.label, int):
            if not 0 <= self.label < config.num_labels:
                raise UserError(f"classifier '{self.path}' has labels 0 to {config.num_labels - 1}, not {self.label}")
            return self.label
        if self.label not in config.label2id:
            raise UserError(f"classifier '{self.path}' has no label '{self.label}': {', '.join(config.label2id)}")
        return config.label2id[self.label]


def _positions(model: Any) -> int | None:
    """The longest input of a model whose tokenizer does not say; RoBERTa counts its positions from the padding id."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1
    return positions


def _as_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
