"""`LoLConfig`: the settings of a run, on top of transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from leftover.errors import UserError, nearest
from leftover.objectives import OBJECTIVES
from leftover.quantization import check_optimizer


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
    chat_template_kwargs: dict = field(
        default_factory=dict, metadata={"help": "Options of the chat template for raw rows, as enable_thinking."}
    )
    end_tokens: list[str] = field(
        default_factory=list, metadata={"help": "Further tokens, as text, that end a completion."}
    )
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
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
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


def objective_settings(args: LoLConfig) -> Any:
    """The objective's own settings as its dataclass; an unknown name is a UserError."""
    settings: Any = OBJECTIVES[args.objective].settings
    valid = list(settings.__dataclass_fields__)
    for name in args.objective_settings:
        if name not in valid:
            raise UserError(
                f"objective '{args.objective}' has no setting '{name}'{nearest(name, valid)}; "
                f"its settings: {', '.join(valid) or 'none'}"
            )
    return settings(**args.objective_settings)
