"""The memory of a model's passes, measured by running them on tensors without data."""

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from leftover.models.load import architecture_of, disable_dropout, is_encoder_decoder, unwrapped, with_adapter
from leftover.models.logprobs import head_sees_only, selected_logprobs
from leftover.recipe.sections import LoraSection
from leftover.runs.models import adapter_config

log = logging.getLogger(__name__)

# Attention without a mask, as a causal model computes it for rows from position 0 (`leftover.models.logprobs`). On
# tensors without data transformers cannot see that no mask is needed, and would make one.
_UNMASKED = "leftover_unmasked"


def skeleton(
    config: PretrainedConfig, lora: LoraSection | None, dtype: torch.dtype, attn_implementation: str | None = None
) -> Any:
    """The language model of a config on the meta device, with the recipe's adapter if there is one.

    Its attention is PyTorch's fused one, whose memory is that of the flash kernels too, unless the recipe says eager.
    """
    AttentionInterface.register(_UNMASKED, _attention)
    AttentionMaskInterface.register(_UNMASKED, lambda *args, **options: None)
    architecture = architecture_of(config)
    attention = "eager" if attn_implementation == "eager" else _UNMASKED
    with torch.device("meta"):
        try:
            model = architecture.from_config(config, dtype=dtype, attn_implementation=attention)
        except KeyError:  # GPT-J and others have a list of their own
            model = architecture.from_config(config, dtype=dtype, attn_implementation="eager")
        if lora is None:
            return model
        return with_adapter(model, adapter_config(lora, is_encoder_decoder(config)))


def _attention(*args: Any, softcap: float | None = None, **options: Any) -> Any:
    """PyTorch's attention, without the soft cap of Gemma 2, which it refuses and which kernels hold no memory for."""
    return sdpa_attention_forward(*args, **options)


class Traced:
    """A model whose passes allocate nothing and are counted. Takes the skeleton over."""

    def __init__(self, model: Any):
        self.model, self.mode = model, FakeTensorMode()
        with self.mode:
            model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        base = unwrapped(model)
        base.tie_weights()
        disable_dropout(model)

    def training_step(
        self,
        rows: int,
        tokens: int,
        completion_tokens: int,
        *,
        checkpointing: bool | dict[str, Any] | str = False,
        compute_dtype: str | None = None,
        accumulated: bool = False,
    ) -> int:
        """Bytes of all that a forward and a backward pass hold at their peak, beside weights and optimizer states.

        Args:
            tokens: fed to the model, a row; completion_tokens: of them with logits, a row.
            checkpointing: of gradients; True, or options as transformers takes them.
            accumulated: the gradients of earlier micro-batches are held from the start.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        self._set_checkpointing(checkpointing)
        with self.mode:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if accumulated else None
            with Live(self.model) as live:
                self._logprobs(rows, tokens, completion_tokens, compute_dtype).sum().backward()
        for parameter in trained:
            parameter.grad = None
        return live.peak

    def forward(self, rows: int, tokens: int, completion_tokens: int, compute_dtype: str | None = None) -> int:
        """Bytes that a pass without gradients holds at its peak, beside the weights."""
        self.model.eval()
        self._set_checkpointing(False)
        with self.mode, torch.no_grad(), Live(self.model) as live:
            self._logprobs(rows, tokens, completion_tokens, compute_dtype)
        return live.peak

    def _logprobs(self, rows: int, tokens: int, completion_tokens: int, compute_dtype: str | None) -> Tensor:
        """What `leftover.models.logprobs.completion_logprobs` does once the batch is joined."""
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        positions = torch.zeros(rows * completion_tokens, dtype=torch.int64)
        dtype = None if compute_dtype is None else getattr(torch, compute_dtype)
        with head_sees_only(self.model, positions, tokens), torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = self.model(input_ids=ids, use_cache=False).logits
        if dtype is not None:
            logits = logits.float()  # as accelerate does for the outputs of a model under autocast
        return selected_logprobs(logits.flatten(0, 1), torch.zeros_like(positions), True)

    def _set_checkpointing(self, asked: bool | dict[str, Any] | str) -> None:
        model, name = self.model, checkpointing_name(self.model)
        adapter = hasattr(model, "get_base_model")
        getattr(model, f"{name}_disable")()
        if adapter:
            model.disable_input_require_grads()
        if asked:
            getattr(model, f"{name}_enable")(**{f"{name}_kwargs": None if asked is True else asked})
        if asked and adapter:  # frozen embeddings give no gradient to hold on to
            model.enable_input_require_grads()


def checkpointing_name(model: Any) -> str:
    """What checkpointing of gradients is called in names of a model's methods; another word since transformers 5.23."""
    return "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, beside weights and buffers: `now`, and `peak` over time.

    torch.distributed._tools.MemTracker finds the same peaks. But its hooks refuse the frozen weights under an
    adapter, and a step of Llama 7B takes it 14 minutes, and this 15 seconds.
    """

    def __init__(self, model: Any):
        super().__init__()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        known = [*model.parameters(), *model.buffers(), *gradients]
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = sum(gradient.nbytes for gradient in gradients)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def try_to_trace(measured: Callable[..., int], *args: object) -> int | None:
    """What `measured` gives; None if a pass cannot be traced."""
    try:
        return measured(*args)
    except Exception as error:  # a model's own code may look at values, which tensors without data have not
        log.debug("the model's passes cannot be traced", exc_info=error)
        return None
