"""Small encoder-decoders with random weights, and what transformers itself makes of a row."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

_SIZES = {
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    },
}  # fmt: skip
_SIZES["mt5"], _SIZES["marian"], _SIZES["pegasus"] = _SIZES["t5"], _SIZES["bart"], _SIZES["bart"]


def settings(kind: str) -> dict[str, Any]:
    """`model.config` of a recipe."""
    return {"model_type": kind} | _SIZES[kind]


def tiny(kind: str, tokenizer: Any, **changed: Any) -> Any:
    """The start of its decoder is the end of sequence, as BART's."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    special |= {"vocab_size": len(tokenizer), "decoder_start_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**(settings(kind) | special | changed))
        return AutoModelForSeq2SeqLM.from_config(config).eval()


def plainly(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """The definition: one row alone, its completion as `labels`, the loss of each token."""
    labels = torch.tensor([row["completion_ids"]])
    logits = model(input_ids=torch.tensor([row["prompt_ids"]]), labels=labels).logits
    return -torch.nn.functional.cross_entropy(logits[0].float(), labels[0], reduction="none")
