"""Rows of the table -> padded tensors in the aligned layout."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Constants of a row that objectives read; NaN marks one that the table lacks.
ROW_SCALARS = ("reward", "value", "advantage")
# Columns that single objectives read (`leftover.training.extras`): they are in the batch if rows have them.
EXTRA_SCALARS = ("is_chosen", "label", "reward_quantile", "mismatched_reference_logprob")


class Collator:
    """Pads prompts on the left and completions on the right, so that the boundary is one column.

    The batch holds `prompt_ids`, `prompt_mask` [B, P]; `completion_ids`, `completion_mask`,
    `reference_logprobs` [B, T]; `reward`, `value`, `advantage` [B] float32, `reward_low` [B] (what float32 loses of the
    reward) and `group` [B] int64. Columns that the rows lack become NaN (`group`: -1). Where rows have them:
    `EXTRA_SCALARS` [B], `prompt_features` [B, F], and `mismatched_ids`, `mismatched_mask` [B, M] padded on the right.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        def padded(name: str, left: bool = False) -> tuple[Tensor, Tensor]:
            return pad([row[name] for row in rows], self.pad_token_id, left=left)

        batch: dict[str, Tensor] = {}
        batch["prompt_ids"], batch["prompt_mask"] = padded("prompt_ids", left=True)
        batch["completion_ids"], batch["completion_mask"] = padded("completion_ids")
        if rows[0].get("reference_logprobs") is not None:
            batch["reference_logprobs"], _ = pad([row["reference_logprobs"] for row in rows], 0.0, dtype=torch.float32)
        else:
            batch["reference_logprobs"] = torch.full(batch["completion_ids"].shape, math.nan)
        for name in (*ROW_SCALARS, *(name for name in EXTRA_SCALARS if name in rows[0])):
            values = [math.nan if row.get(name) is None else float(row[name]) for row in rows]
            batch[name] = torch.tensor(values, dtype=torch.float32)
            if name == "reward":
                exact = torch.tensor(values, dtype=torch.float64)
                batch["reward_low"] = (exact - batch[name]).float()
        batch["group"] = torch.tensor([row.get("group", -1) for row in rows], dtype=torch.int64)
        if "prompt_features" in rows[0]:
            batch["prompt_features"] = torch.tensor([row["prompt_features"] for row in rows], dtype=torch.float32)
        if "mismatched_ids" in rows[0]:
            batch["mismatched_ids"], batch["mismatched_mask"] = padded("mismatched_ids")
        return batch


def pad(
    sequences: Sequence[Sequence[float]], value: float, *, left: bool = False, dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor]:
    """Stack sequences of unequal length; returns the tensor [B, L] and its boolean mask of real entries."""
    longest = max(len(sequence) for sequence in sequences)
    out = torch.full((len(sequences), longest), value, dtype=dtype)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        where = slice(longest - len(sequence), None) if left else slice(None, len(sequence))
        out[i, where] = torch.as_tensor(np.asarray(sequence), dtype=dtype)
        mask[i, where] = True
    return out, mask
