"""What the trainers of policies share, on scored rows and online: memory, evaluation, what is told of it, the card."""

import contextlib
import inspect
from pathlib import Path
from typing import Any

from transformers import Trainer

from leftover.errors import UserError
from leftover.evaluation.policy import evaluate_policy
from leftover.models.load import is_adapter
from leftover.monitoring.memory import freed_memory_kept
from leftover.monitoring.trackers import add_completion_tables
from leftover.prepare.in_memory import prepare_evaluation


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

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md into `output_dir`: our card, without results; `push_to_hub` uploads it with the model.

        It takes what `Trainer.create_model_card` takes; language, license, tags, model_name, finetuned_from and
        dataset_tags stand in its header.
        """
        from leftover.publish.card import write_trainer_card  # which reads the objectives' trainers

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
            # peft leaves a form to be filled in where a card belongs.
            (folder / "README.md").unlink(missing_ok=True)
            if folder == Path(str(self.args.output_dir)):
                self.create_model_card()
