"""`LoLTrainer`: transformers' Trainer with our loss, our order of the data and our evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leftover.data.collate import Collator
from leftover.data.raw import chat_of
from leftover.errors import UserError
from leftover.metrics import effective_sample_size
from leftover.models.divergence import FrozenStart
from leftover.models.load import align_generation_config, disable_dropout
from leftover.models.logprobs import completion_logprobs
from leftover.objectives import CompletionBatch, Objective
from leftover.objectives.requirements import check_columns
from leftover.prepare.in_memory import load_for_training, prepare_rows, summed
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.training.batch_extras import Extras, TrainsAlong, row_columns
from leftover.training.draws import DrawOrder
from leftover.training.metrics import MetricSums, initial_logratio, training_metrics
from leftover.training.policy_trainer import PolicyTrainer
from leftover.training.selection import run_order, selection, training_columns

__all__ = ["LoLConfig", "LoLTrainer"]


class LoLTrainer(TrainsAlong, PolicyTrainer):
    """Trains a policy from scored rows by any objective of `OBJECTIVES`.

    Args:
        model: a causal language model, or a path or Hub id. It is the reference, and becomes the policy.
        train_dataset: a `datasets.Dataset` (or list) of rows with `prompt`, `completion` and `reward`; the columns
            that the objective needs beyond these are prepared here, by the functions that `leftover prepare` uses.
            Prompts may be lists of messages, with `tools` and `chat_template_kwargs` of the row beside them, or rows
            be whole conversations in `messages`, whose last is the completion. Rows that have `prompt_ids` already
            are taken as prepared.
        eval_dataset: rows with `prompt` (and `completion`, `reward`): `evaluate` generates for their prompts.
        reward_funcs: one or several callables `(prompts, completions) -> floats`; several are summed. They score rows
            without a `reward`, the reference's own samples for the value, and completions in `evaluate`.
        peft_config: trains a new adapter on `model` in place of all its weights.
    """

    args: LoLConfig
    model: Any
    train_dataset: Any
    objective: Objective

    def __init__(
        self,
        model: nn.Module | str,
        args: LoLConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        args = args or LoLConfig(output_dir="leftover-run")
        policy, processing_class = load_for_training(model, processing_class, peft_config)
        align_generation_config(policy, processing_class, chat_of(processing_class, args).ends)
        self.reward_func = summed(reward_funcs)
        # Facts of the whole run that every log line repeats, such as the value's held-out R2.
        self.run_metrics: dict[str, float] = {}
        self.objective, self.settings = objective_of(args), objective_settings(args)
        train_dataset, eval_dataset = prepare_rows(
            policy, processing_class, args, train_dataset, eval_dataset, self.reward_func, self.run_metrics
        )
        self.sums = MetricSums()
        self.step_batches: list[dict[str, Tensor]] = []  # of the optimizer step in progress, on this process
        if args.disable_dropout:
            disable_dropout(policy)
        collator = kwargs.pop("data_collator", None) or Collator(processing_class.pad_token_id)
        super().__init__(
            model=policy,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        # compute_loss divides by the units of the whole optimizer step, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        if args.n_gpu > 1:
            raise UserError("several GPUs in one process (DataParallel) are not supported: start with torchrun")
        self.reference = self._start()
        self.draw_order = self._draw_order() if train_dataset is not None else None
        needs = self.objective.needs(self.settings)
        if train_dataset is not None:
            check_columns(args.objective, needs, row_columns(needs), train_dataset.column_names)
        self.extras = Extras(self, needs | self.objective.optional if train_dataset is not None else ())

    def _start(self) -> FrozenStart | None:
        """The weights as they are now, where evaluation measures how far from them the policy has come.

        Sharded weights are not here to be put away (FSDP, DeepSpeed).
        """
        samples = self.reward_func is not None and self.args.eval_decoding == "sample" and self.eval_dataset is not None
        if not samples or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return FrozenStart(self.model, offload=not hasattr(self.model, "peft_config"))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; the batches of its last step are let go."""
        result = super().train(*args, **kwargs)
        self.step_batches = []
        return result

    def _draw_order(self) -> DrawOrder:
        """The batches of the whole run, the same on every process."""
        columns = training_columns(self.train_dataset)
        selected, weights, self.selection_facts = selection(self.args, columns)
        self.num_selected, self.effective_sample_size = int(selected.sum()), effective_sample_size(weights)
        order, self.args.max_steps = run_order(self.args, columns, selected, weights)
        return order

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The draw order as a data loader: one pass of it is the whole run."""
        order = self.draw_order
        assert order is not None, "LoLTrainer needs a train_dataset to train"
        self.accelerator.even_batches = False  # its padding would repeat rows; the order is even already
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=[order.batch(i).tolist() for i in range(order.num_batches)],
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(0),  # the global one stays untouched, also on resume
        )
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Units (completions or groups) of the whole optimizer step, over micro-batches and processes."""
        self.step_batches = batch_samples
        by_group = self.objective.unit == "group"
        units = sum(len(b["group"].unique()) if by_group else len(b["group"]) for b in batch_samples)
        return self.accelerator.gather(torch.tensor(units, device=device)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the objective's losses over the units of the whole optimizer step."""
        batch = self.completion_batch(completion_logprobs(model, inputs, overwrite_logits=True), inputs)
        batch = self.extras(model, inputs, batch)
        losses = self.objective.loss(batch, self.settings)
        if self.state.global_step == 0 and self.model.training:
            self.sums.add(initial_logratio(batch, self.args, self.model))
        self.sums.add(training_metrics(self.objective, self.settings, batch, inputs))
        num_units = num_items_in_batch
        if num_units is None or self.args.released_code:  # which adds up the means of the micro-batches
            num_units = len(losses)
        # Gradients are averaged over processes, and the divisor already counts them all.
        loss = losses.sum() / num_units * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    def completion_batch(self, logprobs: Tensor, inputs: dict[str, Tensor]) -> CompletionBatch:
        """What the objective sees of a collated batch."""
        batch = CompletionBatch(
            logprobs=logprobs,
            mask=inputs["completion_mask"].bool(),
            reference_logprobs=inputs["reference_logprobs"],
            reward=inputs["reward"],
            value=inputs["value"],
            advantage=inputs["advantage"],
            group=inputs["group"],
        )
        if self.args.draw == "priority_unweighted" and self.objective.draw_by is not None:
            ones: dict[str, Any] = {self.objective.draw_by: torch.ones_like(batch.advantage)}
            batch = batch._replace(**ones)
        return batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.sums.pop(self.accelerator), **self.run_metrics}
        super().log(logs, start_time)
