"""Loading, building and saving language models and their tokenizers. Nothing is unpickled."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leftover.data.tokenizer import num_tokens
from leftover.errors import UserError, first_line, not_readable, one_line
from leftover.monitoring.ranks import is_main_process, is_sharded
from leftover.monitoring.terminal import adapter_warnings_off
from leftover.recipe.sections import ModelSection
from leftover.store.files import read_json
from leftover.store.folders import readable_weights
from leftover.trust import code_is_allowed

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


def refuse_pickles(path: str | Path) -> None:
    """Refuse a folder whose only weights are a pickle, which may run code when it is read; `--allow-code` reads it."""
    found = [] if code_is_allowed() or not Path(path).is_dir() else sorted(Path(path).iterdir())
    names = {file.name for file in found}
    pickle = re.compile(r"(pytorch_model|adapter_model|model).*\.(bin|pt|pth|ckpt|index\.json)")
    weights = sorted(filter(pickle.match, names))
    whole = {f"{name}.safetensors{end}" for name in ("model", "adapter_model") for end in ("", ".index.json")}
    if weights and not names & whole:  # which transformers and peft take first
        raise UserError(
            f"the weights of '{path}' are a pickle ({weights[0]}), which may run code when it is read: where you trust "
            "it, load and save it once with transformers (`save_pretrained`), or add --allow-code"
        )


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """The causal LM or encoder-decoder at `path`: a folder, a Hub id, or a PEFT adapter's folder (loaded on its base).

    `quantization`: further keywords of `from_pretrained` for the base (see `nf4_options`).
    """
    from transformers import AutoConfig

    options = {"dtype": torch_dtype(dtype), "trust_remote_code": trust_remote_code, **(quantization or {})}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    with not_readable(f"no language model at '{path}'"):
        base = base_path(path)
        for folder in (path, base):
            refuse_pickles(folder)
        architecture = architecture_of(AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code))
        with not_in_parts():
            loaded: Any = architecture.from_pretrained(base, **options, output_loading_info=True)
        model, info = loaded
        _refuse_missing(base, info["missing_keys"])
        if info["unexpected_keys"]:
            log.warning("'%s' has weights that this model does not use: %s", base, _some(info["unexpected_keys"]))
        if base == path:
            return model
        from peft import PeftConfig, PeftModel

        # peft trains none with virtual tokens any further.
        trainable = not PeftConfig.from_pretrained(path).is_prompt_learning
        try:
            with adapter_warnings_off():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                return PeftModel.from_pretrained(model, path, is_trainable=trainable)
        except UserWarning as error:
            raise UserError(f"the adapter at '{path}' lacks weights: {one_line(error, 300)}") from error


def _refuse_missing(path: str, names: Iterable[str]) -> None:
    """transformers gives random numbers to weights that a folder lacks."""
    if missing := sorted(names):
        raise UserError(
            f"'{path}' lacks weights: {_some(missing)}: put back whole files, or a config.json that asks for no more"
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load_with(settings: ModelSection, path: str, compute_dtype: str | None = None) -> Any:
    """A model or adapter at `path` with the settings of a recipe's `model` section; on a GPU if there is one."""
    model = load_model(
        path,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.remote_code,
        quantization=nf4_options(compute_dtype) if settings.quantization else None,
    )
    return model.to("cuda") if torch.cuda.is_available() and not settings.quantization else model


