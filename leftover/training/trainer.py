"""`LoLTrainer`: transformers' Trainer with our loss, our order of the data and our evaluation."""

import logging
import math
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import TrainOutput

from leftover.metrics import FEW_ROWS, effective_sample_size
from leftover.models.divergence import FrozenStart
from leftover.models.logprobs import completion_logprobs
from leftover.monitoring.room import OutOfMemory, halve, room_for
from leftover.objectives import CompletionBatch, Objective
from leftover.objectives.advantage import beyond_rounding
from leftover.objectives.requirements import check_columns
from leftover.prepare.evaluation_rows import EvaluationRows, prepare_evaluations
from leftover.prepare.in_memory import prepare_rows
from leftover.prepare.own_rows import Rows
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.training.draws import Batches, DrawOrder
from leftover.training.extras import PROVIDERS, TrainsAlong, row_columns
from leftover.training.metrics import CLIPPED, initial_logratio, training_metrics
from leftover.training.policy_trainer import row_name
from leftover.training.selection import run_order, selection, total_weights, training_columns

__all__ = ["LoLConfig", "LoLTrainer"]

log = logging.getLogger(__name__)


# What the layers keep of a token for the backward pass, in numbers of the hidden size; what all may hold, in bytes.
_KEPT, _PART_BYTES = 16, 3 * 2**28
_TRAINING = "training"


