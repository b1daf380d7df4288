"""`PolicyConfig`: what the settings of both trainers share, on top of transformers' `TrainingArguments`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, cast, get_args

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from leftover.errors import PYTHON, UserError, nearest, one_line
from leftover.monitoring.trackers import check_trackers
from leftover.recipe.data_section import POLICY_KEYS, DataSection
from leftover.recipe.engine import MAX_BATCH_TOKENS, EngineName, EngineSettings, VllmSection
from leftover.recipe.eval_metrics import higher_is_better
from leftover.recipe.forms import Unfinished
from leftover.recipe.optional_packages import check_engine, check_optimizer, trains_on_cpu

_T = TypeVar("_T")
_UNFINISHED = TypeAdapter[Any](Unfinished)
_WHOLE = {str(kind) for kind in (int, int | None, "int", "int | None")}  # types of settings that are whole numbers


def setting(default: _T, text: str) -> _T:
    """A field of a configuration with its default and its help text."""
    return field(default=default, metadata={"help": text})


AT_LEAST_0, ABOVE_0, AT_LEAST_1 = (0.0, math.inf), (math.ulp(0.0), math.inf), (1.0, math.inf)

_LARGEST = 2**31 - 1  # of a whole number
# What numbers of TrainingArguments may be, both ends included; transformers takes any, and hangs or trains on.
_RANGES = {
    "per_device_train_batch_size": AT_LEAST_1, "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1, "max_steps": AT_LEAST_1, "num_train_epochs": ABOVE_0,
    "learning_rate": AT_LEAST_0,
    "warmup_steps": AT_LEAST_0, "weight_decay": AT_LEAST_0, "adam_beta1": (0.0, math.nextafter(1, 0)),
    "adam_beta2": (0.0, math.nextafter(1, 0)), "adam_epsilon": AT_LEAST_0, "max_grad_norm": AT_LEAST_0,
    "label_smoothing_factor": (0.0, 1.0), "neftune_noise_alpha": AT_LEAST_0, "torch_empty_cache_steps": AT_LEAST_1,
    "logging_steps": ABOVE_0, "eval_steps": ABOVE_0, "save_steps": ABOVE_0, "eval_delay": AT_LEAST_0,
    "eval_accumulation_steps": AT_LEAST_1, "save_total_limit": AT_LEAST_1, "seed": AT_LEAST_0,
    "data_seed": AT_LEAST_0, "dataloader_num_workers": AT_LEAST_0, "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1, "ddp_timeout": AT_LEAST_1,
}  # fmt: skip


_MAY_BE_NONE = ("max_grad_norm",)  # transformers asks for it, and does not say so


def faulty_numbers(
    given: Mapping[str, Any], config: type[TrainingArguments] = TrainingArguments
) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of every number among the settings that the config cannot have. None: not set."""
    ranges, kinds = getattr(config, "RANGES", _RANGES), {entry.name: str(entry.type) for entry in fields(config)}
    for name, value in given.items():
        if name not in ranges or (name == "max_steps" and value == -1):  # transformers' "not set"
            continue
        if value is None:
            if name not in _MAY_BE_NONE and not ("None" in kinds[name] or "Optional" in kinds[name]):
                yield name, "is a number, got nothing: leave it out for its default"
            continue
        low, high = ranges[name]
        high = min(high, _LARGEST) if "int" in kinds[name] else high
        if isinstance(value, (str, bool)) or not isinstance(value, (int, float)):
            yield name, f"is a number, got {value!r:.60}"
        elif not (math.isfinite(value) and low <= value <= high):
            unset = " (or -1: not set, num_train_epochs counts)" if name == "max_steps" else ""
            yield name, f"is {value:g}: it must be {_bounds(low, high)}{unset}"
        elif "int" in kinds[name] and value != int(value):
            yield name, f"is {value:g}: it must be a whole number"


def _bounds(low: float, high: float) -> str:
    start = "above 0" if low == ABOVE_0[0] else f"at least {low:g}"
    if high == math.inf:
        return f"{start} and finite"
    if high < 1:
        return f"{start} and below 1"
    return f"from {low:g} to {high:g}" if low == 0 else f"{start} and at most {high:g}"


class PythonData(DataSection):
    """How rows that are given in Python are read."""

    names = PYTHON


