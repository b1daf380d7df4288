"""A sequence classifier that is fine-tuned on rows, as a reward."""

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from leftover.errors import UserError, first_line, nearest
from leftover.models.reference import model_identity
from leftover.monitoring.callbacks import MetricsFile
from leftover.monitoring.checkpoints import last_whole_checkpoint
from leftover.monitoring.finite_training import FiniteTrainer
from leftover.monitoring.training_display import shown
from leftover.recipe.optional_packages import trains_on_cpu
from leftover.recipe.policy_config import faulty_numbers
from leftover.rewards.base import Prompt
from leftover.rewards.classifier import ClassifierReward, Encoded, framed, tokenize
from leftover.rewards.examples import Examples, family_share
from leftover.rewards.features import prompt_text
from leftover.rewards.fitted import FitSettings, RowsReward
from leftover.rewards.joins import ClassifierSettings
from leftover.rewards.pretrained import num_positions, untrained_classifier
from leftover.store.folders import readable_weights, remove
from leftover.store.manifest import read_json, write_json

_CHOOSING_SHARE = 0.1  # of the families to learn from: their loss chooses the checkpoint
_PATIENCE = 2  # evaluations without a lower loss

_TRAIN_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 10,
    "train_sampling_strategy": "group_by_length",
    "report_to": "none",
    "disable_tqdm": False,
}
_RANDOM_WEIGHTS = {"num_train_epochs": 10, "learning_rate": 5e-4, "per_device_train_batch_size": 32}
_OURS = {
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "prediction_loss_only": True,
    "remove_unused_columns": False,
}
_RESERVED = {"output_dir": "the run's own folder is used", "seed": "set the reward's `seed`"} | dict.fromkeys(
    _OURS, "the reward needs its own value, to keep the checkpoint of lowest loss on families that do not train"
)


class FineTuneSettings(FitSettings):
    """Settings of a `FineTunedReward`.

    Args:
        model: folder or Hub id to start from; or
        config, tokenizer: `model_type` and its settings for random weights, and the tokenizer's folder or Hub id.
        features: pair gives the model prompt and completion, completion that alone.
        max_length: tokens of prompt and completion together; longer ones are cut.
        train: fields of `transformers.TrainingArguments`.
    """

    model: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    features: Literal["pair", "completion"] = "pair"
    max_length: int = Field(default=256, ge=1)
    train: dict[str, Any] = Field(default_factory=dict)

    @field_validator("train")
    @classmethod
    def _are_training_arguments(cls, train: dict[str, Any]) -> dict[str, Any]:
        valid = [field.name for field in fields(TrainingArguments) if field.init]
        for name in train:
            if name in _RESERVED:
                raise ValueError(f"'{name}' cannot be set: {_RESERVED[name]}")
            if name not in valid:
                close = nearest(name, valid) or "; it takes the fields of transformers.TrainingArguments"
                raise ValueError(f"unknown key '{name}'{close}")
        for name, fault in faulty_numbers(train):
            raise ValueError(f"'{name}' {fault}")
        return train

    @model_validator(mode="after")
    def _one_start(self) -> "FineTuneSettings":
        if self.path is not None:
            return self
        if (self.model is None) == (self.config is None):
            raise ValueError("needs exactly one of model (to start from) and config (random weights)")
        if self.config is not None and (self.tokenizer is None or "model_type" not in self.config):
            raise ValueError("config needs `model_type`, and `tokenizer` beside it")
        return self


class FineTunedReward(RowsReward):
    """Any `AutoModelForSequenceClassification` with one output, fine-tuned by `transformers.Trainer`.

    Labels by binary cross-entropy, scores (standardised) by squared error, pairs by Bradley and Terry's loss. A tenth
    of the families to learn from chooses the checkpoint and stops the training. `FitSettings` documents where rows
    come from.
    """

    kind = "fine_tuned"
    Settings = FineTuneSettings
    settings: FineTuneSettings

    def identity(self) -> dict[str, Any]:
        if self.path is not None:
            return super().identity()
        sources = {"model": self.settings.model, "tokenizer": self.settings.tokenizer}
        return super().identity() | {name: model_identity(path) for name, path in sources.items() if path}

    def learn(self, folder: Path, examples: Examples) -> dict[str, Any]:
        torch.manual_seed(self.settings.seed)
        tokenizer, model = untrained_classifier(self.settings.model, self.settings.config, self.settings.tokenizer)
        length = min(self.settings.max_length, tokenizer.model_max_length, num_positions(model) or sys.maxsize)
        offset, scale = 0.0, 1.0
        if examples.target == "score":
            offset, scale = float(examples.scores.mean()), float(examples.scores.std())
        choosing = family_share(examples.families, _CHOOSING_SHARE, self.settings.seed, "choosing")
        join = "completion" if self.settings.features == "completion" else "pair"
        if join == "pair" and not tokenizer.num_special_tokens_to_add(pair=True):
            # As a decoder's, it puts nothing between the texts of a pair.
            join = "{prompt}\n\n{completion}"
            tokenizer.truncation_side = "left"  # as `ClassifierReward`: the end, where the completion is, stays
        settings = ClassifierSettings(model=str(folder / "model"), join=join, max_length=length)
        data = [
            _encode(tokenizer, settings, part, (part.scores - offset) / scale)
            for part in (examples.take(~choosing), examples.take(choosing))
        ]
        fields = _TRAIN_DEFAULTS | (_RANDOM_WEIGHTS if self.settings.config else {}) | _OURS | self.settings.train
        fields["use_cpu"] = trains_on_cpu(bool(fields.get("use_cpu")))
        if fields["use_cpu"]:
            fields["dataloader_pin_memory"] = False
        if hasattr(TrainingArguments, "activation_checkpointing"):  # the new name; transformers warns of the old one
            fields = {name.replace("gradient_ch", "activation_ch"): value for name, value in fields.items()}
        try:
            args = TrainingArguments(str(folder / "checkpoints"), seed=self.settings.seed, **fields)
        except (TypeError, ValueError) as error:
            raise UserError(f"transformers refuses `train`: {first_line(error)}") from error
        trainer = _trainer(model, tokenizer, data, examples.target, args)
        with shown(trainer, folder.name):
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder / "checkpoints"))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        readable_weights(folder / "model")
        remove(folder / "checkpoints", folder)
        write_json(folder / "scoring.json", {"max_length": length, "offset": offset, "scale": scale, "join": join})
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "rows_choosing": int(choosing.sum()),
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "choosing_loss": trainer.state.best_metric,
        }

    def restore(self, folder: Path) -> None:
        self._scoring = read_json(folder / "scoring.json")
        self._classifier = ClassifierReward(
            model=str(folder / "model"),
            activation="sigmoid" if self.gives_probability else "none",
            join=self._scoring["join"],
            max_length=self._scoring["max_length"],
        )

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        scores = np.array(self._classifier([prompt_text(prompt) for prompt in prompts], completions))
        return (self._scoring["offset"] + self._scoring["scale"] * scores).tolist()