def part_size(args: LoLConfig, rows: int, tokens: int, layers: int, hidden: int) -> int:
    """How many rows of a batch, each of `tokens`, pass through the model at once: all, or equal parts of them.

    A CPU gains nothing from large batches: there a pass holds about 0.8 GB for its gradient at most. On a GPU a batch
    has parts once there was no room for it. Groups are not parted, and the released code divides by the micro-batch.
    """
    if not can_be_parted(args):
        return rows
    most = room_for(_TRAINING, rows * tokens) // tokens
    if args.use_cpu and not args.gradient_checkpointing:
        most = min(most, _PART_BYTES // (4 * _KEPT * layers * hidden * tokens))
    return math.ceil(rows / math.ceil(rows / max(1, most)))


def can_be_parted(args: LoLConfig) -> bool:
    """Whether the rows of a batch may pass through the model in parts, whose gradients add up to its own."""
    return objective_of(args).unit != "group" and not args.released_code


class LoLTrainer(TrainsAlong):
    """Trains a policy from scored rows by any objective of `OBJECTIVES`.

    Args:
        model: a causal language model or an encoder-decoder, or a path or Hub id. It is the reference, and becomes the
            policy.
        train_dataset: rows with `prompt`, `completion` and `reward`, in any form that a recipe takes (docs/data.md): a
            `datasets.Dataset`, dictionaries in any iterable, a data frame, or a data file's path. Columns that the
            objective needs are prepared here, by the functions that `leftover prepare` uses. Prompts may be lists of
            messages, with the row's `tools` and `chat_template_kwargs` beside them. Rows may be tokens already:
            `prompt_ids` and `completion_ids`, or `input_ids` and `labels`; with any of the constants beside them
            (`reference_logprobs`, `value`, ...) they are taken as prepared.
        eval_dataset: such rows, or prompts alone, or a dictionary of several data sets: `evaluate` generates for their
            prompts if there are `reward_funcs`, and measures their completions, scores and pairs.
        reward_funcs: one or several callables `(prompts, completions) -> floats`; several are summed. They score rows
            without a `reward`, the reference's own samples for the value, and completions in `evaluate`.
        peft_config: trains a new adapter on `model` in place of all its weights.
    """

    config, default_folder = LoLConfig, "leftover-run"
    args: LoLConfig
    objective: Objective
    draw_order: DrawOrder | None = None  # the batches of the whole run, the same on every process
    # Under a token budget, and of whole groups: completions or groups of an optimizer step, the mean over the run.
    expected_units: float | None = None

    def _prepare(
        self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, train: Rows | None, evaluation: EvaluationRows
    ) -> tuple[Dataset | None, Any]:
        self.objective, self.settings = objective_of(self.args), objective_settings(self.args)
        self.providers, self.step_batches = {}, []
        evaluation = prepare_evaluations(policy, tokenizer, self.args, evaluation)
        self._check_best_metric(evaluation)
        rows = prepare_rows(policy, tokenizer, self.args, train, self.reward_func, self.run_metrics)
        return rows, evaluation

    def _begin(self) -> None:
        samples = self.reward_func is not None and self.args.eval_decoding == "sample" and self.eval_dataset is not None
        if samples and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # whose weights are sharded
            self.reference = FrozenStart(self.model, offload=not hasattr(self.model, "peft_config"))
        if self.train_dataset is None:
            return
        columns = training_columns(self.train_dataset)
        selected, weights, self.selection_facts = selection(self.args, columns)
        self.num_selected = int(selected.sum())
        self.effective_sample_size = effective_sample_size(total_weights(self.args, columns, weights))
        if self.effective_sample_size < FEW_ROWS * self.num_selected:
            log.warning(
                "%s: few rows carry the run (effective sample size %.0f of %d)",
                self.args.objective, self.effective_sample_size, self.num_selected,
            )  # fmt: skip
        self.draw_order, self.args.max_steps = run_order(self.args, columns, selected, weights)
        if self.args.max_tokens_per_batch or (self.args.whole_groups and self.objective.unit == "completion"):
            by_group = columns["group"] if self.objective.unit == "group" else None
            batches = self.args.gradient_accumulation_steps * self.args.world_size
            self.expected_units = self.draw_order.units_per_batch(by_group) * batches
        self.trained_tokens = int(columns["length"][self.draw_order.indices].sum())
        needs = self.objective.needs(self.settings)
        who = f"the objective '{self.args.objective}'"
        check_columns(who, needs, row_columns(needs), self.train_dataset.column_names)
        used = sorted((needs | self.objective.optional) & PROVIDERS.keys())
        self.providers = {name: PROVIDERS[name](self) for name in used}

    def rows_of_step(self, micro_batch: int | None = None) -> list[str]:
        order, args = self.draw_order, self.args
        if order is None:
            return []
        per_step = args.gradient_accumulation_steps * args.world_size
        first = self.state.global_step * per_step
        batches = range(first, min(first + per_step, order.num_batches))
        if micro_batch is not None:  # every process takes one of so many batches in turn
            batches = batches[micro_batch * args.world_size + args.process_index :][:1]
        return [row_name(self.train_dataset, int(i)) for batch in batches for i in order.batch(batch)]

    def facts(self) -> dict[str, float]:
        """Tokens of the rows of the whole run, without padding, what the selection dropped, weights clipped."""
        clipped = [entry[CLIPPED] for entry in self.state.log_history if CLIPPED in entry][-1:]
        last = {"clipped_weights": clipped[0]} if clipped else {}
        return {"trained_tokens": self.trained_tokens, **self.selection_facts, **last}

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; at its end the batches of the last step are freed."""
        result = super().train(*args, **kwargs)
        self.step_batches = []
        return result

    def get_train_dataloader(self) -> DataLoader:
        """The draw order as a data loader: one pass is the whole run."""
        order = self.draw_order
        assert order is not None, "LoLTrainer needs a train_dataset to train"
        self.accelerator.even_batches = False  # its padding would repeat rows; the order is even already
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=Batches(order),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(0),  # the global one stays untouched, also on resume
        )
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Units (completions or groups) of the whole optimizer step, over micro-batches and processes.

        A token budget puts many short rows into a step or a few long ones, and whole groups differ in size. The mean
        over each step would weigh a row by that, so that the divisor is the number that a step has on average: every
        draw weighs the same.
        """
        self.step_batches = batch_samples
        if self.expected_units is not None:
            return torch.tensor(self.expected_units, device=device)
        by_group = self.objective.unit == "group"
        units = sum(len(b["group"].unique()) if by_group else len(b["group"]) for b in batch_samples)
        return self.accelerator.gather(torch.tensor(units, device=device)).sum()

    @property
    def retries_smaller(self) -> bool:  # type: ignore[override]
        return can_be_parted(self.args) and self.args.world_size == 1  # several could not begin a step again together

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """`Trainer.training_step`; after out of memory the step begins again, with batches in smaller parts."""
        batches = [*self.step_batches[: len(self._step_losses)], inputs]
        todo = [inputs]
        while True:
            try:
                for batch in todo:
                    loss = super().training_step(model, batch, num_items_in_batch)
                return loss
            except OutOfMemory:  # its traceback holds what did not fit
                if not self.retries_smaller:
                    raise
            # The step so far is forgotten: its gradients may be partly those of a batch that did not fit.
            failed = batches[len(self._step_losses)]
            self.forget_step()
            halve(_TRAINING, self._part_size(failed), self._longest(failed))
            self._step_losses, todo = [], batches

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the objective's losses over the units of the whole optimizer step."""
        parted = self.model.training and num_items_in_batch is not None and not return_outputs
        *first, last = self._parts(inputs) if parted else [inputs]
        done = torch.zeros((), device=self.args.device)
        for part in first:  # its gradient is added here, and what its pass held is freed
            loss = self._loss(model, part, False, num_items_in_batch)
            self.accelerator.backward(loss)
            done += loss.detach()
        found = self._loss(model, last, return_outputs, num_items_in_batch)
        return found + done if first else found

    def _parts(self, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """A batch in the parts of `part_size`, whose gradients add up to its own."""
        rows, size = len(inputs["group"]), self._part_size(inputs)
        return [{k: v[i : i + size] for k, v in inputs.items()} for i in range(0, rows, size)]

    def _part_size(self, inputs: dict[str, Tensor]) -> int:
        config, rows = self.accelerator.unwrap_model(self.model).config.get_text_config(), len(inputs["group"])
        return part_size(self.args, rows, self._longest(inputs), config.num_hidden_layers, config.hidden_size)

    def _longest(self, inputs: dict[str, Tensor]) -> int:
        return int((inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)).max())

    def _loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        batch = self.completion_batch(completion_logprobs(model, inputs, overwrite_logits=True), inputs)
        batch = self.with_extras(model, inputs, batch)
        losses = self.objective.loss(batch, self.settings)
        if self.state.global_step == 0 and self.model.training:
            self.sums.add(initial_logratio(batch, self.args, self.model))
        self.sums.add(training_metrics(self.objective, self.settings, batch, inputs))
        if num_items_in_batch is None or self.args.released_code:  # which adds up the means of the micro-batches
            num_items_in_batch = len(losses)
        # Gradients are averaged over processes, and the divisor already counts them all.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    def completion_batch(self, logprobs: Tensor, inputs: dict[str, Tensor]) -> CompletionBatch:
        """What the objective sees of a collated batch."""
        batch = CompletionBatch(
            logprobs=logprobs,
            mask=inputs["completion_mask"].bool(),
            reference_logprobs=inputs["reference_logprobs"],
            reward=inputs["reward"],
            value=inputs["value"],
            advantage=beyond_rounding(inputs["advantage"], inputs["reward"]),
            group=inputs["group"],
            reward_low=inputs.get("reward_low"),
        )
        if self.args.draw == "priority_unweighted" and self.objective.draw_by is not None:
            ones: dict[str, Any] = {self.objective.draw_by: torch.ones_like(batch.advantage)}
            batch = batch._replace(**ones)
        return batch
