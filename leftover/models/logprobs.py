"""The only place where logits become log-probabilities.

Rows are laid out from position 0, prompt and completion together, padded on the right (those of an encoder-decoder in
two parts: `leftover.models.inputs`). Under causal attention no real token then sees a padded one, so there is no
attention mask, positions are 0, 1, 2, ... for every model, and a batch is as wide as its longest row. Hidden states are
gathered before the head: only the positions that predict a completion token get logits, and none of the padding does.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leftover.errors import UserError
from leftover.models.inputs import inputs_of, inputs_of_prompts
from leftover.monitoring.ranks import is_sharded

# How many logits become probabilities at a time: few enough to stay in a processor's cache, or to keep a GPU's
# temporaries small.
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
# Of more logits than these (.4 GB in float32 on a CPU, 1 GB in bf16 on a GPU) the head runs in parts, which costs a
# fourth product with it.
MOST_LOGITS = {"cpu": 10**8, "cuda": 2**29}
_TRIED = 16  # tokens
_last: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def completion_logprobs(
    model: nn.Module, batch: Mapping[str, Tensor], *, overwrite_logits: bool = False, temperature: float = 1.0
) -> Tensor:
    """log pi(y_t | x, y_<t) of every completion token, in the aligned layout.

    Args:
        model: a causal language model or an encoder-decoder of transformers (bare, PEFT or wrapped for distributed
            training).
        batch: `prompt_ids` and `prompt_mask` [B, P], padded on the LEFT; `completion_ids` and `completion_mask`
            [B, T], padded on the RIGHT. Other entries are ignored.
        overwrite_logits: see `selected_logprobs`; saves memory if one backward pass follows, as in training.
        temperature: logits are divided by it, as in sampling.

    Returns:
        [B, T] float32; 0 at padding.
    """
    completion_mask = batch["completion_mask"].bool()
    targets = batch["completion_ids"][completion_mask]
    if targets.numel() * _vocabulary(model) > _most_logits(targets) and head_is_last(model):
        logprobs = _in_parts(model, batch, targets, temperature)
    else:
        logits = completion_logits(model, batch)
        logits = logits if temperature == 1 else logits / temperature
        logprobs = selected_logprobs(logits, targets, overwrite_logits)
    return torch.zeros(completion_mask.shape, device=logprobs.device).masked_scatter(completion_mask, logprobs)


def _in_parts(model: nn.Module, batch: Mapping[str, Tensor], targets: Tensor, temperature: float) -> Tensor:
    """[N] log-probabilities, the head some positions at a time; its logits are computed again for the gradient."""
    inputs = inputs_of(model, batch)
    with head_sees_only(model, inputs.predicting, inputs.width, run_on=1) as captured:
        model(**inputs.arguments, use_cache=False)
    head, hidden = output_head(model), captured["hidden"][0]

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden)
        return selected_logprobs(logits if temperature == 1 else logits / temperature, targets, overwrite_logits=True)

    size = max(1, _most_logits(targets) // (8 * _vocabulary(model)))
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces])


def _most_logits(tensor: Tensor) -> int:
    return MOST_LOGITS.get(tensor.device.type, MOST_LOGITS["cuda"])


def head_is_last(model: Any) -> bool:
    """Whether a model's logits are what its head gives, without a cap or a scale; so that the head can run alone.

    Found once for every model, by a pass over a few tokens. Never of weights that lie in parts on several processes:
    those of the head are whole inside the model's own pass alone.
    """
    inner = getattr(model, "module", model)
    if inner not in _last:
        given: list[Tensor] = []
        keep = output_head(model).register_forward_hook(lambda _, __, output: given.append(output))
        ids = torch.arange(min(_TRIED, _vocabulary(model)), device=next(inner.parameters()).device)[None]
        with keep, torch.no_grad():
            logits = inner(**inputs_of_prompts(inner, ids).arguments, use_cache=False).logits
        _last[inner] = not is_sharded(model) and torch.equal(given[-1].to(logits.dtype), logits)
    return _last[inner]


def completion_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """[N, V] logits of the N completion tokens of a batch in the aligned layout, row by row."""
    inputs = inputs_of(model, batch)
    with head_sees_only(model, inputs.predicting, inputs.width):
        return model(**inputs.arguments, use_cache=False).logits.flatten(0, 1)


@contextlib.contextmanager
def head_sees_only(model: Any, positions: Tensor, width: int, run_on: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Inside, the model's head gets only the hidden states at `positions` of [B L], L = `width`: logits [1, N, V].

    `run_on`: it runs on so many of them alone.

    Of the last forward these are `captured["hidden"]` [1, N, H]. The model's own forward runs around it, so that what
    it does to logits (soft caps, scales) and its wrappers (PEFT, DDP, FSDP) stay in force.
    """
    captured: dict[str, Tensor] = {}

    def gather(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        states = of_tokens(model, inputs[0])
        if states.shape[1] != width:
            raise UserError(
                f"the head of {type(model).__name__} gets {states.shape[1]} positions for {width} tokens: such a model "
                "or adapter cannot be trained or scored here"
            )
        captured["hidden"] = states.flatten(0, 1)[positions].unsqueeze(0)
        return captured["hidden"][:, :run_on]

    with output_head(model).register_forward_pre_hook(gather):
        yield captured


def output_head(model: Any) -> nn.Module:
    """The layer that makes logits; UserError for a model that has none."""
    head = getattr(model, "module", model).get_output_embeddings()
    if head is None:
        raise UserError(f"{type(model).__name__} has no output embeddings: it is no language model")
    return head


def _vocabulary(model: Any) -> int:
    """How many logits a position gets."""
    weight: Any = output_head(model).weight
    return int(weight.shape[0])


def of_tokens(model: Any, states: Tensor) -> Tensor:
    """[B, V + L, H] -> [B, L, H]: without the V virtual tokens of an adapter."""
    return states[:, virtual_tokens(model) :]


def virtual_tokens(model: Any) -> int:
    """How many positions an adapter puts before the text: prompt tuning and its like.

    Prefix tuning adds keys and values in place of positions.
    """
    adapter = getattr(getattr(model, "module", model), "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning or adapter.peft_type == "PREFIX_TUNING":
        return 0
    return adapter.num_virtual_tokens


def selected_logprobs(logits: Tensor, targets: Tensor, overwrite_logits: bool = False) -> Tensor:
    """log softmax(logits)[targets] in float32: [N, V] and [N] -> [N].

    With `overwrite_logits` the gradient is written over the logits, so that one array of their size is held and not
    two. Autograd then stops any other backward pass that needs them, a second one included, with an error.
    """
    return _SelectedLogprobs.apply(logits, targets, overwrite_logits)


class _SelectedLogprobs(torch.autograd.Function):
    """Keeps only the logits between the passes; log_softmax and gather under autograd keep three such arrays."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, overwrite: bool) -> Tensor:
        parts = zip(*_chunks(logits, targets), strict=True)
        found = [rows.log_softmax(-1, dtype=torch.float32).gather(1, y[:, None]) for rows, y in parts]
        ctx.save_for_backward(logits, targets)
        ctx.overwrite = overwrite
        return torch.cat(found).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        gradient = logits if ctx.overwrite else torch.empty_like(logits)
        for rows, y, weight, out in zip(*_chunks(logits, targets, -gradients[0], gradient), strict=True):
            # d log softmax(z)_y / dz = onehot(y) - softmax(z)
            probabilities = rows.softmax(-1, dtype=torch.float32)
            probabilities.scatter_add_(1, y[:, None], probabilities.new_full((len(y), 1), -1.0))
            torch.mul(probabilities, weight[:, None], out=out)
        return gradient, None, None


def _chunks(logits: Tensor, *columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Logits and columns of as many rows in views of a few rows each, which hold `CHUNK_ELEMENTS` logits."""
    elements = CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS["cuda"])
    return [column.split(max(1, elements // logits.shape[1])) for column in (logits, *columns)]
