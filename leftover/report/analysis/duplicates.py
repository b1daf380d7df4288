"""Rows that say the same: repeated rows, rows whose scores contradict each other, completions used for many prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def find_duplicates(
    prompts: Sequence[str], completions: Sequence[str], rewards: np.ndarray, *, num_shown: int = 5
) -> dict[str, Any]:
    """Duplicates among N rows; texts are equal where they differ in case and white space at most.

    Args:
        rewards: [N], NaN where a row has none.
        num_shown: how many of each kind are named, the largest first.

    Returns:
        repeated_rows: rows beyond the first of their prompt and completion.
        contradictions: how many prompt-and-completion pairs were given more than one reward.
        shared_completions: rows whose completion stands under more than one prompt.
        widest: of the contradictions `row`, `count`, `low`, `high`, by spread of their rewards.
        most_shared: of the shared completions `row`, `count` of rows, `prompts`, by number of prompts.
    """
    asked, said = _ids(prompts), _ids(completions)
    _, first, pair, counts = np.unique(
        asked * (int(said.max(initial=0)) + 1) + said, return_index=True, return_inverse=True, return_counts=True
    )
    low, high = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    scored = np.isfinite(rewards)
    np.minimum.at(low, pair[scored], rewards[scored])
    np.maximum.at(high, pair[scored], rewards[scored])
    spread = np.where(np.isfinite(low), high - low, 0.0)
    widest = [i for i in np.argsort(-spread, kind="stable")[:num_shown] if spread[i] > 0]

    # One pair is one prompt under its completion, so counting pairs counts prompts.
    _, first_of, of_completion = np.unique(said[first], return_index=True, return_inverse=True)
    num_prompts, num_rows = np.bincount(of_completion), np.bincount(of_completion, counts).astype(int)
    most = [i for i in np.argsort(-num_prompts, kind="stable")[:num_shown] if num_prompts[i] > 1]
    return {
        "repeated_rows": int(len(prompts) - len(first)),
        "contradictions": int((spread > 0).sum()),
        "shared_completions": int(num_rows[num_prompts > 1].sum()),
        "widest": [
            {"row": int(first[i]), "count": int(counts[i]), "low": float(low[i]), "high": float(high[i])}
            for i in widest
        ],
        "most_shared": [
            {"row": int(first[first_of[i]]), "count": int(num_rows[i]), "prompts": int(num_prompts[i])} for i in most
        ],
    }


def _ids(texts: Sequence[str]) -> np.ndarray:
    """[N] int64: equal texts share an integer."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(" ".join(text.casefold().split()), len(known)) for text in texts], np.int64)
