"""Loading, building and saving causal language models and their tokenizers. Nothing is unpickled."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from leftover.errors import UserError

log = logging.getLogger(__name__)

# A plain transcript for base models without a chat template of their own. The generation prompt ends in the colon:
# a space after it would be a token of its own there, and part of the next word's in a whole transcript.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': '\n\nHuman: ', 'assistant': '\n\nAssistant: '}.get(message['role'], '') }}"
    "{{ message['content'].strip() }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def load_tokenizer(path: str, *, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer at `path` (folder or Hub id), with a padding token; `chat_template: plain` names ours."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at '{path}' (key model.tokenizer or model.path): {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer at '{path}' has no end-of-sequence token; set one and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is always masked, never trained on
    tokenizer.chat_template = read_chat_template(chat_template) or tokenizer.chat_template
    return tokenizer


def read_chat_template(setting: str | None) -> str | None:
    """The text of a chat template given as itself, as a file, or as `plain`, which names ours."""
    if setting == "plain":
        return PLAIN_CHAT_TEMPLATE
    if setting is None or "{" in setting:
        return setting
    if not Path(setting).is_file():
        raise UserError(f"model.chat_template '{setting}' is neither 'plain', nor a file, nor a Jinja template")
    return Path(setting).read_text(encoding="utf-8")


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

    `quantization`: further keywords of `from_pretrained` for the base (see `leftover.quantization.nf4_options`).
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
        from leftover.quantization import nf4_options

        return load_model(path, **options, quantization=nf4_options(compute_dtype))
    model = load_model(path, **options)
    return model.to("cuda") if torch.cuda.is_available() else model


def build_model(config: dict[str, Any], tokenizer: Any, *, seed: int, dtype: str = "float32") -> Any:
    """A model with random weights from a config dictionary (`model_type` and its settings)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise UserError("model.config needs 'model_type' (for example: llama)")
    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        model_config = AutoConfig.for_model(model_type, **(defaults | settings))
    except (ValueError, TypeError) as error:
        raise UserError(f"model.config is refused by transformers: {first_line(error)}") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config, dtype=torch_dtype(dtype))


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


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
