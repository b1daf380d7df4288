"""The weights that a model has now, as vLLM takes them: whole in a folder, an adapter beside its base."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leftover.models.load import is_encoder_decoder, unwrapped
from leftover.monitoring.ranks import is_sharded
from leftover.store.sealed import digest

# What vLLM takes; it holds room for this rank of every adapter.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# What else an adapter may have and vLLM does not know.
_UNKNOWN = (
    "modules_to_save", "use_dora", "lora_bias", "layer_replication", "trainable_token_indices",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "target_parameters",
)  # fmt: skip
# Starts of an adapter that change nothing but the adapter.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Weights:
    """A model and what tells its weights from others'. `base`, `adapter`: hashes; no adapter: None."""

    model: Any
    base: str
    adapter: str | None
    rank: int  # room for the adapter, one of `RANKS`; 0 without one

    @classmethod
    def of(cls, model: Any) -> "Weights":
        base = fingerprint(_base_weights(model))
        config = active_adapter(model)
        if config is None:
            return cls(model, base, None, 0)
        settings = {name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora", "rank_pattern")}
        adapter = digest([settings, str(config.alpha_pattern), fingerprint(_adapter_weights(model)), base])
        return cls(model, base, adapter, next(rank for rank in RANKS if rank >= _rank(config)))

    def write_base(self, folder: Path) -> None:
        """The model without its adapter, for `from_pretrained`."""
        inner = unwrapped(self.model)
        inner.save_pretrained(folder, state_dict=dict(_base_weights(self.model)))
        inner.generation_config.save_pretrained(folder)

    def write_adapter(self, folder: Path) -> Path:
        """Its adapter, as peft saves it; returns the folder that holds it."""
        name = self.model.active_adapter
        self.model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        return folder if name == "default" else folder / name


def unsupported(model: Any) -> str | None:
    """Why vLLM cannot be given these weights; None if it can."""
    inner = unwrapped(model)
    if is_encoder_decoder(inner):
        return "it is an encoder-decoder"
    if is_sharded(model):
        return "its weights lie in parts with several processes"
    if getattr(inner, "hf_quantizer", None) is not None:
        return "its weights are quantised"
    if getattr(inner.config, "auto_map", None):
        return "it has code of its own"
    if not hasattr(model, "peft_config"):
        return None
    if inner is model:
        return "its adapter is not peft's PeftModel"
    if len(model.active_adapters) != 1:
        return "several of its adapters are active"
    config = model.peft_config[model.active_adapter]
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        return f"its adapter is no LoRA but {getattr(config.peft_type, 'value', config.peft_type)}"
    if any(getattr(module, "merged", False) for module in inner.modules()):
        return "its adapter is merged into the weights"
    if named := [name for name in _UNKNOWN if getattr(config, name, None)]:
        return f"its adapter has {', '.join(named)}"
    if config.bias != "none":
        return "its adapter trains biases"
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in _PLAIN_STARTS:
        return f"its adapter began with init_lora_weights: {config.init_lora_weights}"
    if _rank(config) > RANKS[-1]:
        return f"the rank of its adapter is above {RANKS[-1]}"
    return None


def active_adapter(model: Any) -> Any:
    """The peft config of the adapter that is on; None without one, or inside `disable_adapter`."""
    if not hasattr(model, "peft_config"):
        return None
    if any(getattr(module, "disable_adapters", False) is True for module in unwrapped(model).modules()):
        return None
    return model.peft_config[model.active_adapter]


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, shapes and sums of the bits of weights: it is found where the weights are.

    A training step changes the bits of many weights, and so the sums.
    """
    return digest([[name, list(weight.shape), str(weight.dtype), *_bit_sums(weight)] for name, weight in weights])


def _bit_sums(weight: Tensor) -> list[int]:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.detach().contiguous().flatten().view(kinds[weight.element_size()])
    return [int(bits.sum(dtype=torch.int64)), int(bits[::2].sum(dtype=torch.int64))]


def _base_weights(model: Any) -> list[tuple[str, Tensor]]:
    """Names as without an adapter -> weights."""
    inner = unwrapped(model)
    left_out = set(inner._keys_to_ignore_on_save or ())
    prefix = None if inner is model else model.base_model.prefix  # of the adapter's own weights
    return [
        (name.replace(".base_layer.", "."), weight)
        for name, weight in inner.state_dict().items()
        if name not in left_out and not (prefix and prefix in name)
    ]


def _adapter_weights(model: Any) -> list[tuple[str, Tensor]]:
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    return sorted(found.items())


def _rank(config: Any) -> int:
    return max([config.r, *(config.rank_pattern or {}).values()])
