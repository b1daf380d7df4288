"""The paper's value head: attention pooling with a learned query over the hidden states of the prompt."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leftover.data.collate import pad
from leftover.errors import UserError

_BATCH = 64


class ValueHead(nn.Module):
    """V(x) from the reference's last hidden states (A-LoL, arXiv 2305.14718, section 3.2).

    Multi-head attention with one learned query pools the prompt's positions; a linear layer gives the value.
    Padding is masked on whichever side it stands, so V(x) does not depend on the batch x comes in. There is no
    dropout and no squashing.

    `ValueHead(hidden_size)(hidden[B, L, H], mask[B, L]) -> [B]`
    """

    def __init__(self, hidden_size: int, num_heads: int | None = None):
        super().__init__()
        num_heads = num_heads or next(n for n in (8, 4, 2, 1) if hidden_size % n == 0)
        self.query = nn.Parameter(torch.randn(1, 1, hidden_size) / hidden_size**0.5)
        self.norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Equal to `self.attention` with the learned query, at O(L H heads) in place of O(L H^2).

        With one query the key projection can be applied to it instead of to every position, and the value projection
        to the pooled states. The keys' bias adds the same to every position's score, which softmax ignores.
        """
        states = self.norm(hidden)
        heads, width = self.attention.num_heads, self.attention.head_dim
        query_weight, key_weight, value_weight = self.attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.attention.in_proj_bias.chunk(3)
        query = F.linear(self.query.flatten(), query_weight, query_bias).view(heads, width)
        probe = torch.einsum("nd,ndh->nh", query, key_weight.view(heads, width, -1)) / width**0.5
        scores = (states @ probe.T).masked_fill(~mask.bool().unsqueeze(-1), float("-inf"))
        pooled = scores.softmax(1).transpose(1, 2) @ states  # [B, heads, H]
        values = torch.einsum("bnh,ndh->bnd", pooled, value_weight.view(heads, width, -1)).flatten(1) + value_bias
        return self.output(self.attention.out_proj(values)).squeeze(-1)


def fit_head(
    hidden: Sequence[Tensor],
    targets: np.ndarray,
    held_out: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    patience: int = 5,
) -> tuple[ValueHead, int]:
    """Fit a head on cached hidden states; the epoch is the best on the held-out targets.

    Args:
        hidden: N tensors [L_i, H].
        targets: [N] mean reward of each prompt.
        held_out: [N] bool; these prompts stop the training and do not train.
        patience: epochs without a better held-out error after which it stops.

    Returns:
        The head at its best epoch, and that epoch (0: before any training).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = ValueHead(hidden[0].shape[-1])
        nn.init.zeros_(head.output.weight)
        nn.init.constant_(head.output.bias, float(targets[~held_out].mean()))
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate)
        train, rest = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        best, best_error, best_epoch = deepcopy(head.state_dict()), _error(head, hidden, targets, rest), 0
        for epoch in range(1, epochs + 1):
            order = train[torch.randperm(len(train)).numpy()]
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                loss = (head(*_stack([hidden[i] for i in chosen])) - torch.tensor(targets[chosen]).float()).square()
                if not bool(loss.isfinite().all()):
                    raise UserError(
                        f"value: the attention head's loss is {float(loss.mean())} in epoch {epoch}: lower "
                        f"value.head_learning_rate ({learning_rate:g}), or leave `head` out of value.candidates; its "
                        f"targets, mean rewards of prompts, go from {targets.min():g} to {targets.max():g}"
                    )
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
            error = _error(head, hidden, targets, rest)
            if error < best_error:
                best, best_error, best_epoch = deepcopy(head.state_dict()), error, epoch
            elif epoch - best_epoch >= patience:
                break
    head.load_state_dict(best)
    return head.eval(), best_epoch


@torch.inference_mode()
def predict_head(head: ValueHead, hidden: Sequence[Tensor]) -> np.ndarray:
    """V of every prompt, [N] float64."""
    parts = [head(*_stack(hidden[start : start + _BATCH])) for start in range(0, len(hidden), _BATCH)]
    return torch.cat(parts).numpy().astype(np.float64)


def _stack(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mask, _ = pad([[1.0] * len(s) for s in states], 0, dtype=torch.bool)
    return nn.utils.rnn.pad_sequence(list(states), batch_first=True), mask


def _error(head: ValueHead, hidden: Sequence[Tensor], targets: np.ndarray, rows: np.ndarray) -> float:
    return float(np.square(predict_head(head, [hidden[i] for i in rows]) - targets[rows]).mean())