def build_model(
    config: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", *, seed: int, dtype: str = "float32"
) -> Any:
    """A model with random weights from a config dictionary (`model_type` and its settings)."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if is_encoder_decoder(make_config(config)):
        # As BART's decoder begins. The embedding of T5's start, the padding, is one that BART does not train.
        special["decoder_start_token_id"] = tokenizer.eos_token_id
    return random_model(make_config({"vocab_size": num_tokens(tokenizer)} | special | config), seed=seed, dtype=dtype)


def random_model(config: "PreTrainedConfig", *, seed: int = 0, dtype: str = "float32") -> Any:
    """The causal LM or encoder-decoder of a config with random weights."""
    try:
        with seeded(seed), not_in_parts():
            return architecture_of(config).from_config(config, dtype=torch_dtype(dtype))
    except Exception as error:  # and torch another
        kind = config.model_type
        raise UserError(f"model.config: no {kind} can be made of these sizes: {one_line(error, 200)}") from error


@contextlib.contextmanager
def not_in_parts() -> Iterator[None]:
    """Inside, models are made whole on every process.

    After a training under ZeRO-3 transformers would part them all, and only what trains has the hooks that gather it.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref  # no public name tells it
    config = reference and reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def add_adapter(model: Any, config: "PeftConfig", *, seed: int) -> Any:
    """`model` with a new adapter, whose initial weights follow the seed."""
    with seeded(seed):
        return with_adapter(model, config)


def with_adapter(model: Any, config: "PeftConfig") -> Any:
    """`model` with a new adapter. Raises UserError if it has no such layers."""
    from peft import get_peft_model

    try:
        with adapter_warnings_off():
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"model.lora.target_modules: {first_line(error)}") from error


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws by the seed; afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def make_config(settings: dict[str, Any]) -> Any:
    """The transformers config of `model_type` and its settings; UserError for what transformers refuses."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    if settings.get("model_type") is None:
        raise UserError("model.config needs 'model_type' (for example: llama)")
    try:
        config = AutoConfig.for_model(**settings)
    except Exception as error:  # transformers raises a different type for every cause
        raise UserError(f"model.config is refused by transformers: {one_line(error, 200)}") from error
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if is_encoder_decoder(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        kind = "encoder-decoder that writes text" if is_encoder_decoder(config) else "causal language model"
        raise UserError(f"model.config: '{config.model_type}' has no {kind}: take llama, gpt2 or t5")
    return config


def is_adapter(path: str | Path) -> bool:
    """True for a folder that holds a PEFT adapter rather than whole weights."""
    return (Path(path) / "adapter_config.json").is_file()


def base_path(path: str) -> str:
    """The model that an adapter's folder names as its base; a model's own path as it is.

    Raises UserError if it names none, or an adapter.
    """
    if not is_adapter(path):
        return path
    config = Path(path) / "adapter_config.json"
    content = read_json(config)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not base or not isinstance(base, str) or is_adapter(base):
        raise UserError(
            f"{config} has to name the whole model that the adapter was trained on, as base_model_name_or_path, and "
            f"has {base!r:.80}: write its path or Hub id there"
        )
    return base


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model (bare, PEFT or wrapped), or the model of a config, reads prompts with an encoder of its own."""
    model = getattr(model, "module", model)
    return bool(getattr(getattr(model, "config", model), "is_encoder_decoder", False))


def architecture_of(config: Any) -> Any:
    """The class of transformers that makes the model of a config."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def reads_two_texts(section: ModelSection) -> bool:
    """`is_encoder_decoder` of the model that a recipe names; no weights are read. False where there is none."""
    from transformers import AutoConfig

    if section.path is None:
        return is_encoder_decoder(make_config(section.config or {}))
    try:
        return is_encoder_decoder(
            AutoConfig.from_pretrained(base_path(section.path), trust_remote_code=section.remote_code)
        )
    except (OSError, ValueError):  # said where the model is loaded
        return False


def start_token(model: Any) -> int:
    """The token that the decoder of an encoder-decoder begins with."""
    inner = unwrapped(getattr(model, "module", model))
    for config in (inner.config, inner.generation_config):
        if (token := getattr(config, "decoder_start_token_id", None)) is not None:
            return int(token)
    raise UserError(
        f"{type(inner).__name__} has no decoder_start_token_id, with which its decoder begins: set it in its "
        "config.json (of T5 it is the pad_token_id)"
    )


def torch_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16 by name."""
    if name not in (dtypes := ("float32", "bfloat16", "float16")):
        raise UserError(f"dtype '{name}' is not one of {', '.join(dtypes)}")
    return getattr(torch, name)


