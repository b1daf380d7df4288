"""Row constants that only single objectives read, each a block of the table that is computed where a policy asks.

reward_quantile: how the row's reward ranks among those of the reference's own completions of its prompt (qrpo).
mismatched_*: a completion of another prompt, and its log-probability under the reference (kto).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.errors import UserError
from leftover.models.reference import reference_pass
from leftover.prepare.readers import extra_blocks, num_reference_samples, training_mask
from leftover.prepare.value.samples import sampled_rewards
from leftover.recipe.sections import ValueSection
from leftover.runs.keys import logprobs_key
from leftover.runs.run import Run
from leftover.store.table import SHARD_ROWS, column

log = logging.getLogger(__name__)


def extra_columns(run: Run) -> None:
    """The blocks that the policies of the recipe ask for."""
    for block in extra_blocks(run.recipe):
        _COMPUTE[block](run)


def quantile_block(run: Run) -> None:
    """Block `quantile`: `reference_rewards` [k] and `reward_quantile` of the training rows; NaN for the others."""
    samples = num_reference_samples(run.recipe)
    key = {
        "from": {name: run.table.digest(name) for name in ("reference", "reward", "split")},
        "samples": samples,
        "max_new_tokens": run.recipe.max_new_tokens,
        "seed": run.seed,
    }
    model: list[Any] = []

    def compute(shard: Any, scratch: Path) -> dict[str, Any]:
        if not model:
            model.append(run.models.reference())
        chosen = training_mask(shard) & np.isfinite(column(shard, "reward"))
        rewards = np.full((len(shard), samples), np.nan)
        quantile = np.full(len(shard), np.nan)
        if chosen.any():
            # The number of the shard, so that a shard that is computed again gets the same samples.
            seed = run.seed + samples * _number(scratch)
            rewards[chosen], quantile[chosen] = reward_quantiles(
                model[0],
                run.models.tokenizer,
                shard.select(np.flatnonzero(chosen)),
                column(shard, "group")[chosen],
                column(shard, "reward")[chosen],
                run.reward,
                samples=samples,
                max_new_tokens=run.recipe.max_new_tokens,
                seed=seed,
                batch_size=run.recipe.evaluate.batch_size,
            )
        return {"reference_rewards": rewards, "reward_quantile": quantile}

    def conclude(block: Any) -> None:
        found = column(block, "reward_quantile")
        found = found[np.isfinite(found)]
        run.note(quantile={"samples": samples, "mean": float(found.mean()) if len(found) else None})
        log.info("quantile: training rows at %.2f of the reference's own rewards on average", found.mean())

    source = run.table.open("rows", "split", "tokens", "reward")
    run.table.write_columns(
        "quantile", key, source, compute, description="rewards of reference samples", conclude=conclude
    )


def reward_quantiles(
    model: Any,
    tokenizer: Any,
    rows: Any,
    group: np.ndarray,
    reward: np.ndarray,
    reward_func: Callable,
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of completions sampled from the reference, [N, samples], and the share of them <= the row's, [N].

    Rows of one prompt (`group`) share the samples. `rows` has `prompt`, `conversational` and `prompt_ids`.
    """
    _, first, of_row = np.unique(group, return_index=True, return_inverse=True)
    settings = ValueSection(samples_per_prompt=samples)
    sampled = sampled_rewards(model, tokenizer, rows, first, reward_func, settings, max_new_tokens, seed, batch_size)[
        of_row
    ]
    return sampled, (sampled <= reward[:, None]).mean(1)


