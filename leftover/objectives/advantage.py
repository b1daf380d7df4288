"""The advantage of a completion, and the rows it leaves over (A-LoL, arXiv 2305.14718, section 3.1)."""

from typing import TypeVar

import numpy as np
from torch import Tensor

Numbers = TypeVar("Numbers", np.ndarray, Tensor)

# A difference of two numbers that is smaller than this share of them is rounding: the running sum of a million tenths
# is off by 1.3e-11 of itself, a step of float32 is 6e-8.
ROUNDING = 1e-10


def beyond_rounding(difference: Numbers, size: Numbers) -> Numbers:
    """The difference, exactly 0 where it is rounding: |difference| <= 1e-10 |size|; every other number as it is.

    Args:
        size: of the numbers that were subtracted or summed, of any shape that fits.
    """
    rounding = abs(difference) <= ROUNDING * abs(size)
    return difference * ~rounding + 0.0  # which turns -0 into 0


def spread(numbers: np.ndarray) -> float:
    """The population standard deviation of [N]; exactly 0 where it is rounding, as that of a thousand times 0.3."""
    deviation = numbers.std(keepdims=True)
    return float(beyond_rounding(deviation, np.abs(numbers).max(keepdims=True, initial=0.0))[0])


def differ(numbers: np.ndarray) -> bool:
    """Whether finite numbers [N], N > 0, differ by more than rounding."""
    return bool((advantage(numbers, np.full_like(numbers, numbers.min())) > 0).any())


def advantage(reward: Numbers, value: Numbers) -> Numbers:
    """How much better a completion is than the reference's average for its prompt.

    A(x, y) = R(x, y) - V(x)                                       (A-LoL, section 3.1)

    Exactly 0 where R and V differ by rounding, so that `A > 0` is right wherever it is asked. Rows without a reward
    (NaN) keep a NaN advantage.

    Args:
        reward, value: [rows], arrays or tensors.
    """
    return beyond_rounding(reward - value, abs(reward) + abs(value))


def leftover_mask(advantage: Numbers) -> Numbers:
    """[rows] bool: the rows an A-LoL policy trains on, A > 0. A NaN advantage is not left over."""
    return advantage > 0
