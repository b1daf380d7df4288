"""What LoLTrainer and PPOTrainer share: how they are made, what they log, evaluation, checkpoints, the model card."""

import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from leftover.data.collate import Collator
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import PYTHON, UserError, nearest
from leftover.evaluation.policy import evaluate_policy, metric_names
from leftover.models.divergence import FrozenStart
from leftover.models.load import (
    add_adapter,
    align_generation_config,
    disable_dropout,
    is_adapter,
    is_encoder_decoder,
    load_model,
)
from leftover.models.probe import check_causal, check_trainable
from leftover.models.vocabulary import check_prepared, check_vocabulary, embedding_rows
from leftover.monitoring.finite_training import FiniteTrainer
from leftover.monitoring.memory import give_back
from leftover.monitoring.trackers import add_completion_tables
from leftover.prepare.evaluation_rows import EvaluationRows, prepare_evaluation
from leftover.prepare.in_memory import chat_of
from leftover.prepare.own_rows import Rows
from leftover.recipe.eval_metrics import DEFAULTS, higher_is_better, produced_metric
from leftover.recipe.policy_config import PolicyConfig
from leftover.rewards.python import summed
from leftover.store.folders import readable_weights
from leftover.training.metrics import MetricSums

log = logging.getLogger(__name__)


def row_name(rows: Any, i: int) -> str:
    """Where row `i` of the training rows comes from, for messages."""
    return rows[i].get("where") or f"train_dataset[{i}]"


