"""The memory of a model's passes, found by running them on tensors that have shapes and no data."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leftover.models.load import disable_dropout
from leftover.models.logprobs import head_sees_only, selected_logprobs

# Attention without a mask, as a causal model computes it for rows from position 0 (`leftover.models.logprobs`). On
# tensors without data transformers cannot see that no mask is needed, and would make one.
_UNMASKED = "leftover_unmasked"


def skeleton(config: Any, lora: Any, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
    """The causal LM of a transformers config on the meta device, with the recipe's adapter where there is one.

    Its attention is PyTorch's fused one, whose memory is that of the flash kernels too, unless the recipe says eager.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_UNMASKED, sdpa_attention_forward)
    AttentionMaskInterface.register(_UNMASKED, lambda *args, **options: None)
    attention = "eager" if attn_implementation == "eager" else _UNMASKED
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            adapter = LoraConfig(
                r=lora.r, lora_alpha=int(lora.alpha), target_modules=lora.target_modules, task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, adapter)
    return model


class Traced:
    """A model without memory, whose passes allocate nothing and are counted. Takes the skeleton over."""

    def __init__(self, model: Any):
        self.model = model
        self.mode = FakeTensorMode()
        with self.mode:
            _fill(model)
        disable_dropout(model)

    def training_step(
        self,
        rows: int,
        tokens: int,
        completion_tokens: int,
        *,
        checkpointing: bool = False,
        checkpointing_options: dict[str, Any] | None = None,
        compute_dtype: str | None = None,
        accumulated: bool = False,
    ) -> int:
        """Bytes of all that a forward and a backward pass hold at their peak, beside weights and optimizer states.

        Args:
            tokens: fed to the model, a row; completion_tokens: of them with logits, a row.
            accumulated: the gradients of earlier micro-batches are held from the start.
        """
        with self.mode:
            self.model.train()
            with self._checkpointing(checkpointing, checkpointing_options):
                trained = [p for p in self.model.parameters() if p.requires_grad]
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter) if accumulated else None
                with _Live(self.model, accumulated) as live:
                    self._logprobs(rows, tokens, completion_tokens, compute_dtype).sum().backward()
            for parameter in trained:
                parameter.grad = None
        return live.peak

    def forward(self, rows: int, tokens: int, completion_tokens: int, compute_dtype: str | None = None) -> int:
        """Bytes that a pass without gradients holds at its peak, beside the weights."""
        with self.mode, torch.no_grad():
            self.model.eval()
            with _Live(self.model, False) as live:
                self._logprobs(rows, tokens, completion_tokens, compute_dtype)
        return live.peak

    def _logprobs(self, rows: int, tokens: int, completion_tokens: int, compute_dtype: str | None) -> Tensor:
        """What `leftover.models.logprobs.completion_logprobs` does once the batch is joined."""
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        positions = torch.zeros(rows * completion_tokens, dtype=torch.int64)
        with head_sees_only(self.model, positions):
            if compute_dtype is None:
                logits = self.model(input_ids=ids, use_cache=False).logits
            else:
                with torch.autocast("cpu", getattr(torch, compute_dtype)):
                    logits = self.model(input_ids=ids, use_cache=False).logits
                logits = logits.float()  # as accelerate does for the outputs of a model under autocast
        return selected_logprobs(logits.flatten(0, 1), torch.zeros_like(positions), True)

    @contextlib.contextmanager
    def _checkpointing(self, on: bool, options: dict[str, Any] | None) -> Iterator[None]:
        if not on:
            yield
            return
        # The name before and since transformers 5.23.
        name = "activation_checkpointing"
        name = name if hasattr(self.model, f"{name}_enable") else "gradient_checkpointing"
        getattr(self.model, f"{name}_enable")(**{f"{name}_kwargs": options})
        adapter = hasattr(self.model, "get_base_model")
        if adapter:  # frozen embeddings give no gradient to hold on to
            self.model.enable_input_require_grads()
        try:
            yield
        finally:
            getattr(self.model, f"{name}_disable")()
            if adapter:
                self.model.disable_input_require_grads()


class _Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, other than weights and buffers: `now`, and `peak` over time."""

    def __init__(self, model: nn.Module, with_gradients: bool):
        super().__init__()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        held = [*model.parameters(), *model.buffers(), *gradients]
        self._known = {tensor.untyped_storage()._cdata for tensor in held}
        self._sizes: dict[int, int] = {}
        self.now = self.peak = sum(gradient.nbytes for gradient in gradients) if with_gradients else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _fill(model: nn.Module) -> None:
    """Replace meta parameters and buffers by ones of the active fake mode; tied ones stay tied."""
    made: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if parameter not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[parameter]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
