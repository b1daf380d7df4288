"""Row constants that only single objectives read, each a block of the table that is computed if a policy asks.

reward_quantile: how the row's reward ranks among those of the reference's own completions of its prompt (qrpo).
mismatched_*: a completion of another prompt, and its log-probability under the reference (kto).
prompt_features: those of the row's prompt (dro).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from leftover.errors import UserError
from leftover.metrics import mean_of_known
from leftover.prepare.constants import Reference
from leftover.prepare.features import prompt_features, stored_in_every_row
from leftover.prepare.readers import extra_blocks, num_reference_samples, training_mask
from leftover.recipe.sections import ValueSection
from leftover.rewards.unfinished import NONE_ENDED
from leftover.runs.keys import logprobs_key
from leftover.runs.run import Run
from leftover.store.table import column, equals

log = logging.getLogger(__name__)


def compute_extras(run: Run) -> None:
    """The blocks that the policies of the recipe ask for."""
    for block in extra_blocks(run.recipe):
        {"quantile": quantile_block, "mismatched": mismatched_block, "features": features_block}[block](run)


def quantile_block(run: Run) -> None:
    """Block `quantile`: `reference_rewards` [k] and `reward_quantile` of the training rows; NaN for the others."""
    samples, reference = num_reference_samples(run.recipe), Reference.of_run(run)
    key = (
        {
            "from": {name: run.table.digest(name) for name in ("reference", "reward", "split")},
            "samples": samples,
            "max_new_tokens": reference.max_new_tokens,
            "seed": run.seed,
        }
        | run.recipe.unfinished_key
        | run.recipe.engine.key
    )

    def compute(shard: Dataset, _: Path, start: int) -> dict[str, Any]:
        chosen = training_mask(shard) & np.isfinite(column(shard, "reward"))
        rewards = np.full((len(shard), samples), np.nan)
        quantile = np.full(len(shard), np.nan)
        if chosen.any():
            # By the place of the shard, so that a shard that is computed again gets the same samples.
            seed = run.seed + samples * start
            rows = shard.select(np.flatnonzero(chosen))
            rewards[chosen], quantile[chosen] = reward_quantiles(reference, rows, run.reward, samples, seed)
        return {"reference_rewards": rewards, "reward_quantile": quantile}

    def conclude(block: Dataset) -> None:
        found = column(block, "reward_quantile")
        found = found[np.isfinite(found)]
        if len(found) == 0 and run.recipe.evaluate.unfinished == "drop":
            raise UserError(f"qrpo: none of the reference's completions {NONE_ENDED}")
        run.note(quantile={"samples": samples, "mean": float(found.mean()) if len(found) else None})
        log.info("quantile: training rows score as high as %.2f of the reference's completions", found.mean())

    source = run.table.open("rows", "split", "tokens", "reward")
    run.table.write_columns(
        "quantile", key, source, compute, description="rewards of reference samples", conclude=conclude
    )


def reward_quantiles(
    reference: Reference, rows: Dataset | dict[str, Any], reward_func: Callable, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of completions sampled from the reference, [N, samples], and the share of them <= the row's, [N].

    Rows of one prompt share the samples. Those without a reward (`unfinished: drop`) do not count; without any other
    the share is NaN. `rows` has `group`, `reward`, `prompt`, `conversational` and `prompt_ids`.
    """
    _, first, of_row = np.unique(rows["group"], return_index=True, return_inverse=True)
    settings = ValueSection(samples_per_prompt=samples)
    sampled = reference.sampled_rewards(rows, first, reward_func, settings, seed)[of_row]
    rewards = np.array(rows["reward"])
    quantile = mean_of_known(np.where(np.isnan(sampled), np.nan, sampled <= rewards[:, None]), 1)
    if lost := int((np.isnan(quantile) & np.isfinite(rewards)).sum()):
        log.warning("quantile: %d of %d rows have none: no sample of their prompt ended", lost, len(quantile))
    return sampled, quantile


