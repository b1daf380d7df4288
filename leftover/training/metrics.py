"""What is logged of a training batch, under TRL's names."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from leftover.errors import UserError
from leftover.objectives import CompletionBatch, Objective
from leftover.objectives.batch import sequence_logprobs
from leftover.recipe.lol_config import LoLConfig

Weighted = dict[str, tuple[Tensor, int]]

CLIPPED = "importance_weight/clipped_frac"  # share outside 1 +- clip, before they are clipped
# How values of several batches and processes become one, if not by their mean.
_EXTREMES = {"importance_weight/min": torch.min, "importance_weight/max": torch.max, "logratio/initial_max": torch.max}


class MetricSums:
    """Running means and extremes between two log lines, over micro-batches and processes."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self.num_tokens = 0  # of all processes
        self.tokens_logged_here = 0  # of this one
        self._before: dict[str, int] = {}

    def mark(self) -> None:
        """Here an optimizer step begins, which may have to begin again."""
        self._before = {name: len(entries) for name, entries in self.values.items()}

    def back_to_mark(self) -> None:
        kept = {name: entries[: self._before.get(name, 0)] for name, entries in self.values.items()}
        self.values = defaultdict(list, {name: entries for name, entries in kept.items() if entries})

    def add(self, metrics: Weighted) -> None:
        for name, value in metrics.items():
            self.values[name].append(value)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
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
        self.values.clear()
        return out

    def state(self) -> dict[str, Any]:
        """All of it as JSON has it, for a checkpoint."""
        values = {name: [(float(value), count) for value, count in entries] for name, entries in self.values.items()}
        return {"values": values, "num_tokens": self.num_tokens}

    def restore(self, states: Sequence[dict[str, Any]], rank: int, number: int) -> None:
        """Go on from what the processes of a checkpoint had; if they were not as many, their entries are dealt out."""
        self.num_tokens = states[0]["num_tokens"]
        for name in sorted({name for state in states for name in state["values"]}):
            if len(states) == number:
                mine = states[rank]["values"].get(name, [])
            else:
                all_entries = [entry for state in states for entry in state["values"].get(name, [])]
                # Every process must have one, or it would not meet the others: one that counts for nothing.
                spare = (0.0 if name == "num_tokens" else all_entries[0][0], 0)
                mine = all_entries[rank::number] or [spare]
            self.values[name] = [(torch.tensor(value, dtype=torch.float64), count) for value, count in mine]

    def tokens_of_this_process(self) -> int:
        """Tokens of the batches that this process has trained on since it started. Waits for a GPU between logs."""
        return self.tokens_logged_here + sum(int(value) for value, _ in self.values["num_tokens"])


@torch.no_grad()
def training_metrics(
    objective: Objective, settings: object, batch: CompletionBatch, inputs: dict[str, Tensor]
) -> Weighted:
    """Metrics of one micro-batch on the DRAWN rows: each a value and how many completions or tokens it averages."""
    logprob = sequence_logprobs(batch.logprobs, batch.mask)
    vectors = {"logps/policy": logprob}
    if not torch.isnan(batch.reward).any():
        vectors["reward/mean"] = batch.reward
    if not torch.isnan(batch.advantage).any():
        vectors["advantage/mean"] = batch.advantage
        vectors["advantage/frac_positive"] = (batch.advantage > 0).float()
    if not torch.isnan(batch.reference_logprobs).any():
        vectors["logratio/mean"] = logprob - sequence_logprobs(batch.reference_logprobs, batch.mask)
    if objective.importance_weights is not None:
        weights, mask = objective.importance_weights(batch, settings)
        weights = weights[mask]
        clip = getattr(settings, "clip", None)
        outside = (weights - 1).abs() > clip if clip is not None else torch.zeros_like(weights)
        vectors["importance_weight/mean"] = weights
        vectors["importance_weight/min"], vectors["importance_weight/max"] = weights.min()[None], weights.max()[None]
        vectors[CLIPPED] = outside.float()
    if objective.metrics is not None:
        vectors |= objective.metrics(batch, settings)
    num_tokens = inputs["prompt_mask"].sum() + batch.mask.sum()
    return {"num_tokens": (num_tokens, 1)} | {name: (values.mean(), len(values)) for name, values in vectors.items()}


def initial_logratio(batch: CompletionBatch, args: LoLConfig, model: Any) -> Weighted:
    """The largest difference of a token's log-probability at step 0, when the policy still is the reference.

    Raises UserError above `max_initial_logratio`, which has no default for the released code with its dropout.
    """
    difference = (batch.logprobs.detach() - batch.reference_logprobs).abs()[batch.mask].max().item()
    if math.isnan(difference):
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
