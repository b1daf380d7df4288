"""Numbers of a recipe that follow from its rows: limits in tokens, splits, steps."""

import math
from dataclasses import dataclass

import numpy as np

_QUANTILE = 0.98  # of the lengths that a limit lets pass whole
_STEP = 16  # limits are multiples of it
_HELD_OUT = 30  # prompt families that validation and test should have
_SHARES = (0.1, 0.25)  # of the families, at least and at most
_ROWS_A_STEP = (4, 16)
_PASSES = 2  # over the training rows
# Steps of a first run, at least and at most: on a CPU a step of a large model takes seconds.
_STEPS, _STEPS_SLOW = (20, 1000), (20, 100)


@dataclass(frozen=True)
class Limits:
    prompt: int
    completion: int
    longer_prompts: float  # the shares of rows beyond them
    longer_completions: float


def limits(prompts: np.ndarray, completions: np.ndarray, positions: int | None) -> Limits:
    """Limits that all but the longest fit into.

    Args:
        prompts: [N] tokens; completions: [N] tokens, with their end.
        positions: of the model; None: no limit. Completions get what prompts leave, and half at least.
    """
    prompt, completion = (_rounded(float(np.quantile(lengths, _QUANTILE))) for lengths in (prompts, completions))
    if positions is not None and prompt + completion > positions:
        completion = min(completion, max(positions - prompt, positions // 2))
        prompt = min(prompt, positions - completion)
    longer = (float((lengths > most).mean()) for lengths, most in ((prompts, prompt), (completions, completion)))
    return Limits(prompt, completion, *longer)


def _rounded(tokens: float) -> int:
    return max(_STEP, math.ceil(tokens / _STEP) * _STEP)


def held_out_share(families: int) -> float:
    """Of validation and of test each."""
    low, high = _SHARES
    return round(min(high, max(low, _HELD_OUT / max(1, families))), 2)


def rows_a_step(rows: int) -> int:
    """A power of two: 16, of few training rows fewer, so that there are some steps in a pass."""
    low, high = _ROWS_A_STEP
    return min(high, max(low, 2 ** int(math.log2(max(1, rows / 8)))))


def steps(rows: int, of_a_step: int, slow: bool) -> int:
    """Steps of about two passes over the training rows."""
    low, high = _STEPS_SLOW if slow else _STEPS
    return min(high, max(low, math.ceil(_PASSES * rows / of_a_step)))