def reward_loss(target: str, scores: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of scores [N] (for pairs: [2 P], all chosen before all rejected).

    label: binary cross-entropy of sigmoid(score). score: squared error. pairs: -log sigmoid(chosen - rejected)
    (Bradley and Terry, 1952), `labels` unused.
    """
    if target == "label":
        return F.binary_cross_entropy_with_logits(scores, labels)
    if target == "score":
        return F.mse_loss(scores, labels)
    chosen, rejected = scores.chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


Item = tuple[list[Encoded], float, str]  # a row with its label, or a pair of rows; and its place


class _SimilarLengths(LengthGroupedSampler):
    """Rows of similar length in a batch. Seed and epoch decide the order, so that a killed training continues it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class _RewardTrainer(FiniteTrainer):
    target: str
    lengths: list[int]  # of the training rows, in tokens
    step_rows: deque[list[str]]  # of the last micro-batches

    def rows_of_step(self, micro_batch: int | None = None) -> list[str]:
        return [row for rows in self.step_rows for row in rows] if micro_batch is None else self.step_rows[micro_batch]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":  # transformers' own knows rows of one text alone
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _SimilarLengths(rows, self.lengths, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics["eval_loss"]):
            self._stop(f"the loss of held-out rows is {metrics['eval_loss']}")
        return metrics

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, rows = inputs.pop("labels"), inputs.pop("rows")
        if model.training:
            self.step_rows.append(rows)
        loss = reward_loss(self.target, model(**inputs).logits[:, 0].float(), labels)
        return (loss, {}) if return_outputs else loss


def _trainer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: list[list[Item]], target: str, args: TrainingArguments
) -> _RewardTrainer:
    def collate(items: list[Item]) -> dict[str, Any]:
        rows, labels, places = zip(*items, strict=True)
        texts = [text for side in zip(*rows, strict=True) for text in side]
        return dict(tokenizer.pad(texts, return_tensors="pt")) | {"labels": torch.tensor(labels), "rows": list(places)}

    metrics = MetricsFile(Path(str(args.output_dir)).parent / "metrics.jsonl")
    callbacks = [metrics, EarlyStoppingCallback(early_stopping_patience=_PATIENCE)]
    train, choosing = data[0], sorted(data[1], key=_length)
    trainer = _RewardTrainer(model, args, collate, train_dataset=train, eval_dataset=choosing, callbacks=callbacks)
    trainer.target, trainer.lengths = target, [_length(item) for item in train]
    trainer.step_rows = deque(maxlen=args.gradient_accumulation_steps)
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _length(item: Item) -> int:
    return max(len(text["input_ids"]) for text in item[0])


def _encode(
    tokenizer: PreTrainedTokenizerBase, settings: ClassifierSettings, examples: Examples, labels: np.ndarray
) -> list[Item]:
    """Token ids, as `ClassifierReward` makes them, and labels."""
    rows = [settings.texts(prompt_text(p), c) for p, c in zip(examples.prompts, examples.completions, strict=True)]
    sides = [list(side) for side in zip(*rows, strict=True)]
    if settings.join == "pair":
        texts = tokenize(tokenizer, *sides, truncation=True, max_length=settings.max_length)
    else:
        texts = framed(tokenizer, sides[0], settings.max_length)
    if examples.target == "pairs":
        return [([texts[a], texts[b]], 0.0, examples.where[a]) for a, b in examples.pairs]
    return [([text], label, place) for text, label, place in zip(texts, labels.tolist(), examples.where, strict=True)]
