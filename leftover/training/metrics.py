"""What is logged of a training batch, and what `LoLTrainer.evaluate` measures. Names as TRL's."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leftover.errors import UserError
from leftover.objectives import CompletionBatch, Objective
from leftover.objectives.batch import sequence_logprobs

Weighted = dict[str, tuple[Tensor, int]]

# How values of many batches and processes become one; the mean otherwise.
_EXTREMES = {"importance_weight/min": torch.min, "importance_weight/max": torch.max, "logratio/initial_max": torch.max}


class MetricSums:
    """Running means and extremes between two log lines, over micro-batches and processes."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[Tensor, int]]] = {}
        self.num_tokens = 0
        self.tokens_logged_here = 0

    def add(self, metrics: Weighted) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def pop(self, accelerator: Any) -> dict[str, float]:
        """The metrics since the last call, as floats."""
        out = {}
        for name, entries in self.values.items():
            numbers = torch.stack([value.double().cpu() for value, _ in entries])
            counts = torch.tensor([count for _, count in entries], dtype=torch.float64)
            if name == "num_tokens":
                self.tokens_logged_here += int(numbers.sum())
                total = accelerator.gather(numbers.sum().to(accelerator.device)).sum()
                self.num_tokens += int(total)
                out[name] = float(self.num_tokens)
            elif name in _EXTREMES:
                reduced = _EXTREMES[name](numbers).to(accelerator.device)
                out[name] = float(_EXTREMES[name](accelerator.gather(reduced)))
            else:
                pair = torch.stack([(numbers * counts).sum(), counts.sum()]).to(accelerator.device)
                total, count = accelerator.gather(pair).reshape(-1, 2).sum(0)
                out[name] = float(total / count) if count else float("nan")
        self.values = {}
        return out

    def tokens_of_this_process(self) -> int:
        """Tokens of the batches that this process has trained on since it started. Waits for a GPU between logs."""
        unlogged = sum(int(value) for value, _ in self.values.get("num_tokens", ()))
        return self.tokens_logged_here + unlogged


@torch.no_grad()
def training_metrics(objective: Objective, settings: Any, batch: CompletionBatch, inputs: dict) -> Weighted:
    """Metrics of one micro-batch on the DRAWN rows: each a value and how many completions or tokens it averages."""
    rows = len(batch.reward)
    logprob = sequence_logprobs(batch.logprobs.detach(), batch.mask)
    metrics: Weighted = {
        "num_tokens": (inputs["prompt_mask"].sum() + batch.mask.sum(), 1),
        "logps/policy": (logprob.mean(), rows),
    }
    if not torch.isnan(batch.reward).any():
        metrics["reward/mean"] = (batch.reward.mean(), rows)
    if not torch.isnan(batch.advantage).any():
        metrics["advantage/mean"] = (batch.advantage.mean(), rows)
        metrics["advantage/frac_positive"] = ((batch.advantage > 0).float().mean(), rows)
    if not torch.isnan(batch.reference_logprobs).any():
        logratio = logprob - sequence_logprobs(batch.reference_logprobs, batch.mask)
        metrics["logratio/mean"] = (logratio.mean(), rows)
    if objective.importance_weights is not None:
        weights, mask = objective.importance_weights(batch, settings)
        weights, count = weights[mask], int(mask.sum())
        metrics["importance_weight/mean"] = (weights.mean(), count)
        metrics["importance_weight/min"] = (weights.min(), count)
        metrics["importance_weight/max"] = (weights.max(), count)
        clip = getattr(settings, "clip", None)
        outside = (weights - 1).abs() > clip if clip is not None else torch.zeros_like(weights)
        metrics["importance_weight/clipped_frac"] = (outside.float().mean(), count)
    if objective.metrics is not None:
        found = objective.metrics(batch, settings)
        metrics |= {name: (values.detach().mean(), len(values)) for name, values in found.items()}
    return metrics


def initial_logratio(batch: CompletionBatch, args: Any, model: Any) -> Weighted:
    """The largest difference of a token's log-probability at step 0, where the policy is the reference.

    Raises UserError above `max_initial_logratio`; none is set where the released code's dropout is on.
    """
    difference = (batch.logprobs.detach() - batch.reference_logprobs).abs()[batch.mask].max().item()
    if np.isnan(difference):
        return {}  # no reference log-probabilities: the objective does not use them
    limit = args.max_initial_logratio
    if limit is None:
        quantised = getattr(model, "is_quantized", False)  # its products are in 16 bits
        full_precision = args.compute_dtype is None and model.dtype == torch.float32 and not quantised
        limit = math.inf if args.released_code else 1e-3 if full_precision else 0.5
    if difference > limit:
        raise UserError(
            f"at step 0 policy and reference differ by {difference:.3g} in a token's log-probability (limit "
            f"{limit:g}): the reference log-probabilities are not this model's, or were computed in another "
            "dtype; prepare them again, or set max_initial_logratio"
        )
    return {"logratio/initial_max": (torch.tensor(difference), 1)}
