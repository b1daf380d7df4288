"""Passes without gradients: the log-probabilities and prompt features that the frozen reference gives every row."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from leftover.data.collate import Collator, pad
from leftover.errors import UserError
from leftover.models.inputs import inputs_of_prompts
from leftover.models.load import base_path, is_adapter, root_in_place
from leftover.models.logprobs import completion_logprobs, head_sees_only
from leftover.models.trunk import capture_hidden
from leftover.monitoring.ranks import shared
from leftover.monitoring.room import OutOfMemory, halve, room_for
from leftover.monitoring.terminal import progress_bar
from leftover.store.manifest import FileHashes, file_hash
from leftover.store.sealed import digest

# Why a model gives no finite numbers, and what helps.
DIVERGED = (
    "its weights have diverged (lower learning_rate, or set max_grad_norm) or are damaged, or its dtype is too narrow "
    "(model.dtype: float32)"
)


_READING = "reading rows"


def pass_tokens(device: torch.device) -> int:
    """Padded tokens in a batch, which bound its memory.

    A GPU wants much work at once. A CPU is faster if what one layer hands to the next stays in its cache: 1.6 times
    at 2,048 against 16,384 tokens of a 15M Llama.
    """
    return 2_048 if device.type == "cpu" else 16_384


def length_sorted_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within `max_tokens`, longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def in_batches(lengths: Sequence[int], device: torch.device, read: Callable[[list[int]], None]) -> None:
    """Call `read` with places of rows of similar length, until it has had all; after out of memory, with fewer."""
    todo = list(range(len(lengths)))
    while todo:
        done, failed = set[int](), list[int]()
        for part in length_sorted_batches([lengths[i] for i in todo], room_for(_READING, pass_tokens(device))):
            chosen = [todo[place] for place in part]
            try:
                read(chosen)
            except OutOfMemory:  # its traceback holds what did not fit
                failed = chosen
                break
            done.update(chosen)
        if failed:
            halve(_READING, len(failed), max(lengths[i] for i in failed))
        todo = [i for i in todo if i not in done]


def collated(
    rows: Sequence[dict[str, Any]], pad_token_id: int, device: torch.device
) -> tuple[list[int], Callable[[list[int]], dict[str, Tensor]]]:
    """Tokens of every row, for `in_batches`, and what gives the batch of some of them in the aligned layout."""
    collate = Collator(pad_token_id)

    def batch(chosen: list[int]) -> dict[str, Tensor]:
        return {name: values.to(device) for name, values in collate([rows[i] for i in chosen]).items()}

    return [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows], batch


def autocast(device: torch.device, dtype: str | None) -> contextlib.AbstractContextManager:
    """The compute dtype that training uses, so that policy and reference differ by nothing but their weights."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, getattr(torch, dtype))