class PolicyTrainer(FiniteTrainer):
    """A Trainer whose model as it is given is the reference, and whose `evaluate` generates and scores.

    Callbacks get the completions of an evaluation as `completions` of `on_evaluate`: a list of `Completion`, empty
    where none were generated.
    """

    config: ClassVar[type[PolicyConfig]]
    default_folder: ClassVar[str]  # `output_dir` if no `args` are given

    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    reference: FrozenStart | None = None  # from which evaluation measures the policy's divergence

    def __init__(
        self,
        model: nn.Module | str,
        args: Any = None,
        train_dataset: Rows | None = None,
        eval_dataset: EvaluationRows = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self._check_arguments(kwargs)
        self.args = args or self.config(output_dir=self.default_folder)
        if eval_dataset is None and self.args.eval_strategy != "no":
            raise UserError(f"eval_strategy is {self.args.eval_strategy.value}: pass eval_dataset, or set it to no")
        self.reward_func = summed(reward_funcs)
        self.sums = MetricSums()
        # Facts of the whole run that every log line repeats, such as the value's held-out R2.
        self.run_metrics: dict[str, float] = {}
        policy: Any = load_model(model) if isinstance(model, str) else model
        path = model if isinstance(model, str) else policy.config.name_or_path
        tokenizer = load_tokenizer(path, names=PYTHON) if processing_class is None else processing_class
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        rows = embedding_rows(policy)
        check_vocabulary(tokenizer, rows, "the model", "processing_class")
        check_prepared(train_dataset, "train_dataset", rows)
        check_prepared(eval_dataset, "eval_dataset", rows)
        if peft_config is not None:
            policy = add_adapter(policy, peft_config, seed=self.args.seed)
        named = f"the model of {type(self).__name__} ({path})"
        check_causal(policy, named)
        if train_dataset is not None:
            check_trainable(policy, named)
        align_generation_config(policy, tokenizer, chat_of(tokenizer, self.args).ends)
        train_dataset, eval_dataset = self._prepare(policy, tokenizer, train_dataset, eval_dataset)
        if self.args.disable_dropout:
            disable_dropout(policy)
        super().__init__(
            model=policy,
            args=self.args,
            data_collator=kwargs.pop("data_collator", None) or Collator(tokenizer.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            **kwargs,
        )
        # compute_loss divides by the units of the whole optimizer step, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        if self.args.n_gpu > 1:
            raise UserError("several GPUs in one process (DataParallel) are not supported: start with torchrun")
        self._new_adapter = peft_config is not None
        add_completion_tables(self)
        self._begin()

    def _check_arguments(self, given: dict[str, Any]) -> None:
        """TypeError, before rows are prepared, for arguments that the Trainer does not have."""
        known, settings = inspect.signature(Trainer.__init__).parameters, {field.name for field in fields(self.config)}
        for name in given.keys() - known.keys():
            config = self.config.__name__
            remedy = f": it belongs in args, {config}({name}=...)" if name in settings else nearest(name, known)
            raise TypeError(f"{type(self).__name__} has no argument '{name}'{remedy}")

    def _prepare(
        self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, train: Rows | None, evaluation: EvaluationRows
    ) -> tuple[Dataset | None, Any]:
        """What the Trainer gets as its two data sets; the policy is still the reference."""
        raise NotImplementedError

    def _begin(self) -> None:
        """What is left to do once the Trainer has been made."""

    def _check_best_metric(self, evaluation: Any) -> None:
        """Refuse a `metric_for_best_model` that no evaluation gives; without one the checkpoint is chosen by ours."""
        args = self.args
        if args.metric_for_best_model is None or args.eval_strategy == "no":
            return
        by_prefix = {"": evaluation}
        if isinstance(evaluation, Mapping):
            by_prefix = {f"{name}_": rows for name, rows in evaluation.items()}
        names = [prefix + name for prefix, of in by_prefix.items() for name in metric_names(of, self.reward_func, args)]
        asked = args.metric_for_best_model
        if asked == "loss":  # transformers' own default, of losses that an evaluation does not compute
            asked = next((name for own in DEFAULTS for name in names if f"_{name}".endswith(f"_{own}")), asked)
            args.greater_is_better = higher_is_better(asked)
            log.warning("the best checkpoint is chosen by eval_%s: metric_for_best_model names another", asked)
        args.metric_for_best_model = f"eval_{produced_metric(asked, names)}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.sums.pop(self.accelerator), **self.run_metrics}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generate for the evaluation prompts and score; also the rows' own likelihood, log-ratio and pairs.

        `eval_dataset`: rows, or several data sets by name, whose metrics then begin with `eval_NAME_`; the name of one
        that the trainer has; default: all that it has.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise UserError(f"evaluate needs rows: pass eval_dataset to {type(self).__name__}")
        if self.is_in_train:
            self.check_weights()
        if isinstance(dataset, Mapping):
            found: dict[str, float] = {}
            for name, rows in dataset.items():
                found |= self.evaluate(rows, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        if isinstance(dataset, str) and isinstance(self.eval_dataset, Mapping) and dataset in self.eval_dataset:
            dataset = self.eval_dataset[dataset]
        check_prepared(dataset, "eval_dataset", embedding_rows(self.model))
        began = time.monotonic()
        give_back()  # what the steps hold ready is of no use to generation
        with self._as_reference() as reference:
            two_texts = is_encoder_decoder(self.model)
            dataset = prepare_evaluation(reference, self.processing_class, self.args, dataset, two_texts=two_texts)
        metrics, completions = evaluate_policy(
            self.model, self.processing_class, dataset, self.args, self.reward_func, self.reference
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics | {f"{metric_key_prefix}_runtime": round(time.monotonic() - began, 4)})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics, completions=completions
        )
        return metrics

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[nn.Module | None]:
        """Inside, the model is the reference again; None where its weights are gone."""
        policy = self.accelerator.unwrap_model(self.model)
        if self.state.global_step == 0:
            yield policy
        elif self.reference is not None:
            with self.reference.in_place():
                yield policy
        elif self._new_adapter:
            with policy.disable_adapter():
                yield policy
        else:
            yield None

    def leave_evaluation(self) -> None:
        if self.reference is not None:
            self.reference.restore()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md, our card without results, into `output_dir`; `push_to_hub` uploads it with the model.

        Of the arguments of `Trainer.create_model_card` those named below go into its header.
        """
        from leftover.publish.card import write_trainer_card

        given = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        if self.is_world_process_zero():
            names = {"finetuned_from": "base_model", "dataset_tags": "datasets"}
            wanted = ("language", "license", "tags", "model_name", *names)
            header = {names.get(name, name): given[name] for name in wanted if given.get(name)}
            write_trainer_card(self, Path(str(self.args.output_dir)), **header)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        readable_weights(folder)
        if self.args.should_save and is_adapter(folder):
            self.accelerator.unwrap_model(self.model).generation_config.save_pretrained(folder)
            # peft leaves a form to be filled in instead of a card.
            (folder / "README.md").unlink(missing_ok=True)
            if folder == Path(str(self.args.output_dir)):
                self.create_model_card()
