"""`LoLTrainer`: transformers' Trainer with our loss, our order of the data and our evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from leftover.data.collate import Collator
from leftover.draws import DrawOrder, draw_batches, effective_sample_size
from leftover.errors import UserError, nearest
from leftover.logprobs import completion_logprobs
from leftover.models import align_generation_config, disable_dropout
from leftover.objectives import OBJECTIVES, CompletionBatch
from leftover.selection import check_requirements, draw_weights, select_rows
from leftover.trainer_metrics import MetricSums, evaluate_policy, training_metrics


@dataclass
class LoLConfig(TrainingArguments):
    """Settings of a run: those of `TrainingArguments`, and these.

    Without `max_steps` a run takes `num_train_epochs` passes over the rows that it SELECTS, so that a leftover
    share of 67 % trains 33 % fewer steps than all rows would (A-LoL, section 4).
    """

    objective: str = field(default="a_lol_seq", metadata={"help": f"One of {', '.join(OBJECTIVES)}."})
    objective_settings: dict = field(default_factory=dict, metadata={"help": "clip, beta, floor, kl_estimator."})
    rows: str = field(default="auto", metadata={"help": "auto, all, leftover, or top (see top_percent)."})
    top_percent: float = field(default=25.0, metadata={"help": "With rows=top: the share of highest reward, in %."})
    draw: str = field(
        default="auto",
        metadata={"help": "auto, priority (with replacement), priority_unweighted (drops the factor), uniform."},
    )
    whole_groups: bool = field(default=False, metadata={"help": "Draw all rows of a prompt together."})
    length_bucketing: bool = field(default=True, metadata={"help": "Rows of like length share a batch."})
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Padded tokens a batch, in place of per_device_train_batch_size rows."}
    )
    max_prompt_length: int = field(default=512, metadata={"help": "Tokens; longer prompts are cut on the left."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens, end of sequence included."})
    disable_dropout: bool = field(default=True, metadata={"help": "So that importance weights are 1 at step 0."})
    max_initial_logratio: float | None = field(
        default=None,
        metadata={"help": "Stop where policy and reference differ by more a token at step 0 (None: by dtype)."},
    )
    value_targets: str = field(default="auto", metadata={"help": "For raw rows: recorded, reference_samples, ..."})
    value_samples_per_prompt: int = field(default=1, metadata={"help": "With reference_samples."})
    eval_decoding: str = field(default="greedy", metadata={"help": "greedy or sample, for evaluate()."})
    # Defaults of TrainingArguments that differ here.
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "constant"
    report_to: Any = "none"
    remove_unused_columns: bool = False
    logging_steps: float = 10

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UserError(
                f"unknown objective '{self.objective}'{nearest(self.objective, list(OBJECTIVES))}; "
                f"objectives: {', '.join(OBJECTIVES)}"
            )
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise UserError(f"{name}: '{getattr(self, name)}' is not one of {', '.join(valid)}")
        super().__post_init__()

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the reference pass must share."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None


_CHOICES = {
    "rows": ("auto", "all", "leftover", "top"),
    "draw": ("auto", "priority", "priority_unweighted", "uniform"),
    "eval_decoding": ("greedy", "sample"),
    "value_targets": ("auto", "recorded", "reference_samples", "group_loo"),
}


class LoLTrainer(Trainer):
    """Trains a policy from scored rows by any objective of `OBJECTIVES`.

    Args:
        model: a causal language model, or a path or Hub id. It is the reference, and becomes the policy.
        train_dataset: a `datasets.Dataset` (or list) of rows with `prompt`, `completion` and `reward`; the columns
            that the objective needs beyond these are prepared here, by the functions that `leftover prepare` uses.
            Rows that have `prompt_ids` already are taken as prepared.
        eval_dataset: rows with `prompt` (and `completion`, `reward`): `evaluate` generates for their prompts.
        reward_funcs: one or several callables `(prompts, completions) -> floats`; several are summed.
        peft_config: trains a new adapter on `model` in place of all its weights.
    """

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
        from leftover.standalone import load_for_training, prepare_rows, summed

        args = args or LoLConfig(output_dir="leftover-run")
        model, processing_class = load_for_training(model, processing_class, peft_config)
        self.reward_func = summed(reward_funcs)
        train_dataset, eval_dataset = prepare_rows(
            model, processing_class, args, train_dataset, eval_dataset, self.reward_func
        )
        self.objective = OBJECTIVES[args.objective]
        self.settings = _objective_settings(args)
        self.sums = MetricSums()
        if args.disable_dropout:
            disable_dropout(model)
        align_generation_config(model, processing_class)
        collator = kwargs.pop("data_collator", None) or Collator(processing_class.pad_token_id)
        super().__init__(
            model=model,
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
        self.draw_order = self._draw_order() if train_dataset is not None else None

    def _draw_order(self) -> DrawOrder:
        """The batches of the whole run, on all processes alike."""
        args, dataset = self.args, self.train_dataset
        names = [n for n in ("reward", "value", "advantage", "group") if n in dataset.column_names]
        columns = {n: np.asarray(dataset.with_format("numpy")[n][:]) for n in names}
        columns["length"] = np.array(row_lengths(dataset))
        check_requirements(args.objective, self.objective, columns)
        selected = select_rows(self.objective, columns, args.rows, args.top_percent)
        priority = args.draw.startswith("priority") or (args.draw == "auto" and self.objective.draw_by is not None)
        weights = draw_weights(self.objective, columns, selected, "priority" if priority else "uniform")
        self.num_selected, self.effective_sample_size = int(selected.sum()), effective_sample_size(weights)
        per_step = args.gradient_accumulation_steps * args.world_size
        options: dict[str, Any] = {
            "lengths": columns["length"] if args.length_bucketing or args.max_tokens_per_batch else None,
            "groups": columns["group"] if args.whole_groups or self.objective.unit == "group" else None,
            "batch_size": None if args.max_tokens_per_batch else args.per_device_train_batch_size,
            "max_tokens": args.max_tokens_per_batch,
            "replacement": priority,
            "seed": args.data_seed if args.data_seed is not None else args.seed,
        }
        if args.max_steps <= 0:
            order = draw_batches(weights, int(np.ceil(args.num_train_epochs * selected.sum())), **options)
            num_batches = max(order.num_batches // args.world_size, 1) * args.world_size
            args.max_steps = -(-num_batches // per_step)
        else:
            num_batches = args.max_steps * per_step
            num_units = num_batches * args.per_device_train_batch_size
            order = draw_batches(weights, num_units, **options)
            while order.num_batches < num_batches:  # a token budget may fill a batch with more rows
                num_units *= 2
                order = draw_batches(weights, num_units, **options)
        return DrawOrder(order.indices[: order.offsets[num_batches]], order.offsets[: num_batches + 1])

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
        by_group = self.objective.unit == "group"
        units = sum(len(b["group"].unique()) if by_group else len(b["group"]) for b in batch_samples)
        return self.accelerator.gather(torch.tensor(units, device=device)).sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Sum of the objective's losses over the units of the whole optimizer step."""
        batch = self.completion_batch(completion_logprobs(model, inputs), inputs)
        losses = self.objective.loss(batch, self.settings)
        if self.state.global_step == 0 and self.model.training:
            self._check_initial_logratio(batch)
        self.sums.add(training_metrics(self.objective, self.settings, batch, inputs))
        num_units = len(losses) if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, and the divisor already counts them all.
        loss = losses.sum() / num_units * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    def completion_batch(self, logprobs: Tensor, inputs: dict[str, Tensor]) -> CompletionBatch:
        """What the objective sees of a collated batch."""
        batch = CompletionBatch(
            logprobs=logprobs,
            mask=inputs["completion_mask"].bool(),
            **{name: inputs[name] for name in ("reference_logprobs", "reward", "value", "advantage", "group")},
        )
        if self.args.draw == "priority_unweighted" and self.objective.draw_by is not None:
            batch = batch._replace(**{self.objective.draw_by: torch.ones_like(batch.advantage)})
        return batch

    def _check_initial_logratio(self, batch: CompletionBatch) -> None:
        difference = (batch.logprobs.detach() - batch.reference_logprobs).abs()[batch.mask].max().item()
        if np.isnan(difference):
            return  # no reference log-probabilities: the objective does not use them
        self.sums.add({"logratio/initial_max": (torch.tensor(difference), 1)})
        limit = self.args.max_initial_logratio
        if limit is None:
            full_precision = self.args.compute_dtype is None and self.model.dtype == torch.float32
            limit = 1e-3 if full_precision else 0.5
        if difference > limit:
            raise UserError(
                f"at step 0 policy and reference differ by {difference:.3g} in a token's log-probability (limit "
                f"{limit:g}): the reference log-probabilities are not this model's, or were computed in another "
                "dtype; prepare them again, or set max_initial_logratio"
            )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generate for the evaluation prompts and score; also the rows' own likelihood and log-ratio."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = evaluate_policy(self.model, self.processing_class, dataset, self.args, self.reward_func)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.sums.pop(self.accelerator)}
        super().log(logs, start_time)


def row_lengths(dataset: Any) -> list[int]:
    """Tokens a row, prompt and completion."""
    import pyarrow.compute as pc

    data = dataset.with_format("arrow")[:] if not isinstance(dataset, list) else None
    assert data is not None
    lengths = pc.add(pc.list_value_length(data["prompt_ids"]), pc.list_value_length(data["completion_ids"]))
    return lengths.to_pylist()


def _objective_settings(args: LoLConfig) -> Any:
    settings = OBJECTIVES[args.objective].settings
    valid = list(settings.__dataclass_fields__)
    for name in args.objective_settings:
        if name not in valid:
            raise UserError(
                f"objective '{args.objective}' has no setting '{name}'{nearest(name, valid)}; "
                f"its settings: {', '.join(valid) or 'none'}"
            )
    return settings(**args.objective_settings)
