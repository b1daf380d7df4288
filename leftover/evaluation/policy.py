"""One policy on evaluation rows while it trains: completions, rewards, likelihood."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.metrics import distinct_n, pair_accuracy, perplexity, rank_correlation
from leftover.monitoring.training_display import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from leftover.models.divergence import FrozenStart
    from leftover.recipe.policy_config import PolicyConfig


def evaluate_policy(
    model: Any,
    tokenizer: Any,
    dataset: Iterable[dict[str, Any]],
    args: "PolicyConfig",
    reward_func: Callable | None,
    start: "FrozenStart | None" = None,
) -> tuple[dict[str, float], list[Completion]]:
    """Metrics of a policy on prepared rows, and the completions that were generated for them.

    nll, perplexity: a token, on the rows' completions. logratio/*: of the sequence log-ratio against the recorded
    rewards. reward/*, completions/*: of completions generated for the unique prompts, if a reward function can score
    them. kl, entropy: on some of these if they are sampled (`leftover.models.divergence.sampled_divergence`).
    """
    dtype = args.compute_dtype
    rows = [row for row in dataset if row.get("completion_ids")]
    metrics = row_metrics(model, tokenizer, rows, dtype) if rows else {}
    if reward_func is None:
        return metrics, []
    from leftover.data.rows import as_prompt
    from leftover.models.divergence import sampled_divergence
    from leftover.models.generate import generate
    from leftover.models.reference import autocast

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
    metrics |= {
        "reward/mean": float(np.mean(rewards)),
        "reward/std": float(np.std(rewards)),
        "completions/distinct_2": distinct_n(texts, 2),
        "completions/mean_length": float(np.mean([len(ids) for ids in completion_ids])),
    }
    if start is not None and args.eval_decoding == "sample":
        metrics |= sampled_divergence(
            model, start, tokenizer, prompt_ids, completion_ids, compute_dtype=dtype, seed=args.seed
        )
    asked = [tokenizer.decode(row["prompt_ids"]) if row["conversational"] else row["prompt"] for row in prompts]
    return metrics, [Completion(p, t, float(r)) for p, t, r in zip(asked, texts, rewards, strict=True)]


def row_metrics(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: list[dict[str, Any]], dtype: str | None
) -> dict[str, float]:
    """Likelihood of the rows' own completions, and how the log-ratio orders their recorded rewards."""
    from leftover.models.reference import reference_pass

    logprobs, _ = reference_pass(model, tokenizer, rows, features=False, compute_dtype=dtype)
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
