"""`PolicyConfig`: what the settings of both trainers share, on top of transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from leftover.errors import UserError, nearest
from leftover.monitoring.trackers import check_trackers
from leftover.recipe.optional_packages import check_optimizer, trains_on_cpu

_T = TypeVar("_T")


def setting(default: _T, text: str) -> _T:
    """A field of a configuration with its default and its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class PolicyConfig(TrainingArguments):
    """Base of LoLConfig and PPOConfig: how rows become tokens, and how a policy is evaluated."""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "eval_decoding": ("greedy", "sample"),
        "optim": tuple(name.value for name in OptimizerNames),
    }

    max_prompt_length: int = setting(512, "In tokens; longer prompts are cut on the left.")
    max_completion_length: int = setting(128, "In tokens, with the end of sequence.")
    chat_template_kwargs: dict = field(
        default_factory=dict, metadata={"help": "Options of the chat template for raw rows, such as enable_thinking."}
    )
    end_tokens: list[str] = field(
        default_factory=list, metadata={"help": "Further tokens, as text, that end a completion."}
    )
    disable_dropout: bool = setting(True, "Train without dropout, so that importance weights are 1 at step 0.")
    eval_decoding: str = setting(
        "sample",
        "How evaluate() generates the completions that choose the checkpoint: sample or greedy. Greedy rewards are "
        "often at their ceiling from the first checkpoint on, and greedy completions give no KL.",
    )
    # Defaults of TrainingArguments that differ here.
    report_to: Any = "none"
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        for name, valid in self.CHOICES.items():
            given = getattr(self, name)
            if given not in valid:
                raise UserError(f"{name}: '{given}' is not one of {', '.join(valid)}{nearest(str(given), valid)}")
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        check_trackers(self.report_to)
        self.use_cpu = trains_on_cpu(self.use_cpu)
        super().__post_init__()

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the passes of the reference and over rollouts share."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None
