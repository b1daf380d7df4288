"""The pace of this machine, measured on the recipe's own models with random weights.

A large model is timed with one layer and with a few: what these add is what every further one takes.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.initialization import no_init_weights

from leftover.commands.dry_run.pace import Pace
from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.trace import checkpointing_name
from leftover.commands.dry_run.work import Amount, Training
from leftover.errors import UserError
from leftover.models.generate import generate
from leftover.models.load import torch_dtype, with_adapter
from leftover.models.logprobs import completion_logprobs
from leftover.models.reference import autocast, pass_tokens, reference_pass
from leftover.models.vocabulary import embedding_rows
from leftover.recipe.optional_packages import trains_on_cpu
from leftover.recipe.sections import ModelSection
from leftover.rewards.fine_tuned import Plan
from leftover.runs.models import adapter_config

_FEW_LAYERS = 5  # as many are built at most
_LAYER_WEIGHTS = 2e7  # of all further layers that are built: of a large model one, which is long enough to be timed
# Operations that a call takes at most: of a large model fewer and shorter rows are timed.
OPERATIONS = {"cpu": 1e11, "cuda": 1e13}
_WEIGHT = 0.01
_LONG_ENOUGH = 0.15  # seconds; a call is repeated until they are over
_MOST_STEPS = 20
_TOKENS = 8  # that a timed decoding writes
_FEWER_ROWS = 4  # a fourth of the batch is decoded too


def device() -> torch.device:
    return torch.device("cpu" if trains_on_cpu(False) else "cuda")


def measured_pace(
    config: PretrainedConfig,
    section: ModelSection,
    shape: Shape,
    *,
    rows_per_batch: int,
    prompt: int,
    completion: int,
    generated_at_once: int,
    compute_dtype: str | None,
    checkpointing: bool = False,
) -> Pace:
    """Of a causal model, at batches of `rows_per_batch` rows of so many prompt and completion tokens."""
    training_tokens = _most_tokens(shape, 6)
    share = min(1.0, training_tokens / (prompt + completion))
    prompt, completion = (max(1, round(share * part)) for part in (prompt, completion))
    rows_per_batch = max(1, min(rows_per_batch, training_tokens // (prompt + completion)))
    passing = max(1, min(pass_tokens(device()), _most_tokens(shape, 2)) // (prompt + completion))
    generated_at_once = max(1, min(generated_at_once, _most_tokens(shape, 2) // (prompt + _TOKENS)))
    few = max(1, generated_at_once // _FEWER_ROWS)

    def times(model: Any) -> list[float]:
        return [
            _steps(model, 1, 1, 1, compute_dtype),
            _steps(model, rows_per_batch, prompt, completion, compute_dtype),
            _mean(_pass(model, passing, prompt, completion, compute_dtype)),
            *(_decoding(model, rows, prompt, compute_dtype) for rows in dict.fromkeys((generated_at_once, few))),
        ]

    try:
        start, step, passed, *decoded = by_layers(
            config, lambda shortened: _causal(shortened, section, checkpointing), times
        )
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise UserError(
            "a layer of the model and its embeddings do not fit into this machine's memory, so that it cannot be timed "
            "here: name another with --device (h100, ...), or check the sizes in the model's config"
        ) from error
    least, most = (
        Training("", "", rows, seen=_rows(rows, *tokens)).operations(shape)
        for rows, tokens in ((1, (1, 1)), (rows_per_batch, (prompt, completion)))
    )
    rate = (most - least) / (step - start) if step > start else most / step
    of_row = (decoded[0] - decoded[-1]) / (generated_at_once - few) if len(decoded) > 1 else 0.0
    of_row = max(0.0, of_row)
    return Pace(
        rate,
        _rows(passing, prompt, completion).operations(shape) / passed,
        max(decoded[0] - generated_at_once * of_row, 0.0),
        of_row,
        step_start=max(0.0, step - most / rate),
    )


def _most_tokens(shape: Shape, operations: int) -> int:
    """Tokens of a call with so many operations a weight and token, through the layers that are built."""
    of_layer = shape.trunk / shape.layers
    layers = shape.layers if shape.layers <= _FEW_LAYERS else 1 + _further(of_layer)
    return max(2, int(OPERATIONS[device().type] / (operations * of_layer * layers)))


def _further(of_layer: float) -> int:
    """How many layers of so many weights are built beside the first."""
    return int(min(max(_LAYER_WEIGHTS // of_layer, 1), _FEW_LAYERS - 1))


def measured_fit(model: Any, plan: Plan, dtype: str | None) -> tuple[float, float]:
    """Seconds of a training step of a scorer, and of scoring one of its rows."""
    rows = plan.train[: plan.args.train_batch_size]
    texts = sum(len(row[0]) for row in rows)
    widths = [len(text["input_ids"]) for row in plan.train for text in row[0]]
    width = max(1, round(sum(widths) / len(widths)))

    def times(model: Any) -> list[float]:
        ids = torch.ones(texts, width, dtype=torch.int64, device=device())

        def scores(model: Any) -> Any:
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().sum()

        def score() -> None:
            with torch.inference_mode(), autocast(device(), dtype):
                scores(model.eval())

        return [_trained(model, dtype, scores), _mean(score)]

    def build(config: PretrainedConfig) -> Any:
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)

    step, scoring = by_layers(model.config, build, times)
    return step, scoring / texts


def by_layers(
    config: PretrainedConfig, build: Callable[[PretrainedConfig], Any], times: Callable[[Any], list[float]]
) -> list[float]:
    """What `times` gives for the model of a config: measured, or continued from one layer and a few."""
    layers = config.get_text_config().num_hidden_layers
    if layers <= _FEW_LAYERS:
        return times(_ready(build, config))
    model = _ready(build, _shortened(config, 1))
    first = times(model)
    with torch.device("meta"):
        further = _further(_weights(build(_shortened(config, 2))) - _weights(model) or 1)
    del model
    rest = times(_ready(build, _shortened(config, 1 + further)))
    return [one + (layers - 1) * max(0.0, more - one) / further for one, more in zip(first, rest, strict=True)]


def _ready(build: Callable[[PretrainedConfig], Any], config: PretrainedConfig) -> Any:
    """The model on the device, all its weights one number: to draw them takes longer than what is timed."""
    with no_init_weights():
        model = build(config)
    for parameter in model.parameters():
        parameter.data.fill_(_WEIGHT)
    return model.to(device())


def _weights(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _shortened(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same model of fewer layers."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    text.num_hidden_layers = layers
    if kinds := getattr(text, "layer_types", None):
        # Attention comes first where the first layers have none: decoding counts the tokens that its cache holds.
        attention = next((kind for kind in kinds if kind.endswith("attention") and kind != "linear_attention"), None)
        kept = list(kinds[:layers])
        text.layer_types = kept if attention in (None, *kept) else [attention, *kept[1:]]
    return found


def _causal(config: PretrainedConfig, section: ModelSection, checkpointing: bool) -> Any:
    options = {} if section.attn_implementation is None else {"attn_implementation": section.attn_implementation}
    model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(section.dtype), **options)
    if section.lora is not None:
        model = with_adapter(model, adapter_config(section.lora))
    if checkpointing:
        getattr(model, f"{checkpointing_name(model)}_enable")()
    return model


def _rows(rows: int, prompt: int, completion: int) -> Amount:
    fed = prompt + completion - 1
    return Amount(rows, rows * fed, rows * fed**2, rows * completion)


def _steps(model: Any, rows: int, prompt: int, completion: int, dtype: str | None) -> float:
    """Seconds of an optimizer step, as the Trainer takes it."""
    widths = {"prompt": prompt, "completion": completion}
    names = [(f"{part}_{what}", width) for part, width in widths.items() for what in ("ids", "mask")]
    batch = {name: torch.ones(rows, width, dtype=torch.int64, device=device()) for name, width in names}
    return _trained(model, dtype, lambda model: -completion_logprobs(model, batch, overwrite_logits=True).mean())


def _trained(model: Any, dtype: str | None, loss: Callable[[Any], torch.Tensor]) -> float:
    """Seconds of an optimizer step of `transformers.Trainer` with this loss."""

    class Timed(Trainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            ended.append(time.perf_counter())  # of the step before
            with autocast(device(), dtype):
                return loss(model)

    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=1, max_steps=_MOST_STEPS, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=device().type == "cpu",
        )  # fmt: skip
        trainer = Timed(
            model, args, train_dataset=[0] * _MOST_STEPS, data_collator=lambda rows: {"rows": torch.zeros(1)}
        )
        trainer.add_callback(_StopWhenLong())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return (ended[-1] - ended[1]) / (len(ended) - 2)  # the first makes the optimizer's states


class _StopWhenLong(TrainerCallback):
    """Ends the training once `_LONG_ENOUGH` is over, after three steps."""

    def __init__(self) -> None:
        self.until = math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.until = time.perf_counter() + _LONG_ENOUGH
        control.should_training_stop = state.global_step > 2 and time.perf_counter() > self.until


def _pass(model: Any, rows: int, prompt: int, completion: int, dtype: str | None) -> Callable:
    ids = [{"prompt_ids": [1] * prompt, "completion_ids": [1] * completion} for _ in range(rows)]
    return lambda: reference_pass(model, _NO_TOKENIZER, ids, features=False, compute_dtype=dtype)


def _decoding(model: Any, rows: int, prompt: int, dtype: str | None) -> float:
    """Seconds of a decoding step of `rows` rows."""

    def write(tokens: int) -> Callable:
        return lambda: generate(
            model,
            _NO_TOKENIZER,
            [[1] * prompt] * rows,
            max_new_tokens=tokens,
            sample=True,
            batch_size=rows,
            compute_dtype=dtype,
        )

    model.generation_config.eos_token_id = embedding_rows(model)  # which no token is
    return max(0.0, _mean(write(1 + _TOKENS)) - _mean(write(1))) / _TOKENS


def _mean(work: Callable) -> float:
    """Seconds of a call after one that warms up: a mean, since other processes will slow the run down as well."""
    work()
    started, calls, seconds = time.perf_counter(), 0, 0.0
    while calls < _MOST_STEPS and seconds < _LONG_ENOUGH:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        calls, seconds = calls + 1, time.perf_counter() - started
    return seconds / calls


_NO_TOKENIZER: Any = SimpleNamespace(pad_token_id=0, batch_decode=lambda ids, **_: [""] * len(ids))