def mismatched_block(run: Run) -> None:
    """Block `mismatched`: `mismatched_ids` and `mismatched_reference_logprob` of the training rows."""
    key = {"from": {name: run.table.digest(name) for name in ("tokens", "split")}, "seed": run.seed}
    key |= logprobs_key(run)
    source, reference = run.table.open("split", "tokens"), Reference.of_run(run)
    training = np.flatnonzero(training_mask(source))
    partner = np.full(len(source), -1)
    partner[training] = training[mismatch(column(source, "group")[training], run.seed)]

    def compute(shard: Dataset, _: Path, start: int) -> dict[str, Any]:
        partners = partner[start : start + len(shard)]
        chosen = np.flatnonzero(partners >= 0)
        ids: list[Any] = [[]] * len(shard)
        logprob = np.full(len(shard), np.nan)
        if len(chosen):
            completions = source.select(partners[chosen])["completion_ids"][:]
            logprob[chosen] = mismatched_logprobs(reference, shard.select(chosen)["prompt_ids"][:], completions)
            for i, completion in zip(chosen, completions, strict=True):
                ids[i] = completion
        ids_column = pa.array(ids, type=pa.list_(pa.int32()))
        return {"mismatched_ids": ids_column, "mismatched_reference_logprob": logprob}

    run.table.write_columns("mismatched", key, source, compute, description="mismatched log-probabilities")


def features_block(run: Run) -> None:
    """Block `features`: `prompt_features` [2 H] of every kept row; zeros for the others."""
    source = run.table.open("split", "tokens", "reference")
    if stored_in_every_row(source):
        return
    key = {"from": {name: run.table.digest(name) for name in ("reference", "split")}}
    kept, group = np.flatnonzero(equals(source, "kept", True)), column(source, "group")
    _, first, of_kept = np.unique(group[kept], return_index=True, return_inverse=True)
    place = np.full(len(source), -1)
    place[kept] = kept[first][of_kept]
    features = prompt_features(source)

    def compute(shard: Dataset, _: Path, start: int) -> dict[str, Any]:
        places = place[start : start + len(shard)]
        found = np.zeros((len(shard), features.shape[1]), np.float32)
        if (places >= 0).any():
            found[places >= 0] = features[places[places >= 0]]
        return {"prompt_features": found}

    run.table.write_columns("features", key, source, compute)


def mismatch(group: np.ndarray, seed: int) -> np.ndarray:
    """[N] int: for every row a row of another prompt, each prompt's rows spread over the others, random by `seed`."""
    if len(group) == 0:
        return np.empty(0, np.int64)
    _, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        raise UserError("mismatched completions come from other prompts, and all training rows share one prompt")
    # Prompts in random order, the rows of each side by side. As many places on as the largest prompt has rows lies
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
    reference: Reference, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> np.ndarray:
    """log pi_ref of every completion after the prompt in its place, [N]: the sum over its tokens."""
    logprobs, _ = reference.read(prompt_ids, completion_ids, description="mismatched log-probabilities")
    return np.array([float(lp.sum()) for lp in logprobs])


def add_extras(
    table: dict[str, Any], needs: frozenset[str], reference: Reference, samples: int, reward_func: Callable | None
) -> None:
    """For rows without a recipe: add the columns of these blocks that `needs` names to `table`."""
    seed = reference.seed
    if "reward_quantile" in needs:
        assert reward_func is not None
        _, quantile = reward_quantiles(reference, table, reward_func, samples, seed)
        table["reward_quantile"] = np.where(np.isfinite(table["reward"]), quantile, np.nan)
    if "mismatched_logratio" in needs:
        table["mismatched_ids"] = [table["completion_ids"][i] for i in mismatch(table["group"], seed)]
        table["mismatched_reference_logprob"] = mismatched_logprobs(
            reference, table["prompt_ids"], table["mismatched_ids"]
        )
