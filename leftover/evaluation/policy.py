"""One policy on evaluation rows while it trains: completions, rewards, likelihood."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.metrics import bootstrap_ends, distinct_n, pair_accuracy, pairs_of_groups, perplexity, rank_correlation
from leftover.monitoring.training_display import Completion
from leftover.recipe.eval_metrics import COMPLETION_METRICS, DIVERGENCE_METRICS, PAIR_METRICS
from leftover.recipe.forms import Unfinished
from leftover.recipe.lol_config import LoLConfig, objective_settings
from leftover.rewards.base import Prompt
from leftover.rewards.length import text_lengths
from leftover.rewards.quality import bootstrap, spearman
from leftover.rewards.sum import SumReward, as_array
from leftover.rewards.unfinished import settled
from leftover.runs.records import completion_records

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

    `start`: the reference, which reads the completions too if they are sampled.

    nll, perplexity: a token, on the rows' completions. logratio/*: of the sequence log-ratio against the recorded
    rewards. rewards/*, logps/*: of pairs (`pair_metrics`). reward/*, completions/*: of completions generated for the
    unique prompts, if a reward function can score them; those without an end count as `args.unfinished` says. kl,
    entropy: of these if they are sampled and there is a `start` (`leftover.models.divergence.divergence`).
    """
    dtype = args.compute_dtype
    rows = [row for row in dataset if row.get("completion_ids")]
    metrics = row_metrics(model, tokenizer, rows, dtype, implicit_reward_scale(args)) if rows else {}
    if reward_func is None:
        return metrics, []
    from leftover.data.rows import as_prompt
    from leftover.models.divergence import divergence
    from leftover.models.generate import generate, have_ended
    from leftover.models.reference import sequence_logprobs

    prompts = evaluated_prompts(dataset)
    prompt_ids = [row["prompt_ids"] for row in prompts]
    written = generate(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=args.max_completion_length,
        sample=args.eval_decoding == "sample",
        seed=args.seed,
        compute_dtype=dtype,
        **args.generation,
    )
    texts, lengths, ended = written.texts, [len(ids) for ids in written.ids], have_ended(model, written.ids)
    asked_of = [as_prompt(row["prompt"], row["conversational"]) for row in prompts]
    columns = score_columns(reward_func, asked_of, texts, ended, args.unfinished)
    metrics |= _completion_metrics(columns["reward"], texts, lengths)
    if args.unfinished != "score":
        metrics["completions/ended"] = float(ended.mean())
    if start is not None and args.eval_decoding == "sample":
        with start.in_place():
            under_reference = sequence_logprobs(model, tokenizer, prompt_ids, written.ids, dtype)
        metrics |= divergence(written.sums, under_reference, lengths)
        columns["reference_logprob"] = np.array(under_reference)
    columns["logprob"] = np.array(written.sums)
    asked = [tokenizer.decode(row["prompt_ids"]) if row["conversational"] else row["prompt"] for row in prompts]
    decoding = "sampled" if args.eval_decoding == "sample" else "greedy"
    records = completion_records(prompts, decoding, texts, written.ids, ended, columns)
    rewards = map(float, columns["reward"])
    return metrics, [Completion(*of_prompt) for of_prompt in zip(asked, texts, rewards, records, strict=True)]


def _completion_metrics(rewards: np.ndarray, texts: Sequence[str], lengths: Sequence[int]) -> dict[str, float]:
    known = rewards[~np.isnan(rewards)]
    return {
        # Below any other where nothing ended: the Trainer would keep a NaN as the best.
        "reward/mean": float(known.mean()) if len(known) else -math.inf,
        "reward/std": float(known.std()) if len(known) else 0.0,
        "completions/distinct_2": distinct_n(texts, 2),
        "completions/mean_length": float(np.mean(lengths)),
    }


