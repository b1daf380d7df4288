"""`LoLConfig`: the settings of a run, on top of transformers' `TrainingArguments`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from leftover.errors import UserError, nearest
from leftover.objectives import OBJECTIVES, RELEASED, Objective
from leftover.quantization import check_optimizer
from leftover.trackers import check_trackers


@dataclass
class LoLConfig(TrainingArguments):
    """Settings of a run: those of `TrainingArguments`, and these.

    Without `max_steps` a run takes `num_train_epochs` passes over the rows that it SELECTS, so that a leftover
    share of 67 % trains 33 % fewer steps than all rows would (A-LoL, section 4).
    """

    objective: str = field(default="a_lol_seq", metadata={"help": f"One of {', '.join(OBJECTIVES)}."})
    objective_settings: dict = field(
        default_factory=dict, metadata={"help": "The objective's own: clip, beta, floor, ... (leftover/objectives/)."}
    )
    rows: str = field(
        default="auto",
        metadata={
            "help": "Which rows train: all, leftover (advantage > 0), top (see top_percent), or auto: leftover for "
            "a_lol*, top for nll_top, else all."
        },
    )
    top_percent: float = field(default=25.0, metadata={"help": "With rows=top: the share of highest reward, in %."})
    draw: str = field(
        default="auto",
        metadata={
            "help": "How they are drawn: priority (in proportion to the reward or advantage that weighs the loss, with "
            "replacement), priority_unweighted (the same, without the factor in the loss), uniform (every row once an "
            "epoch), or auto: priority where the objective has such a weight; groups come once an epoch. "
            "rows=leftover with draw=uniform is the paper's 'good random', rows=all with it its plain shuffle."
        },
    )
    whole_groups: bool = field(default=False, metadata={"help": "Draw all selected rows of a prompt together."})
    reference_samples: int = field(
        default=8, metadata={"help": "qrpo: completions of the reference a prompt, among which rewards are ranked."}
    )
    released_code: bool = field(
        default=False,
        metadata={
            "help": "Sample, clip and clamp as the authors' released code does, to show what that changes "
            "(docs/paper.md, 'released_code')."
        },
    )
    released_script: str = field(
        default="assistant", metadata={"help": "Which of the two: assistant (HH-RLHF) or tasks (the three others)."}
    )
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
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise UserError(f"{name}: '{getattr(self, name)}' is not one of {', '.join(valid)}")
        if self.reference_samples < 1:
            raise UserError(f"reference_samples is {self.reference_samples}: give 1 or more")
        if self.released_code:
            if self.max_tokens_per_batch or self.whole_groups:
                raise UserError("released_code draws batches of rows: leave max_tokens_per_batch and whole_groups out")
            self.disable_dropout = self.length_bucketing = False
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        check_trackers(self.report_to)
        super().__post_init__()

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the reference pass must share."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None


CHOICES = {
    "rows": ("auto", "all", "leftover", "top"),
    "draw": ("auto", "priority", "priority_unweighted", "uniform"),
    "eval_decoding": ("greedy", "sample"),
    "released_script": tuple(RELEASED),
    "value_targets": ("auto", "recorded", "reference_samples", "group_loo"),
}


def declared(fields: Mapping[str, Any]) -> tuple[Objective, Any]:
    """The objective that fields of LoLConfig name (or what the released code has in its place), and its settings.

    Raises UserError for a setting that it has not.
    """
    name = str(fields.get("objective", LoLConfig.objective))
    script = str(fields.get("released_script", LoLConfig.released_script))
    released = RELEASED.get(script, {}) if fields.get("released_code") else {}
    objective = released.get(name, OBJECTIVES[name])
    settings: Any = objective.settings
    valid = list(settings.__dataclass_fields__)
    given = fields.get("objective_settings") or {}
    for setting in given:
        if setting not in valid:
            raise UserError(
                f"objective '{name}' has no setting '{setting}'{nearest(setting, valid)}; "
                f"its settings: {', '.join(valid) or 'none'}"
            )
    return objective, settings(**given)


def objective_of(args: LoLConfig) -> Objective:
    """The objective of a run; see `declared`."""
    return declared(vars(args))[0]


def objective_settings(args: LoLConfig) -> Any:
    """The objective's own settings as its dataclass; an unknown name is a UserError."""
    return declared(vars(args))[1]
