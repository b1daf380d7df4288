"""A sequence classifier that is fine-tuned on rows, as a reward."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedTokenizerBase, TrainingArguments

from leftover.errors import UserError, first_line, nearest
from leftover.models.reference import model_identity
from leftover.monitoring.training_display import shown
from leftover.recipe.optional_packages import trains_on_cpu
from leftover.recipe.policy_config import faulty_numbers
from leftover.rewards.base import Prompt
from leftover.rewards.classifier import ClassifierReward
from leftover.rewards.encoding import encode_rows
from leftover.rewards.examples import Examples, family_share
from leftover.rewards.features import prompt_text
from leftover.rewards.fitted import FitSettings, RowsReward
from leftover.rewards.joins import ClassifierSettings
from leftover.rewards.pretrained import num_positions, untrained_classifier
from leftover.rewards.reward_trainer import Item, RewardTrainer
from leftover.store.checkpoints import last_whole_checkpoint
from leftover.store.files import read_json, write_json
from leftover.store.folders import readable_weights, remove

_CHOOSING_SHARE = 0.1  # of the families to learn from: their loss chooses the checkpoint

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


class Plan(NamedTuple):
    """A fine-tuning, before it begins."""

    train: list[Item]
    choosing: list[Item]  # their loss chooses the checkpoint
    rows_choosing: int  # rows; items may be pairs of them
    args: TrainingArguments
    scoring: dict[str, Any]  # what scoring needs beside the model


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
        tokenizer, model = self.start()
        plan = self.plan(folder, examples, tokenizer, model)
        trainer = RewardTrainer(model, tokenizer, plan.train, plan.choosing, examples.target, plan.args)
        with shown(trainer, folder.name):
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder / "checkpoints"))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        readable_weights(folder / "model")
        remove(folder / "checkpoints", folder)
        write_json(folder / "scoring.json", plan.scoring)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "rows_choosing": plan.rows_choosing,
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "choosing_loss": trainer.state.best_metric,
        }

    def start(self, weights: bool = True) -> tuple[Any, Any]:
        """The tokenizer and the model that is trained; without weights, the model is on the meta device."""
        settings = self.settings
        return untrained_classifier(settings.model, settings.config, settings.tokenizer, weights)

    def plan(self, folder: Path, examples: Examples, tokenizer: PreTrainedTokenizerBase, model: Any) -> Plan:
        """What `learn` trains on, and how."""
        length = min(self.settings.max_length, tokenizer.model_max_length, num_positions(model) or sys.maxsize)
        offset, scale = 0.0, 1.0
        if examples.target == "score":
            offset, scale = float(examples.scores.mean()), float(examples.scores.std())
        choosing = family_share(examples.families, _CHOOSING_SHARE, self.settings.seed, "choosing")
        join = "completion" if self.settings.features == "completion" else "pair"
        if join == "pair" and not tokenizer.num_special_tokens_to_add(pair=True):
            # As a decoder's, it puts nothing between the texts of a pair.
            join = "{prompt}\n\n{completion}"
        settings = ClassifierSettings(model=str(folder / "model"), join=join, max_length=length)
        tokenizer.truncation_side = str(settings.truncation_side)
        train, choosing_rows = (
            _encode(tokenizer, settings, part, (part.scores - offset) / scale)
            for part in (examples.take(~choosing), examples.take(choosing))
        )
        scoring = {"max_length": length, "offset": offset, "scale": scale, "join": join}
        return Plan(train, choosing_rows, int(choosing.sum()), self._arguments(folder), scoring)

    def _arguments(self, folder: Path) -> TrainingArguments:
        fields = _TRAIN_DEFAULTS | (_RANDOM_WEIGHTS if self.settings.config else {}) | _OURS | self.settings.train
        fields["use_cpu"] = trains_on_cpu(bool(fields.get("use_cpu")))
        if fields["use_cpu"]:
            fields["dataloader_pin_memory"] = False
        if hasattr(TrainingArguments, "activation_checkpointing"):  # the new name; transformers warns of the old one
            fields = {name.replace("gradient_ch", "activation_ch"): value for name, value in fields.items()}
        try:
            return TrainingArguments(str(folder / "checkpoints"), seed=self.settings.seed, **fields)
        except (TypeError, ValueError) as error:
            raise UserError(f"transformers refuses `train`: {first_line(error)}") from error

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


def _encode(
    tokenizer: PreTrainedTokenizerBase, settings: ClassifierSettings, examples: Examples, labels: np.ndarray
) -> list[Item]:
    """What the model will read when it scores, and labels."""
    prompts = [prompt_text(prompt) for prompt in examples.prompts]
    texts = encode_rows(settings, tokenizer, settings.max_length, prompts, examples.completions)
    if examples.target == "pairs":
        return [([texts[a], texts[b]], 0.0, examples.where[a]) for a, b in examples.pairs]
    return [([text], label, place) for text, label, place in zip(texts, labels.tolist(), examples.where, strict=True)]
