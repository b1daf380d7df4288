"""The only place where logits become log-probabilities."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that learned positions (GPT-2) do not shift with left padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def completion_logprobs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """log pi(y_t | x, y_<t) of every completion token, in the aligned layout.

    Args:
        model: a causal language model of transformers (bare, PEFT or wrapped for distributed training).
        batch: `prompt_ids` and `prompt_mask` [B, P], padded on the LEFT; `completion_ids` and `completion_mask`
            [B, T], padded on the RIGHT. Other entries are ignored.

    Returns:
        [B, T] float32; 0 at padding. Only the T positions that predict a completion token get logits.
    """
    completion_ids, completion_mask = batch["completion_ids"], batch["completion_mask"].bool()
    # The last completion token is only ever a target, so it is not fed.
    input_ids = torch.cat([batch["prompt_ids"], completion_ids], dim=1)[:, :-1]
    attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[:, :-1].long()
    num_targets = completion_ids.shape[1]
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        logits_to_keep=num_targets,
        use_cache=False,
    ).logits[:, -num_targets:]
    logprobs = -F.cross_entropy(logits.float().transpose(1, 2), completion_ids, reduction="none")
    return logprobs.masked_fill(~completion_mask, 0.0)