def mismatched_block(run: Run) -> None:
    """Block `mismatched`: `mismatched_ids` and `mismatched_reference_logprob` of the training rows."""
    key = {
        "from": {name: run.table.digest(name) for name in ("tokens", "split")},
        "seed": run.seed,
    } | logprobs_key(run)
    source = run.table.open("split", "tokens")
    training = np.flatnonzero(training_mask(source))
    partner = np.full(len(source), -1)
    partner[training] = training[mismatch(column(source, "group")[training], run.seed)]
    model: list[Any] = []

    def compute(shard: Any, scratch: Path) -> dict[str, Any]:
        if not model:
            model.append(run.models.reference())
        start = SHARD_ROWS * _number(scratch)
        partners = partner[start : start + len(shard)]
        chosen = np.flatnonzero(partners >= 0)
        ids: list[Any] = [[]] * len(shard)
        logprob = np.full(len(shard), np.nan)
        if len(chosen):
            prompts = shard.select(chosen)["prompt_ids"][:]
            completions = source.select(partners[chosen])["completion_ids"][:]
            found = mismatched_logprobs(model[0], run.models.tokenizer, prompts, completions, run.recipe.compute_dtype)
            for i, completion, value in zip(chosen, completions, found, strict=True):
                ids[i], logprob[i] = completion, value
        return {
            "mismatched_ids": pa.array(ids, type=pa.list_(pa.int32())),
            "mismatched_reference_logprob": logprob,
        }

    run.table.write_columns("mismatched", key, source, compute, description="mismatched log-probabilities")


def mismatch(group: np.ndarray, seed: int) -> np.ndarray:
    """[N] int: for every row a row of another prompt, each prompt's rows spread over the others, random by `seed`.

    Raises UserError where all rows share one prompt.
    """
    if len(group) == 0:
        return np.empty(0, np.int64)
    _, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        raise UserError("mismatched completions come from other prompts, and all training rows share one prompt")
    # Prompts in random order, the rows of each side by side: as many places on as the largest prompt has rows lies
    # another prompt, unless one prompt has more rows than all others together.
    rank = np.random.default_rng(seed).permutation(len(sizes))
    order = np.argsort(rank[member_of], kind="stable")
    partner = np.empty(len(group), np.int64)
    partner[order] = np.roll(order, -int(sizes.max()))
    own = member_of[partner] == member_of
    for prompt in np.unique(member_of[own]):
        rows, others = np.flatnonzero(own & (member_of == prompt)), np.flatnonzero(member_of != prompt)
        partner[rows] = np.resize(others, len(rows))
    return partner


def mismatched_logprobs(
    model: Any,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    compute_dtype: str | None,
) -> np.ndarray:
    """log pi_ref of every completion after the prompt in its place, [N]: the sum over its tokens."""
    pairs = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
    logprobs, _ = reference_pass(
        model,
        tokenizer,
        pairs,
        features=False,
        compute_dtype=compute_dtype,
        description="mismatched log-probabilities",
    )
    return np.array([float(lp.sum()) for lp in logprobs])


def add_extra_columns(
    table: dict[str, Any], needs: frozenset[str], model: Any, tokenizer: Any, args: Any, reward_func: Any
) -> None:
    """For rows without a recipe: the columns of these blocks that `needs` names join the others of `table`."""
    group = np.array(table["group"])
    if "reward_quantile" in needs:
        _, quantile = reward_quantiles(
            model,
            tokenizer,
            table,
            group,
            table["reward"],
            reward_func,
            samples=args.reference_samples,
            max_new_tokens=args.max_completion_length,
            seed=args.seed,
        )
        table["reward_quantile"] = np.where(np.isfinite(table["reward"]), quantile, np.nan)
    if "mismatched_logratio" in needs:
        table["mismatched_ids"] = [table["completion_ids"][i] for i in mismatch(group, args.seed)]
        table["mismatched_reference_logprob"] = mismatched_logprobs(
            model, tokenizer, table["prompt_ids"], table["mismatched_ids"], args.compute_dtype
        )


def _number(scratch: Path) -> int:
    """Of the shard that a scratch path is of."""
    return int(scratch.name.split(".")[0])


_COMPUTE: dict[str, Callable[[Run], None]] = {"quantile": quantile_block, "mismatched": mismatched_block}
