"""The advantage of a completion, and the rows it leaves over (A-LoL, arXiv 2305.14718, section 3)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def advantage(reward: Float[Tensor, " rows"], value: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """How much better a completion is than the reference's average for its prompt.

    A(x, y) = R(x, y) - V(x)                                       (A-LoL, section 3.1)

    Rows without a reward (NaN) keep a NaN advantage.
    """
    return reward - value


def leftover_mask(advantage: Float[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
    """True for the rows an A-LoL policy trains on: A > 0. A NaN advantage is not left over."""
    return torch.nan_to_num(advantage, nan=-1.0) > 0
