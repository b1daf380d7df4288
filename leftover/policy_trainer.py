"""What the trainers of policies share, on scored rows and online: memory, evaluation and what is told of it."""

import contextlib
from typing import Any

from transformers import Trainer

from leftover.errors import UserError
from leftover.memory import freed_memory_kept
from leftover.standalone import prepare_evaluation
from leftover.trackers import add_completion_tables
from leftover.trainer_metrics import evaluate_policy


class PolicyTrainer(Trainer):
    """A Trainer that keeps freed memory on a CPU, and whose `evaluate` generates and scores.

    Callbacks get what was sampled as `completions` of `on_evaluate`: a list of `Completion`, empty where nothing was.
    """

    args: Any
    processing_class: Any
    reward_func: Any
    reference: Any = None  # the FrozenStart of the policy, where evaluation measures the divergence from it

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        add_completion_tables(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; on a CPU, freed memory is kept for the next step."""
        on_cpu = self.args.device.type == "cpu"
        with freed_memory_kept() if on_cpu else contextlib.nullcontext():
            return super().train(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Generate for the evaluation prompts and score; also the rows' own likelihood and log-ratio."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise UserError(f"evaluate needs rows: pass eval_dataset to {type(self).__name__}")
        dataset = prepare_evaluation(None, self.processing_class, self.args, dataset)
        metrics, completions = evaluate_policy(
            self.model, self.processing_class, dataset, self.args, self.reward_func, self.reference
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics, completions=completions
        )
        return metrics
