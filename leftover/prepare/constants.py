"""The constants of a row: log pi_ref(y|x), V(x) and A(x, y). Each stage writes one block of the table."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leftover.errors import UserError
from leftover.metrics import effective_sample_size
from leftover.models.reference import reference_pass
from leftover.objectives.advantage import advantage, leftover_mask
from leftover.prepare.checks import value_targets
from leftover.runs.keys import logprobs_key
from leftover.runs.run import Run
from leftover.store.table import FixedLists, column, equals, float_lists

log = logging.getLogger(__name__)


def reference_columns(run: Run) -> None:
    """Block `reference`: log-probabilities of completion tokens and pooled prompt features, in one pass."""
    key = {
        "from": {"tokens": run.table.digest("tokens")},
    } | logprobs_key(run)
    loaded: list[Any] = []

    def compute(shard: Any, _: Path) -> dict[str, Any]:
        if not loaded:
            loaded.append(run.models.reference())
        rows = list(shard)
        kept = [row for row in rows if row["kept"]]
        logprobs, features = reference_pass(
            loaded[0], run.models.tokenizer, kept, compute_dtype=run.recipe.compute_dtype, description=description
        )
        assert features is not None
        where = np.flatnonzero([row["kept"] for row in rows])
        all_features = np.full((len(rows), features.shape[1]), np.nan, np.float32)
        all_features[where] = features
        by_row: list[Any] = [[]] * len(rows)
        for i, values in zip(where, logprobs, strict=True):
            by_row[i] = values
        return {"reference_logprobs": float_lists(by_row), "prompt_features": all_features}

    def conclude(block: Any) -> None:
        per_token = float(np.mean(np.concatenate(block.with_format("numpy")[:2048]["reference_logprobs"])))
        run.note(reference={"mean_logprob_per_token": per_token})
        log.info("reference: %.3f nats a completion token on the first rows", -per_token)
        if run.recipe.reference.source == "as_is" and per_token < _FAR_FROM_ROWS:
            log.warning(
                "reference: the rows are far from the model as it is (%.2f nats a token); importance weights will be "
                "mostly clipped. Consider reference.source: fit",
                -per_token,
            )

    source, description = run.table.open("tokens"), "reference log-probabilities"
    run.table.write_columns("reference", key, source, compute, description=description, conclude=conclude)


# Nats a token below which an instruct model plainly does not write such completions.
_FAR_FROM_ROWS = -3.0


def value(run: Run) -> None:
    """Block `value`: V(x), and beside it A = R - V."""
    from leftover.prepare.value.estimate import RowConstants, estimate_values
    from leftover.prepare.value.samples import mean_sampled_rewards

    table = run.table.open("rows", "split", "tokens", "reference", "reward")
    targets = value_targets(run.recipe, run.reward)
    key = {
        "from": {name: run.table.digest(name) for name in ("reference", "reward", "split")},
        "targets": targets,
        "settings": run.recipe.value.model_dump(exclude={"targets"}),
        "seed": run.seed,
    }
    if targets == "reference_samples":
        key["max_new_tokens"] = run.recipe.max_new_tokens

    def compute() -> dict[str, Any]:
        kept = np.flatnonzero(equals(table, "kept", True))
        inside = table.select(kept)
        reward = column(inside, "reward")
        if not np.isfinite(reward).any():
            raise UserError("no row has a score: there is no value to fit (such rows can train the reference only)")
        model = run.models.reference()
        rows = RowConstants(
            column(inside, "group"),
            column(inside, "family_id"),
            reward,
            equals(inside, "split", "train"),
            FixedLists(inside, "prompt_features"),
            inside["prompt_ids"],
        )

        def sample_rewards(chosen: np.ndarray) -> np.ndarray:
            return mean_sampled_rewards(
                model,
                run.models.tokenizer,
                inside,
                chosen,
                run.reward,
                run.recipe.value,
                run.recipe.max_new_tokens,
                run.seed,
                run.recipe.evaluate.batch_size,
            )

        values, report = estimate_values(
            rows,
            run.recipe.value,
            targets,
            model=model,
            tokenizer=run.models.tokenizer,
            compute_dtype=run.recipe.compute_dtype,
            seed=run.seed,
            sample_rewards=sample_rewards,
        )
        whole = np.full(len(table), np.nan)
        whole[kept] = values
        advantages = advantage(torch.from_numpy(column(table, "reward").copy()), torch.from_numpy(whole))
        run.note(value=report, leftover=leftover_facts(advantages.numpy()[kept][rows.is_train]))
        return {"value": whole, "advantage": advantages.numpy()}

    run.table.write_whole("value", key, compute)


def leftover_facts(advantages: np.ndarray) -> dict[str, Any]:
    """How many training rows are left over, how large their advantages are, how evenly they carry the run."""
    scored = advantages[np.isfinite(advantages)]
    positive = scored[leftover_mask(torch.from_numpy(scored)).numpy()]
    quantiles = [float(q) for q in np.quantile(scored, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])] if len(scored) else []
    ess = effective_sample_size(positive)
    if len(positive) and ess < 0.1 * len(positive):
        log.warning("leftover: few rows carry the run (effective sample size %.0f of %d)", ess, len(positive))
    log.info("leftover: %d of %d training rows, effective sample size %.0f", len(positive), len(scored), ess)
    return {
        "training_rows": len(scored),
        "leftover_rows": len(positive),
        "share": len(positive) / max(len(scored), 1),
        "effective_sample_size": ess,
        "advantage_quantiles": quantiles,
    }
