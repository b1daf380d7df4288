"""Training of a fine-tuned reward: its losses, and batches of rows of similar length."""

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from leftover.monitoring.callbacks import MetricsFile
from leftover.monitoring.finite_training import FiniteTrainer
from leftover.rewards.classifier import Encoded

_PATIENCE = 2  # evaluations without a lower loss

Item = tuple[list[Encoded], float, str]  # a row with its label, or a pair of rows; and its place


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


class SimilarLengths(LengthGroupedSampler):
    """Rows of similar length in a batch. Seed and epoch decide the order, so that a killed training continues it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class RewardTrainer(FiniteTrainer):
    """Trains a classifier of one output on `train`; its loss on `choosing` chooses the checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        train: list[Item],
        choosing: list[Item],
        target: str,
        args: TrainingArguments,
    ):
        def collate(items: list[Item]) -> dict[str, Any]:
            rows, labels, places = zip(*items, strict=True)
            texts = [text for side in zip(*rows, strict=True) for text in side]
            padded = dict(tokenizer.pad(texts, return_tensors="pt"))
            return padded | {"labels": torch.tensor(labels), "rows": list(places)}

        metrics = MetricsFile(Path(str(args.output_dir)).parent / "metrics.jsonl")
        callbacks = [metrics, EarlyStoppingCallback(early_stopping_patience=_PATIENCE)]
        by_length = sorted(choosing, key=_length)
        super().__init__(model, args, collate, train_dataset=train, eval_dataset=by_length, callbacks=callbacks)
        self.target, self.lengths = target, [_length(item) for item in train]
        self.step_rows: deque[list[str]] = deque(maxlen=args.gradient_accumulation_steps)  # of the last micro-batches
        self.model_accepts_loss_kwargs = False

    def rows_of_step(self, micro_batch: int | None = None) -> list[str]:
        return [row for rows in self.step_rows for row in rows] if micro_batch is None else self.step_rows[micro_batch]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":  # transformers' own knows rows of one text alone
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SimilarLengths(rows, self.lengths, self.args.seed)

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


def _length(item: Item) -> int:
    return max(len(text["input_ids"]) for text in item[0])
