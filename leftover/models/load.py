"""Loading, building and saving causal language models and their tokenizers. Nothing is unpickled."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from leftover.errors import UserError, first_line

log = logging.getLogger(__name__)


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    trainable_adapter: bool = True,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """The causal LM at `path`: a folder, a Hub id, or a PEFT adapter's folder (loaded on its own base).

    `quantization`: further keywords of `from_pretrained` for the base (see `leftover.models.load.nf4_options`).
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch_dtype(dtype), "trust_remote_code": trust_remote_code}
    options |= quantization or {}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        if is_adapter(path):
            from peft import PeftConfig, PeftModel

            base = AutoModelForCausalLM.from_pretrained(
                PeftConfig.from_pretrained(path).base_model_name_or_path, **options
            )
            return PeftModel.from_pretrained(base, path, is_trainable=trainable_adapter)
        return AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"no causal language model at '{path}': {first_line(error)}") from error


def load_with(settings: Any, path: str, compute_dtype: str | None = None) -> Any:
    """A model or adapter at `path` as a recipe's `model` section says; on a GPU where there is one."""
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "attn_implementation": settings.attn_implementation,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.quantization:
        from leftover.models.load import nf4_options

        return load_model(path, **options, quantization=nf4_options(compute_dtype))
    model = load_model(path, **options)
    return model.to("cuda") if torch.cuda.is_available() else model


def build_model(config: dict[str, Any], tokenizer: Any, *, seed: int, dtype: str = "float32") -> Any:
    """A model with random weights from a config dictionary (`model_type` and its settings)."""
    from transformers import AutoModelForCausalLM

    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_config = make_config(defaults | config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch_dtype(dtype))


def make_config(settings: dict[str, Any]) -> Any:
    """The transformers config of `model_type` and its settings; UserError for what transformers refuses."""
    from transformers import AutoConfig

    if settings.get("model_type") is None:
        raise UserError("model.config needs 'model_type' (for example: llama)")
    try:
        return AutoConfig.for_model(**settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.config is refused by transformers: {first_line(error)}") from error


def is_adapter(path: str | Path) -> bool:
    """True for a folder that holds a PEFT adapter rather than whole weights."""
    return (Path(path) / "adapter_config.json").is_file()


def torch_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16 by name."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UserError(f"dtype '{name}' is not one of {', '.join(dtypes)}")
    return dtypes[name]


def max_positions(model_config: Any) -> int | None:
    """The longest sequence the model has positions for, where its config says so."""
    text_config = model_config.get_text_config()
    return getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: modules' own (LoRA's among them) and the rates that attention reads when it runs.

    Methods then differ in nothing but their loss, and the importance weight is 1 at step 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextlib.contextmanager
def capture_hidden(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inside the context, `captured['hidden']` holds the decoder's last hidden states [B, L, H] of a forward."""
    captured: dict[str, Tensor] = {}
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(inner, inner.base_model_prefix)
    handle = decoder.register_forward_hook(lambda _, __, output: captured.__setitem__("hidden", output[0]))
    try:
        yield captured
    finally:
        handle.remove()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights (an adapter alone for PEFT models), config, generation config and tokenizer, for `from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True
    model.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)  # which an adapter does not save, and which holds where to stop
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form of a card; leftover/card/ writes one


def align_generation_config(model: Any, tokenizer: Any, ends: Sequence[int] = ()) -> None:
    """Make the model stop where the rows stopped: the tokenizer's end of sequence and `ends` join its own ends."""
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [token for token in dict.fromkeys([tokenizer.eos_token_id, *ends, *known]) if token is not None]
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id, model.config.pad_token_id = config.eos_token_id, tokenizer.pad_token_id


def nf4_options(compute_dtype: str | None) -> dict[str, Any]:
    """Keywords of `from_pretrained` for 4-bit NormalFloat weights with double quantisation.

    Their products are computed in `compute_dtype`, default bfloat16. What is not quantised (embeddings, norms, head)
    keeps the dtype that it is loaded with. The weights are quantised on the device where they stay.
    """
    import torch
    from transformers import BitsAndBytesConfig

    from leftover.models.load import torch_dtype

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(compute_dtype or "bfloat16"),
    )
    # Of several processes each has a GPU of its own; the Trainer moves no quantised model.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}