@contextlib.contextmanager
def evaluating(model: nn.Module, compute_dtype: str | None) -> Iterator[torch.device]:
    """Inside, the model is in evaluation mode under `autocast`. Gives its device."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with autocast(device, compute_dtype):
            yield device
    finally:
        model.train(was_training)


@torch.inference_mode()
def reference_pass(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    features: bool | np.ndarray = True,
    compute_dtype: str | None = None,
    temperature: float = 1.0,
    description: str | None = None,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Log-probabilities of every completion token, and pooled features of every prompt.

    Args:
        rows: with `prompt_ids` and `completion_ids`, and for messages `where`.
        features: also return [N, 2 H] float32: mean and last position of the last hidden states of the PROMPT (of an
            encoder-decoder the encoder's, which are all that the decoder reads of it). A mask [N]: of these rows alone.
        compute_dtype: autocast dtype (bfloat16, float16), or None for the weights' own.
        temperature: of the log-probabilities (see `completion_logprobs`).
        description: of a progress bar, which is not shown without one.

    Returns:
        A float32 array [T_i] a row, and the features or None.

    The processes of a launch share the rows (`leftover.monitoring.ranks.shared`).
    """
    wanted = np.broadcast_to(np.asarray(features, bool), len(rows))

    def read(rows: Sequence[dict[str, Any]], wanted: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        return _read(model, tokenizer, rows, wanted, compute_dtype, temperature, description)

    with root_in_place(model):
        found = shared(read, rows, wanted, model=model)
    logprobs, pooled = [row[0] for row in found], [row[1] for row in found if row[1] is not None]
    _check_finite(logprobs, rows)
    return logprobs, np.stack(pooled) if pooled else None


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    wanted: np.ndarray,
    compute_dtype: str | None,
    temperature: float,
    description: str | None,
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Log-probabilities of every row, and the features of the wanted ones."""
    logprobs: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    pooled: dict[int, np.ndarray] = {}
    bar = progress_bar(len(rows), description or "", "row", shown=description is not None)
    capture: contextlib.AbstractContextManager[dict[str, Tensor]] = contextlib.nullcontext({})
    if wanted.any():
        capture = capture_hidden(model)
    with evaluating(model, compute_dtype) as device, capture as captured, bar:
        lengths, batch_of = collated(rows, tokenizer.pad_token_id, device)

        def read(chosen: list[int]) -> None:
            batch = batch_of(chosen)
            values = completion_logprobs(model, batch, temperature=temperature).cpu().numpy()
            if len(places := np.flatnonzero(wanted[chosen])):
                of_prompts = pool(captured["hidden"][places].float(), batch["prompt_mask"][places].sum(1))
                pooled.update(zip((chosen[place] for place in places), of_prompts.cpu().numpy(), strict=True))
            for i, row_logprobs in zip(chosen, values, strict=True):
                logprobs[i] = row_logprobs[: len(rows[i]["completion_ids"])]
            bar.update(len(chosen))

        in_batches(lengths, device, read)
    return [(logprobs[i], pooled.get(i)) for i in range(len(rows))]


def sequence_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    compute_dtype: str | None,
    *,
    temperature: float = 1.0,
    description: str | None = None,
) -> list[float]:
    """log pi(y|x) of every completion, by `reference_pass`."""
    rows = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
    logprobs, _ = reference_pass(
        model,
        tokenizer,
        rows,
        features=False,
        compute_dtype=compute_dtype,
        temperature=temperature,
        description=description,
    )
    return [float(values.sum()) for values in logprobs]


def _check_finite(logprobs: Sequence[np.ndarray], rows: Sequence[dict[str, Any]]) -> None:
    """Raises UserError if a row has a log-probability that is not finite."""
    bad = [i for i, values in enumerate(logprobs) if not np.isfinite(values).all()]
    if bad:
        first = rows[bad[0]].get("where") or f"number {bad[0]}"
        raise UserError(
            f"the model's log-probabilities are not finite numbers on {len(bad)} of {len(logprobs)} rows, the first "
            f"{first}: {DIVERGED}"
        )


def pool(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the first `lengths` [B] positions beside the last of them: [B, L, H] -> [B, 2 H]."""
    mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    mean = torch.einsum("blh,bl->bh", hidden, mask.float()) / lengths[:, None]
    last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return torch.cat([mean, last], dim=-1)


@torch.inference_mode()
def prompt_hidden(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    compute_dtype: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (i, last hidden states [L_i, H] float32 on the CPU) of every prompt, in batches of similar length."""
    model.eval()  # the frozen reference stays so
    with evaluating(model, compute_dtype) as device, capture_hidden(model) as captured:
        most = room_for(_READING, pass_tokens(device))
        for chosen in length_sorted_batches([len(ids) for ids in prompt_ids], most):
            ids, mask = pad([prompt_ids[i] for i in chosen], tokenizer.pad_token_id)
            inputs = inputs_of_prompts(model, ids.to(device), mask.to(device))
            with head_sees_only(model, inputs.predicting, inputs.width):
                model(**inputs.arguments, use_cache=False)
            hidden = captured["hidden"].float().cpu()
            for i, states in zip(chosen, hidden, strict=True):
                yield i, states[: len(prompt_ids[i])].clone()


_MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".jinja", ".txt"}


def model_identity(path: str, hashes: FileHashes | None = None) -> str:
    """A model in a key: the hash of its files, or a Hub id with its resolved commit."""
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).iterdir() if file.suffix in _MODEL_FILES)
        identity = {file.name: hashes.of(file) if hashes else file_hash(file) for file in files}
        if is_adapter(path):
            identity["base"] = model_identity(base_path(path), hashes)
        return digest(identity)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        raise UserError(f"{path}: there is no such folder, and no model on the Hub can have that name") from None
    commit = Path(config).parent.name if isinstance(config, str) else "unresolved"
    return f"{path}@{commit}"