def evaluated_prompts(dataset: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of the unique prompts that `evaluate_policy` has completed."""
    return list({tuple(row["prompt_ids"]): row for row in dataset}.values())


def score_columns(
    reward: Callable, prompts: Sequence[Prompt], texts: Sequence[str], ended: np.ndarray, unfinished: Unfinished
) -> dict[str, np.ndarray]:
    """The rewards of completions, settled by `unfinished`; of a sum also what it is made of, as records have them."""
    if not isinstance(reward, SumReward):
        return {"reward": settled(reward(prompts, texts), ended, unfinished)}
    scores = reward.score_components(prompts, texts)
    counted = reward.combine(reward.without_length(scores, text_lengths(texts)))
    columns = {"reward": settled(counted, ended, unfinished)}
    if reward.length is not None:
        columns["raw_reward"] = settled(reward.total(scores), ended, unfinished)
    return columns | {f"reward/{name}": as_array(column) for name, column in scores.items()}


def metric_names(dataset: Iterable[dict[str, Any]], reward_func: Callable | None, args: "PolicyConfig") -> list[str]:
    """The names of what `evaluate_policy` will measure; without a rank correlation that rewards leave undefined."""
    rows, names = list(dataset), list[str]()
    whole = [row for row in rows if row.get("completion_ids")]
    if whole:
        names += ["nll", "perplexity"]
    scored = [row for row in whole if _is_scored(row)]
    if len(scored) > 2 and len({row["reward"] for row in scored}) > 1:
        names += ["logratio/rank_correlation"]
        distinct = {(row["group"], row["reward"]) for row in scored}
        names += ["logratio/pair_accuracy"] * (len(distinct) > len({group for group, _ in distinct}))
    if sides := _sides(whole):
        has_reference = all(row.get("reference_logprobs") is not None for side in sides for row in side)
        names += [name for name in PAIR_METRICS if has_reference or name.startswith("logps")]
    if reward_func is not None:
        names += COMPLETION_METRICS
        names += ["completions/ended"] * (args.unfinished != "score")
        if args.eval_decoding == "sample":
            several = len({tuple(row["prompt_ids"]) for row in rows}) > 1
            names += [name for name in DIVERGENCE_METRICS if several or name != "kl/standard_error"]
    return names


def implicit_reward_scale(args: "PolicyConfig") -> float:
    """beta of the implicit reward beta (log pi - log pi_ref), of the methods that have one; else 1."""
    if isinstance(args, LoLConfig) and args.objective in ("dpo", "kto"):
        return objective_settings(args).beta
    return 1.0


def row_metrics(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[dict[str, Any]],
    dtype: str | None,
    scale: float = 1.0,
    *,
    intervals: bool = False,
) -> dict[str, Any]:
    """Likelihood of the rows' own completions, and how the log-ratio orders their recorded rewards.

    `intervals`: of that also the 95 % intervals by prompt family and the numbers of rows and pairs, under
    `NAME interval`.
    """
    from leftover.models.reference import reference_pass

    logprobs, _ = reference_pass(model, tokenizer, rows, features=False, compute_dtype=dtype)
    metrics: dict[str, Any] = dict(likelihood_metrics(logprobs))
    scored = [
        (float(lp.sum() - np.sum(row["reference_logprobs"])), row["reward"], row["group"], row.get("family_id", -1))
        for lp, row in zip(logprobs, rows, strict=True)
        if _is_scored(row)
    ]
    if len(scored) > 2:
        logratios, rewards, groups, families = (np.array(column) for column in zip(*scored, strict=True))
        metrics["logratio/rank_correlation"] = rank_correlation(logratios, rewards)
        accuracy, num_pairs = pair_accuracy(logratios, rewards, groups)
        if num_pairs:
            metrics["logratio/pair_accuracy"] = accuracy
        if intervals:
            metrics |= order_intervals(logratios, rewards, groups, families)
    summed = [row | {"logp": float(lp.sum())} for lp, row in zip(logprobs, rows, strict=True)]
    return metrics | pair_metrics(_sides(summed), scale)


def order_intervals(
    logratios: np.ndarray, rewards: np.ndarray, groups: np.ndarray, families: np.ndarray
) -> dict[str, dict[str, float]]:
    """How sure rank correlation and pair accuracy of [N] rows are: low, high, and of how many rows or pairs."""
    found = dict[str, dict[str, float]]()
    rank = bootstrap(spearman(logratios, rewards), families, (-1, 1))
    if np.isfinite(rank).all():
        found["logratio/rank_correlation interval"] = {"low": rank.low, "high": rank.high, "rows": len(rewards)}
    correct, pairs = pairs_of_groups(logratios, rewards, groups)
    if pairs.sum():
        family = families[np.unique(groups, return_index=True)[1]]
        ids = np.unique(family, return_inverse=True)[1]
        sums, counts = np.bincount(ids, correct), np.bincount(ids, pairs)
        low, high = (float(sums.sum() / counts.sum()),) * 2
        if len(sums) > 1:
            with np.errstate(invalid="ignore"):  # a draw without a pair is dropped
                low, high = bootstrap_ends(
                    lambda drawn: sums[drawn].sum(-1) / counts[drawn].sum(-1), len(sums), limits=(0, 1)
                )
        if np.isfinite([low, high]).all():
            found["logratio/pair_accuracy interval"] = {"low": low, "high": high, "pairs": int(pairs.sum())}
    return found


def likelihood_metrics(logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """Of the log-probabilities of completion tokens, [T_i] a row: the mean a token."""
    total, count = sum(float(lp.sum()) for lp in logprobs), sum(len(lp) for lp in logprobs)
    return {"nll": -total / count, "perplexity": perplexity(total, count)}


def pair_metrics(pairs: list[tuple[dict[str, Any], dict[str, Any]]], scale: float) -> dict[str, float]:
    """Means over pairs (chosen, rejected) under TRL's names, of log pi(y|x) (`logp`) and of implicit rewards.

    An implicit reward is scale (log pi(y|x) - log pi_ref(y|x)) (arXiv 2305.18290, section 4). rewards/accuracies: the
    share of pairs whose chosen completion has the higher one; a tie is none.
    """
    if not pairs:
        return {}
    logps = np.array([[side["logp"] for side in pair] for pair in pairs])
    metrics = {"logps/chosen": logps[:, 0], "logps/rejected": logps[:, 1]}
    if all(side.get("reference_logprobs") is not None for pair in pairs for side in pair):
        reference = np.array([[np.sum(side["reference_logprobs"]) for side in pair] for pair in pairs])
        rewards = scale * (logps - reference)
        chosen, rejected = rewards.T
        metrics |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        metrics["rewards/accuracies"] = chosen > rejected
    return {name: float(values.mean()) for name, values in metrics.items()}


def _sides(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The chosen and the rejected row of every pair of which both are among the rows."""
    by_pair: dict[int, dict[bool, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row.get("pair") is not None:
            by_pair[row["pair"]][row["is_chosen"]] = row
    return [(sides[True], sides[False]) for sides in by_pair.values() if len(sides) == 2]


def _is_scored(row: dict[str, Any]) -> bool:
    """Whether the row's log-ratio can be compared with a recorded reward."""
    reward = row.get("reward")
    return row.get("reference_logprobs") is not None and reward is not None and bool(np.isfinite(reward))
