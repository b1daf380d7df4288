"""`PolicyConfig`: what the settings of both trainers share, on top of transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from leftover.errors import PYTHON, UserError, nearest
from leftover.monitoring.trackers import check_trackers
from leftover.recipe.data_section import POLICY_KEYS, DataSection
from leftover.recipe.eval_metrics import higher_is_better
from leftover.recipe.optional_packages import check_optimizer, trains_on_cpu

_T = TypeVar("_T")


def setting(default: _T, text: str) -> _T:
    """A field of a configuration with its default and its help text."""
    return field(default=default, metadata={"help": text})


class PythonData(DataSection):
    """How rows that are given in Python are read."""

    names = PYTHON


@dataclass
class PolicyConfig(TrainingArguments):
    """Base of LoLConfig and PPOConfig: how rows become tokens, and how a policy is evaluated."""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "eval_decoding": ("greedy", "sample"),
        "on_bad_row": ("error", "skip"),
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
    columns: dict = field(
        default_factory=dict, metadata={"help": "For raw rows: your names of columns, as {'prompt': 'question'}."}
    )
    labels: dict = field(
        default_factory=dict,
        metadata={"help": "What classes in the reward column are worth, as {'good': 1, 'bad': 0}."},
    )
    on_bad_row: str = setting("error", "What becomes of faulty rows: error, or skip, which names and counts them.")
    data_options: dict = field(
        default_factory=dict,
        metadata={"help": "Further keys of a recipe's `data`, for a file as data set: format, table, hub_split, ..."},
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
        self.data("data_options")  # faults are told now
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = higher_is_better(self.metric_for_best_model)
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        check_trackers(self.report_to)
        self.use_cpu = trains_on_cpu(self.use_cpu)
        super().__post_init__()

    def data(self, path: str) -> PythonData:
        """How raw rows are read; `path`: their file, or the name of the data set."""
        own = {"path", "columns", "labels", "on_bad_row"} | POLICY_KEYS
        if taken := own & self.data_options.keys():
            raise UserError(
                f"data_options: {', '.join(sorted(taken))} does not stand there: see LoLConfig's own fields"
            )
        fields = {"labels": self.labels, "on_bad_row": self.on_bad_row, "columns": {"split": None} | self.columns}
        try:
            return PythonData(path=path, **fields, **self.data_options)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r:.80}" for e in error.errors())
            raise UserError("; ".join(faults)) from None

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the passes of the reference and over rollouts share."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None
