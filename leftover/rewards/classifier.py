"""A sequence-classification model as a reward."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from leftover.errors import located
from leftover.rewards.base import STRICT, Prompt
from leftover.rewards.encoding import Encoded, encode_rows
from leftover.rewards.joins import ClassifierSettings

if TYPE_CHECKING:
    from torch import Tensor

    from leftover.rewards.pretrained import Classifier


@dataclass(config=STRICT, kw_only=True)
class ClassifierReward(ClassifierSettings):
    """Any `AutoModelForSequenceClassification`, or an OpenAssistant reward model; see `ClassifierSettings`."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        import torch

        loaded = self._loaded
        if not completions:
            return []
        rows = self.encode(prompts, completions)
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

    def encode(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Encoded]:
        """What the classifier reads of every row; see `encode_rows`."""
        return encode_rows(self, self._loaded.tokenizer, self._loaded.max_length, prompts, completions)

    def identity(self) -> dict[str, Any]:
        from leftover.models.reference import model_identity

        settings = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}
        return {"type": "classifier", **settings, "model": model_identity(self.model)}

    @cached_property
    def _loaded(self) -> "Classifier":
        from leftover.rewards.pretrained import load

        with located(f"classifier '{self.model}'"):
            return load(self)


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
