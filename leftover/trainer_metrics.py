"""What is logged of a training batch, and what `LoLTrainer.evaluate` measures. Names as TRL's."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leftover.errors import UserError
from leftover.metrics import distinct_n, pair_accuracy, perplexity, rank_correlation
from leftover.objectives import CompletionBatch, Objective
from leftover.objectives.batch import sequence_logprobs

Weighted = dict[str, tuple[Tensor, int]]

# How values of many batches and processes become one; the mean otherwise.
_EXTREMES = {"importance_weight/min": torch.min, "importance_weight/max": torch.max, "logratio/initial_max": torch.max}


class Completion(NamedTuple):
    """What the policy made of an evaluation prompt; of a conversation, the prompt as the model sees it."""

    prompt: str
    text: str
    reward: float


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


def evaluate_policy(
    model: Any, tokenizer: Any, dataset: Any, args: Any, reward_func: Callable | None, start: Any = None
) -> tuple[dict[str, float], list[Completion]]:
    """Metrics of a policy on prepared rows (`prompt_ids`, and `completion_ids`, `reward` where there are any).

    nll and perplexity: a token, on the rows' completions. logratio/rank_correlation and logratio/pair_accuracy:
    of the sequence log-ratio against the recorded rewards. reward/*, completions/*: of completions
    generated for the unique prompts, where a reward function can score them; these are returned beside the metrics,
    in the order of the rows. kl, entropy: on some of these, where they are sampled and the model's `start` is there
    (`leftover.divergence.sampled_divergence`).
    """
    metrics: dict[str, float] = {}
    completions: list[Completion] = []
    dtype = args.compute_dtype
    rows = [row for row in dataset if row.get("completion_ids")]
    if rows:
        metrics |= row_metrics(model, tokenizer, rows, dtype)
    if reward_func is not None:
        from leftover.data.rows import as_prompt
        from leftover.divergence import sampled_divergence
        from leftover.generate import generate
        from leftover.reference import autocast

        prompts = list({tuple(row["prompt_ids"]): row for row in dataset}.values())
        prompt_ids = [row["prompt_ids"] for row in prompts]
        with autocast(next(model.parameters()).device, dtype):
            completion_ids, texts = generate(
                model,
                tokenizer,
                prompt_ids,
                max_new_tokens=args.max_completion_length,
                sample=args.eval_decoding == "sample",
                batch_size=args.per_device_eval_batch_size,
                seed=args.seed,
            )
        rewards = reward_func([as_prompt(row["prompt"], row["conversational"]) for row in prompts], texts)
        metrics["reward/mean"] = float(np.mean(rewards))
        metrics["reward/std"] = float(np.std(rewards))
        metrics["completions/distinct_2"] = distinct_n(texts, 2)
        metrics["completions/mean_length"] = float(np.mean([len(ids) for ids in completion_ids]))
        if start is not None and args.eval_decoding == "sample":
            options: dict[str, Any] = {"compute_dtype": dtype, "seed": args.seed}
            metrics |= sampled_divergence(model, start, tokenizer, prompt_ids, completion_ids, **options)
        asked = [tokenizer.decode(r["prompt_ids"]) if r["conversational"] else r["prompt"] for r in prompts]
        completions = [Completion(p, t, float(r)) for p, t, r in zip(asked, texts, rewards, strict=True)]
    return metrics, completions


def row_metrics(model: Any, tokenizer: Any, rows: list[dict], dtype: str | None) -> dict[str, float]:
    """Likelihood of the rows' own completions, and how the log-ratio orders their recorded rewards."""
    from leftover.reference import reference_pass

    was_training = model.training
    logprobs, _ = reference_pass(model, tokenizer, rows, features=False, compute_dtype=dtype)
    model.train(was_training)
    total, count = sum(float(lp.sum()) for lp in logprobs), sum(len(lp) for lp in logprobs)
    metrics = {"nll": -total / count, "perplexity": perplexity(total, count)}
    scored = [
        (float(lp.sum() - np.sum(row["reference_logprobs"])), row["reward"], row["group"])
        for lp, row in zip(logprobs, rows, strict=True)
        if row.get("reference_logprobs") is not None and row.get("reward") is not None and np.isfinite(row["reward"])
    ]
    if len(scored) > 2:
        logratios, rewards, groups = zip(*scored, strict=True)
        metrics["logratio/rank_correlation"] = rank_correlation(logratios, rewards)
        accuracy, num_pairs = pair_accuracy(logratios, rewards, groups)
        if num_pairs:
            metrics["logratio/pair_accuracy"] = accuracy
    return metrics
