"""Models with random weights, built from a config; and what a training step of them cannot avoid to compute."""

from pathlib import Path
from typing import Any

import torch

HIDDEN, LAYERS, HEADS, FEED_FORWARD = 288, 6, 6, 768
SHAPES: dict[str, dict[str, int]] = {
    "small": {},  # with a vocabulary of 32,000 it would have 15M parameters
    "tiny": {"hidden": 16, "layers": 1, "feed_forward": 32, "heads": 2, "key_value_heads": 2},
    "1b": {
        "hidden": 2048, "layers": 16, "feed_forward": 8192, "heads": 32, "key_value_heads": 8, "positions": 2048,
    },
}  # fmt: skip
PAD = 50_256  # the last token of GPT-2's vocabulary


def build_llama(
    vocabulary: int,
    *,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    feed_forward: int = FEED_FORWARD,
    heads: int = HEADS,
    key_value_heads: int = HEADS,
    positions: int = 1024,
) -> Any:
    """A Llama with its head tied to the embeddings; by default 15M parameters with a vocabulary of 32,000."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=PAD,
            eos_token_id=PAD,
            pad_token_id=PAD,
        )
    )


def write_tiny(folder: str | Path) -> str:
    """A real model's folder, but tiny: random weights, a tokenizer of the demonstration's words, a chat template."""
    from leftover.data.tokenizer import PLAIN_CHAT_TEMPLATE
    from leftover.demo.grammar import make_rows
    from leftover.demo.run import train_tokenizer
    from leftover.models.load import build_model

    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in make_rows(200, seed=0)])
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    model = build_model({"model_type": "llama", **config}, tokenizer, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def training_flops(
    lengths: list[tuple[int, int]],
    vocabulary: int,
    *,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    feed_forward: int = FEED_FORWARD,
    key_value: int = HIDDEN,
) -> float:
    """Floating-point operations that a step on rows of (prompt, completion) tokens cannot avoid.

    Matrix products alone, two operations a multiply-add, forward once and backward twice: the trunk for every fed
    token, causal attention for every pair of tokens, the head for completion tokens.
    """
    trunk = layers * (2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * feed_forward)
    total = 0.0
    for prompt, completion in lengths:
        fed = prompt + completion - 1
        attention = layers * 2 * hidden * fed * (fed + 1) / 2
        total += 2 * (trunk * fed + attention + completion * vocabulary * hidden)
    return 3 * total


def matrix_rate(dtype: torch.dtype, device: str = "cpu", size: int = 1536) -> float:
    """Operations a second of a large square matrix product: the best of some seconds' worth."""
    import time

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(2):
            a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 2)
    return 2 * size**3 / best
