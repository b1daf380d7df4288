"""OpenAssistant's GPT-NeoX reward models (model type gpt_neox_reward_model), without their code.

Their layout, from `model/model_training/models/reward_model.py` of github.com/LAION-AI/Open-Assistant: a GPT-NeoX
decoder under the keys `gpt_neox.*`, one linear output with a bias under `out_proj.*`, and `pooling` in the config.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXModel, GPTNeoXPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from leftover.errors import UserError

MODEL_TYPE = "gpt_neox_reward_model"
POOLINGS = ("last", "mean")


class NeoXRewardModel(GPTNeoXPreTrainedModel):
    """transformers' GPT-NeoX decoder and a linear output of its pooled last hidden states, one logit a row.

    `config.pooling` is `last` (the last attended position) or `mean` (of all attended positions).
    """

    def __init__(self, config: GPTNeoXConfig):
        super().__init__(config)
        self.gpt_neox = GPTNeoXModel(config)
        self.out_proj = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        hidden = self.gpt_neox(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        pooled = pool_attended(hidden, attention_mask, self.config.pooling)
        return SequenceClassifierOutput(logits=self.out_proj(pooled))


def pool_attended(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Hidden states [B, L, H] under a mask [B, L] -> [B, H]: the last attended position, or the mean of them."""
    if pooling == "last":
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        last = (attention_mask * positions).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    mask = attention_mask[..., None].float()  # half precision could not hold the sum
    return ((hidden.float() * mask).sum(1) / mask.sum(1)).to(hidden.dtype)


def make_config(fields: dict[str, Any]) -> GPTNeoXConfig:
    """The decoder's config from the fields of a published config.json. Raises UserError for an unknown pooling."""
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures", "auto_map")}
    pooling = fields.pop("pooling", None) or "last"  # as published: the default, also if it is null
    if pooling not in POOLINGS:
        raise UserError(f"pooling '{pooling}' in its config is not one of {', '.join(POOLINGS)}")
    config = GPTNeoXConfig(**(fields | {"num_labels": 1}))
    config.pooling = pooling
    return config
