"""The pooled features of a prompt, which the reference pass stores once a prompt, in 16 bits."""

import numpy as np
from datasets import Dataset

from leftover.store.table import SomeLists

# A list in the first kept row of every prompt, empty in the others. Tables of earlier versions have `prompt_features`,
# in 32 bits, in every row.
PROMPT_FEATURES, _OF_EVERY_ROW = "features_of_prompt", "prompt_features"
_LARGEST_HALF = np.finfo(np.float16).max


def prompt_features(rows: Dataset) -> SomeLists:
    """The features of prompts, [n, 2 H] float32, read by the places of their first kept rows."""
    return SomeLists(rows, PROMPT_FEATURES if PROMPT_FEATURES in rows.column_names else _OF_EVERY_ROW)


def half(features: np.ndarray) -> np.ndarray:
    """In 16 bits; the few numbers beyond their range become its end."""
    return np.clip(features, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def stored_in_every_row(rows: Dataset) -> bool:
    return _OF_EVERY_ROW in rows.column_names
