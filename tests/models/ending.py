"""A model for tests of generation: random, and one that ends."""

from typing import Any

import torch

from leftover.models.load import align_generation_config, load_model


def ending_model(path: str, tokenizer: Any) -> Any:
    """A random model whose completions end at different places: every eleventh token is an end of sequence."""
    model = load_model(path)
    align_generation_config(model, tokenizer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, len(tokenizer), 11)]
    return model
