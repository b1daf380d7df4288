"""The shape of a model: from its config if that is on this machine, else from the published sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from leftover.commands.dry_run.published_sizes import CONFIGS
from leftover.data.tokenizer import load_tokenizer, num_tokens
from leftover.errors import UserError, not_readable
from leftover.models.load import make_config, unwrapped
from leftover.recipe.sections import ModelSection, TokenizerSection

# 4-bit NormalFloat in blocks of 64 whose scales are 8 bits, in blocks of 256 with a scale of 32 (arXiv 2305.14314).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Shape:
    """Numbers of a model; parameters and their bytes are those of the recipe's dtype, quantisation and adapter."""

    parameters: int
    trainable: int
    trunk: int  # weights that every token is multiplied with: all except embeddings and head
    head: int  # the head's, which completion tokens alone reach
    hidden: int
    layers: int
    vocabulary: int
    key_values: int  # numbers that a token leaves in a layer's cache
    heads_per_key: int  # heads that share a key
    weight_bytes: int
    trainable_bytes: int
    unpacked_bytes: int  # 4-bit weights are unpacked to 16 bits for their product: those of the largest layer

    @property
    def adapter(self) -> int:
        """Trained weights beside frozen ones; 0 if all are trained."""
        return self.trainable if self.trainable < self.parameters else 0


def find_config(model: ModelSection) -> tuple[PretrainedConfig | None, str]:
    """The config of a model and where it comes from; (None, the reason) if it must be downloaded first."""
    if model.path is None:
        return make_config(_vocabulary(model) | (model.config or {})), "model.config"
    try:
        options: dict[str, Any] = {"trust_remote_code": model.remote_code, "local_files_only": True}
        with not_readable(f"the config of '{model.path}' (key model.path) is refused"):
            found = AutoConfig.from_pretrained(model.path, **options)
    except UserError:
        if (Path(model.path) / "config.json").is_file():
            raise
    else:
        return found, "its config"
    for name in (model.path, Path(model.path).name):
        if name in CONFIGS:
            return make_config(CONFIGS[name]), "published sizes"
    return None, f"unknown until '{model.path}' is here"


def _vocabulary(model: ModelSection) -> dict[str, int]:
    """The vocabulary of random weights, if the tokenizer is known here."""
    if isinstance(model.tokenizer, TokenizerSection):
        return {"vocab_size": model.tokenizer.vocab_size}
    if model.tokenizer is not None and Path(model.tokenizer).is_dir():
        return {"vocab_size": num_tokens(load_tokenizer(model.tokenizer, trust_remote_code=model.remote_code))}
    return {}


def measure(model: Any, config: PretrainedConfig, quantised: bool) -> Shape:
    """The shape of a skeleton (see `leftover.commands.dry_run.trace.skeleton`). ValueError for sizes below 1."""
    base = unwrapped(model)
    adapter = {id(p) for name, p in model.named_parameters() if "lora_" in name}
    head = base.get_output_embeddings().weight
    embeddings = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in base.parameters() if id(p) not in adapter]
    # Both kinds of adapter wrap what they adapt; the weight inside is the same tensor.
    layers = [m.weight for m in base.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    packed = {id(w): w.numel() for w in layers if id(w) not in adapter and w is not head} if quantised else {}
    weight_bytes = sum(NF4_BYTES * packed[id(p)] if id(p) in packed else p.nbytes for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    sizes = {"hidden size": text.hidden_size, "layers": text.num_hidden_layers, "vocabulary": head.shape[0]}
    if min(sizes.values()) < 1:
        raise ValueError(f"sizes below 1 ({', '.join(f'{name} {size}' for name, size in sizes.items())})")
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trained),
        trunk=sum(p.numel() for p in parameters if id(p) not in embeddings and p is not head),
        head=head.numel(),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=head.shape[0],
        key_values=2 * head_size * key_heads,
        heads_per_key=heads // key_heads,
        weight_bytes=round(weight_bytes),
        trainable_bytes=sum(p.nbytes for p in trained),
        unpacked_bytes=2 * max(packed.values(), default=0),
    )
