"""What a completion that ran into the limit of new tokens counts (`evaluate.unfinished`): decided here for everything.

Test evaluation, the checkpoints' evaluations, value targets, reward quantiles, PPO's rollouts and rows that a model has
written without an end all ask `settled`.
"""

from collections.abc import Sequence

import numpy as np

from leftover.recipe.forms import Unfinished

NONE_ENDED = (
    "ended within the limit, and `unfinished: drop` leaves the others without a reward: raise the limit of new tokens, "
    "or take unfinished: score, or {penalty: x}"
)


def unfinished_text(rule: Unfinished) -> str:
    """What a rule did to rewards, in a sentence; empty for `score`."""
    if isinstance(rule, dict):
        return f"A completion that ran into the limit loses {rule['penalty']:g} of its reward."
    return "A completion that ran into the limit has no reward, and is in no mean of these." if rule == "drop" else ""


def settled(rewards: Sequence[float] | np.ndarray, ended: np.ndarray, rule: Unfinished) -> np.ndarray:
    """[N] float64: rewards as they are where a completion ended; the others as they are (`score`), less the penalty,
    or NaN, which is no reward (`drop`)."""
    rewards = np.asarray(rewards, np.float64)
    if rule == "score":
        return rewards
    return np.where(ended, rewards, np.nan if isinstance(rule, str) else rewards - rule["penalty"])
