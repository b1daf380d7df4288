"""What LoLTrainer and PPOTrainer share: how they are made, what they log, evaluation, checkpoints, the model card."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from leftover.data.collate import Collator
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError
from leftover.evaluation.policy import evaluate_policy
from leftover.models.divergence import FrozenStart
from leftover.models.load import align_generation_config, disable_dropout, is_adapter, load_model
from leftover.monitoring.finite_training import FiniteTrainer
from leftover.monitoring.memory import freed_memory_kept
from leftover.monitoring.terminal import adapter_warnings_off
from leftover.monitoring.trackers import add_completion_tables
from leftover.prepare.in_memory import Rows, chat_of, prepare_evaluation
from leftover.recipe.policy_config import PolicyConfig
from leftover.rewards.python import summed
from leftover.training.metrics import MetricSums


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
        eval_dataset: Rows | None = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.args = args or self.config(output_dir=self.default_folder)
        self.reward_func = summed(reward_funcs)
        self.sums = MetricSums()
        # Facts of the whole run that every log line repeats, such as the value's held-out R2.
        self.run_metrics: dict[str, float] = {}
        policy: Any = load_model(model) if isinstance(model, str) else model
        path = model if isinstance(model, str) else policy.config.name_or_path
        tokenizer = load_tokenizer(path, of_recipe=False) if processing_class is None else processing_class
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if peft_config is not None:
            with adapter_warnings_off():
                policy = get_peft_model(policy, peft_config)
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
        add_completion_tables(self)
        self._begin()

    def _prepare(
        self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, train: Rows | None, evaluation: Rows | None
    ) -> tuple[Dataset | None, Dataset | None]:
        """What the Trainer gets as its two data sets; the policy is still the reference."""
        raise NotImplementedError

    def _begin(self) -> None:
        """What is left to do once the Trainer has been made."""

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; on a CPU, freed memory is kept for the next step."""
        on_cpu = self.args.device.type == "cpu"
        with freed_memory_kept() if on_cpu else contextlib.nullcontext():
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.sums.pop(self.accelerator), **self.run_metrics}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generate for the evaluation prompts and score; also the rows' own likelihood and log-ratio."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise UserError(f"evaluate needs rows: pass eval_dataset to {type(self).__name__}")
        dataset = prepare_evaluation(None, self.processing_class, self.args, dataset)
        if self.is_in_train:
            self.check_weights()
        metrics, completions = evaluate_policy(
            self.model, self.processing_class, dataset, self.args, self.reward_func, self.reference
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics, completions=completions
        )
        return metrics

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
        if self.args.should_save and is_adapter(folder):
            self.accelerator.unwrap_model(self.model).generation_config.save_pretrained(folder)
            # peft leaves a form to be filled in instead of a card.
            (folder / "README.md").unlink(missing_ok=True)
            if folder == Path(str(self.args.output_dir)):
                self.create_model_card()