def max_positions(model_config: "PreTrainedConfig") -> int | None:
    """The longest sequence that the model has positions for; None if its config does not limit it.

    Of an encoder-decoder: the longest prompt, and the longest completion.
    """
    text_config = model_config.get_text_config()
    if is_encoder_decoder(text_config) and hasattr(text_config, "relative_attention_num_buckets"):
        return None  # T5 counts distances; the n_positions in its folders is the length that it was trained at
    return getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: of modules (LoRA's among them), and the rates that attention reads when it runs.

    Methods then differ in nothing but their loss, and the importance weight is 1 at step 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def unwrapped(model: Any) -> Any:
    """The model under an adapter; a model without one as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merged(model: Any) -> Any:
    """The base with its adapter's changes in its own weights.

    Where input and output embeddings are one tensor and the adapter changes one of them, they are parted first: the
    change would reach both. UserError for an adapter that is no change of weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        raise UserError(
            f"a {model.active_peft_config.peft_type.value} adapter changes no weights and cannot be merged: export "
            "without --merge"
        )
    inner = unwrapped(model)
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    layers = [getattr(end, "base_layer", end) for end in ends]
    if layers[0].weight is layers[1].weight and any(isinstance(end, BaseTunerLayer) for end in ends):
        layers[1].weight = nn.Parameter(layers[1].weight.detach().clone(), requires_grad=False)
        for config in (inner.config, inner.config.get_text_config()):
            config.tie_word_embeddings = False
    with adapter_warnings_off():
        return merge()


def whole_weights(model: Any, accelerator: "Accelerator") -> dict[str, Any] | None:
    """The weights of a model of which each process holds a part, on the first; None for one that each holds whole.

    All processes have to call it.
    """
    if not is_sharded(model):
        return None
    if any(type(p).__name__ == "DTensor" for p in model.parameters()):  # FSDP2, by accelerate or by hand
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        tied = getattr(unwrapped(model), "all_tied_weights_keys", {})
        return {name: value for name, value in whole.items() if name not in tied}  # else both would be stored
    engine = accelerator.deepspeed_engine_wrapped  # of ZeRO-3, the only one that gathers
    return accelerator.get_state_dict(model if engine is None else engine.engine)


@contextlib.contextmanager
def root_in_place(model: Any) -> Iterator[None]:
    """Inside, the outermost weights of a model that FSDP2 shards are whole on each process.

    `generate` of an adapter, and finding its trunk, call the model inside it, past the hooks that gather these.
    """
    if not hasattr(model, "unshard") or not is_sharded(model):
        yield
        return
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    arguments = {"input_ids": token} | ({"decoder_input_ids": token} if is_encoder_decoder(model) else {})
    with torch.no_grad():
        model(**arguments)  # the first pass decides which module is the outermost
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def save_model(
    model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Write weights (of PEFT models the adapter), config, generation config and tokenizer, for `from_pretrained`.

    Of several processes the first writes. `weights`: of a sharded model (`whole_weights`).
    """
    if not is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=weights)
    model.generation_config.save_pretrained(folder)  # with the ends of a completion; adapters do not save it
    readable_weights(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a card; leftover/publish/card/ writes one


def align_generation_config(model: Any, tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int] = ()) -> None:
    """Make the model stop where the rows stop: the tokenizer's end of sequence and `ends` join its own ends."""
    config = model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [token for token in dict.fromkeys([tokenizer.eos_token_id, *ends, *known]) if token is not None]
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id
    if config.forced_eos_token_id is not None:  # BART has one, whatever the tokenizer
        config.forced_eos_token_id = config.eos_token_id
    model.config.eos_token_id, model.config.pad_token_id = config.eos_token_id, tokenizer.pad_token_id


def nf4_options(compute_dtype: str | None) -> dict[str, Any]:
    """Keywords of `from_pretrained` for 4-bit NormalFloat weights with double quantisation.

    Their products are computed in `compute_dtype`, default bfloat16; embeddings, norms and head are not quantised. The
    weights are quantised on the device where they stay.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(compute_dtype or "bfloat16"),
    )
    # Each of several processes has its own GPU; the Trainer moves no quantised model.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}