@dataclass
class PolicyConfig(TrainingArguments):
    """Base of LoLConfig and PPOConfig: how rows become tokens, and how a policy is evaluated."""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "eval_decoding": ("greedy", "sample"),
        "eval_engine": get_args(EngineName),
        "on_bad_row": ("error", "skip"),
        "on_nonfinite": ("stop", "skip"),
        "optim": tuple(name.value for name in OptimizerNames),
        "lr_scheduler_type": tuple(name.value for name in SchedulerType),
        **dict.fromkeys(("log_level", "log_level_replica"), tuple(trainer_log_levels)),
    }

    RANGES: ClassVar[dict[str, tuple[float, float]]] = _RANGES | {
        "max_prompt_length": AT_LEAST_1,
        "max_completion_length": AT_LEAST_1,
        "eval_max_batch_tokens": AT_LEAST_1,
    }

    save_on_signal: bool = setting(True, "SIGTERM and Ctrl-C save a checkpoint before they end a training.")
    on_nonfinite: str = setting(
        "stop", "stop or skip: what becomes of a step whose loss or gradient is no finite number (few are left out)."
    )
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
    eval_max_batch_tokens: int = setting(
        MAX_BATCH_TOKENS,
        "Positions of the completions that are generated at a time, beside per_device_eval_batch_size.",
    )
    eval_engine: str = setting("auto", "What generates completions: transformers, vllm, or auto, vllm where it can.")
    eval_vllm: dict = field(
        default_factory=dict,
        metadata={"help": "How vllm is reached: address of a server, token_env, timeout; gpu_memory_utilization."},
    )
    unfinished: Any = field(
        default="score",
        metadata={
            "help": "What a completion that ran into max_completion_length counts: score (as any), drop (it has no "
            "reward), or {'penalty': x}, which its reward loses."
        },
    )
    # Defaults of TrainingArguments that differ here.
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name, None)
            if entry.type is float and type(value) is int:  # optimizers take no 0 for 0.0
                setattr(self, entry.name, float(value))
            if str(entry.type) in _WHOLE and isinstance(value, float) and value.is_integer():  # max_steps: 1e3
                setattr(self, entry.name, int(value))
        for name, valid in self.CHOICES.items():
            given = getattr(self, name)
            if given not in valid:
                raise UserError(f"{name}: '{given}' is not one of {', '.join(valid)}{nearest(str(given), valid)}")
        for name, fault in faulty_numbers(vars(self), type(self)):
            raise UserError(f"{name} {fault}")
        try:
            self.unfinished = _UNFINISHED.validate_python(self.unfinished)
        except ValidationError:
            raise UserError(
                f"unfinished is {self.unfinished!r:.60}: it takes score, drop, or {{'penalty': x}} with x of 0 or more"
            ) from None
        self.data("data_options")  # faults are told now
        check_engine(self.engine)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = higher_is_better(self.metric_for_best_model)
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        check_trackers(self.report_to)
        self.use_cpu = trains_on_cpu(self.use_cpu)
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu  # it speeds copies to a GPU
        for name in ("checkpointing", "checkpointing_kwargs"):  # users know the older names, which 5.23 warns of
            if getattr(self, f"activation_{name}", "unknown") is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
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
    def engine(self) -> EngineSettings:
        try:
            vllm = VllmSection(**self.eval_vllm)
        except (TypeError, ValidationError) as error:
            raise UserError(f"eval_vllm: {one_line(error)}") from None
        return EngineSettings(cast(EngineName, self.eval_engine), vllm)

    @property
    def generation(self) -> dict[str, Any]:
        """How completions are generated: keywords of `leftover.models.generate.generate`."""
        return {
            "batch_size": self.per_device_eval_batch_size,
            "max_batch_tokens": self.eval_max_batch_tokens,
            "engine": self.engine,
        }

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the passes of the reference and over rollouts share."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else None


def cadence(settings: dict[str, Any]) -> dict[str, Any]:
    """Every run is evaluated five times and saved then, and the best checkpoint is kept.

    Saving follows the evaluations that `settings` ask for: the best of them could not be kept otherwise.
    """
    every = {"strategy": settings.get("eval_strategy", "steps"), "steps": settings.get("eval_steps", 0.2)}
    found = {f"{what}_{name}": value for what in ("eval", "save") for name, value in every.items()}
    return found | {"save_total_limit": 1, "load_best_model_at_end": True}
