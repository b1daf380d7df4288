"""One policy on evaluation rows while it trains: completions, rewards, likelihood."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leftover.metrics import distinct_n, pair_accuracy, perplexity, rank_correlation
from leftover.monitoring.training_display import Completion


def evaluate_policy(
    model: Any, tokenizer: Any, dataset: Any, args: Any, reward_func: Callable | None, start: Any = None
) -> tuple[dict[str, float], list[Completion]]:
    """Metrics of a policy on prepared rows (`prompt_ids`, and `completion_ids`, `reward` where there are any).

    nll and perplexity: a token, on the rows' completions. logratio/rank_correlation and logratio/pair_accuracy:
    of the sequence log-ratio against the recorded rewards. reward/*, completions/*: of completions
    generated for the unique prompts, where a reward function can score them; these are returned beside the metrics,
    in the order of the rows. kl, entropy: on some of these, where they are sampled and the model's `start` is there
    (`leftover.models.divergence.sampled_divergence`).
    """
    metrics: dict[str, float] = {}
    completions: list[Completion] = []
    dtype = args.compute_dtype
    rows = [row for row in dataset if row.get("completion_ids")]
    if rows:
        metrics |= row_metrics(model, tokenizer, rows, dtype)
    if reward_func is not None:
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
    from leftover.models.reference import reference_pass

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
