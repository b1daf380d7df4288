"""The stages that give the table its columns. Each writes one block, or finds it written already."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.data.formats import check_files, data_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, SPLITS, as_prompt, check_rows
from leftover.data.splits import assign_splits, count_near_duplicates
from leftover.data.tokens import Limits, tokenise
from leftover.errors import UserError
from leftover.manifest import write_json
from leftover.objectives import OBJECTIVES
from leftover.rewards import ColumnReward
from leftover.rewards.transform import apply_transform, fit_transform
from leftover.selection import check_requirements
from leftover.table import column, equals
from leftover.workspace import Run

log = logging.getLogger(__name__)


def read(run: Run) -> None:
    """Block `rows`: the user's rows, checked."""
    data, stats = run.recipe.data, dict[str, int]()
    check_files(data)  # before an earlier table makes way
    settings = data.model_dump(
        include={"path", "format", "columns", "documents", "on_bad_row", "hub_split", "max_rows", "drop_listed"}
    )
    files = {path: run.hashes.of(path) for path in data_files(data) if Path(path).exists()}

    def rows() -> Iterator[dict]:
        yield from check_rows(read_rows(data), data, run.rejects, stats)
        run.note(rows=stats)

    if run.table.write_rows("rows", {"files": files, "settings": settings}, rows, ROWS_SCHEMA):
        log.info(
            "rows: %d read, %d rejected, %d repeat an earlier row, %d without a recorded score",
            stats["read"],
            stats["rejected"],
            stats["duplicates"],
            stats["without_reward"],
        )


def split(run: Run) -> None:
    """Block `split`: group, family and split of every row."""
    data = run.recipe.data
    key = {
        "from": {"rows": run.table.digest("rows")},
        "sizes": [data.validation_size, data.test_size],
        "seed": run.seed,
    }
    rows = run.table.open("rows")

    def compute() -> dict[str, Any]:
        columns = assign_splits(rows, data, run.seed)
        near = count_near_duplicates(rows["prompt"], columns["split"])
        counts = {name: int((columns["split"] == name).sum()) for name in SPLITS}
        run.note(split=counts | {"held_out_near_duplicates_of_train": near})
        log.info("split: %s; %d held-out prompts nearly repeat a training prompt", counts, near)
        return columns

    run.table.write_whole("split", key, compute)


def tokens(run: Run) -> None:
    """Block `tokens`: token ids under the truncation rule; rows that it drops go to the rejects."""
    data = run.recipe.data
    limits = Limits(data.max_prompt_tokens, data.max_completion_tokens, data.long_completions)
    key = {
        "from": {"rows": run.table.digest("rows")},
        "tokenizer": run.tokenizer_key,
        "limits": list(limits),
    }
    rows = run.table.open("rows")

    def compute(shard: Any) -> dict[str, Any]:
        done = tokenise(run.tokenizer, shard["prompt"][:], shard["completion"][:], shard["conversational"][:], limits)
        ids = pa.list_(pa.int32())
        return {
            "prompt_ids": pa.array(done.prompt_ids, type=ids),
            "completion_ids": pa.array(done.completion_ids, type=ids),
            "kept": done.kept,
            "prompt_cut": done.prompt_cut,
            "completion_long": done.completion_long,
        }

    def conclude(table: Any) -> None:
        long, cut = int(column(table, "completion_long").sum()), int(column(table, "prompt_cut").sum())
        dropped = long if data.long_completions == "drop" else 0
        run.rejects.start("tokens")
        for i in np.flatnonzero(equals(table, "kept", False)) if dropped else []:
            row = rows[int(i)]
            reason = f"completion longer than data.max_completion_tokens ({data.max_completion_tokens})"
            run.rejects.add("tokens", row["where"], reason, {k: row[k] for k in ("prompt", "completion")})
        run.note(tokens={"prompts_cut": cut, "completions_long": long, "rows_dropped": dropped})
        log.info(
            "tokens: %d prompts cut on the left, %d completions too long (%s)",
            cut,
            long,
            "cut, without end of sequence" if data.long_completions == "cut" else f"{dropped} rows put aside",
        )
        if dropped == len(rows):
            raise UserError(
                f"every completion is longer than data.max_completion_tokens ({data.max_completion_tokens}); raise it"
            )

    run.table.write_columns("tokens", key, rows, compute, description="tokenise", conclude=conclude)


def fit_reference(run: Run) -> None:
    """The reference: NLL on the training rows, or a model given by path, or the base as it is."""
    recipe = run.recipe
    if recipe.reference.source != "fit":
        log.info("reference: %s, taken from %s", recipe.reference.source, run.reference_path)
        if recipe.reference.source == "as_is" and recipe.model.path is None:
            raise UserError("reference.source: as_is needs model.path: random weights cannot be a reference")
        return
    from leftover.training import discard, effective, train_reference

    key = {
        "from": {name: run.table.digest(name) for name in ("tokens", "split")},
        "base": run.base_key,
        "model": recipe.model.model_dump(include={"dtype", "attn_implementation", "lora"}),
        "rows": recipe.data.rows,
        "train": effective(recipe.reference.train),
        "seed": run.seed,
    }
    if not run.manifest.begin("reference", key, lambda: discard(run.folder / "reference")).finished:
        run.manifest.finish("reference", **train_reference(run))


def score(run: Run) -> None:
    """Block `scores`: every reward component unweighted; block `reward`: their transformed sum."""
    recipe = run.recipe
    rows = run.table.open("rows")
    key: dict[str, Any] = {"from": {"rows": run.table.digest("rows")}, "functions": run.reward.identity()}

    def compute(shard: Any) -> dict[str, Any]:
        prompts = [as_prompt(p, c) for p, c in zip(shard["prompt"][:], shard["conversational"][:], strict=True)]
        columns = {}
        for name, function in run.reward.components.items():
            if isinstance(function, ColumnReward):
                scores = [np.nan if r is None else r for r in shard["recorded_reward"][:]]
            else:
                scores = function(prompts, shard["completion"][:])
                _check_scores(name, scores, shard)
            columns[f"reward/{name}"] = np.asarray(scores, np.float64)
        return columns

    run.table.write_columns("scores", key, rows, compute, description="score")
    key = {
        "from": {name: run.table.digest(name) for name in ("scores", "split")},
        "weights": run.reward.weights,
        "transform": recipe.reward.transform,
    }
    scores = run.table.open("scores", "split")

    def total() -> dict[str, Any]:
        summed = np.array(run.reward.total({n: column(scores, f"reward/{n}").tolist() for n in run.reward.components}))
        fitted = fit_transform(recipe.reward.transform, summed[equals(scores, "split", "train")])
        write_json(run.folder / "reward_transform.json", fitted)
        return {"reward": apply_transform(fitted, summed)}

    if run.table.write_whole("reward", key, total):
        reward = column(run.table.open("reward"), "reward")
        found = reward[np.isfinite(reward)]
        if len(found) == 0:
            log.warning("reward: no row has a score; only the reference can be trained from these rows")
        elif np.ptp(found) == 0:
            log.warning("reward: all rewards are equal (%g); no row can be better than its value", found[0])
    _check_rewards(run)


def _check_rewards(run: Run) -> None:
    """Refuse a policy that the rewards cannot serve before the reference is fitted for it."""
    table = run.table.open("rows", "split", "tokens", "reward")
    trains = equals(table, "split", "train") & equals(table, "kept", True)
    if run.recipe.data.rows == "chosen":
        trains &= equals(table, "is_chosen", True)
    reward = column(table, "reward")[trains]
    for name, fields in run.recipe.policies.items():
        settings = run.recipe.train | fields
        objective = OBJECTIVES[settings.get("objective", "a_lol_seq")]
        needed = "reward" in objective.requires or settings.get("rows") in ("leftover", "top")
        if needed and not np.isfinite(reward).any():
            raise UserError(
                f"policy '{name}' needs scores, and no training row has one in the column "
                f"'{run.recipe.data.columns.reward}': name the column in data.columns.reward, or give reward.functions"
            )
        needs_advantage = "advantage" in objective.requires or settings.get("rows") == "leftover"
        if needs_advantage and np.nanmax(reward) == np.nanmin(reward) and run.value_targets != "reference_samples":
            # Left to the arithmetic, advantages of rounding errors would be trained on.
            raise UserError(
                f"policy '{name}': all recorded rewards are equal ({np.nanmax(reward):g}), so that no training row has "
                "a positive advantage: there is nothing left over to train on"
            )
        if "nonnegative_reward" in objective.requires:
            check_requirements(name, objective, {"reward": reward})


def _check_scores(name: str, scores: list[float], shard: Any) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(scores, np.float64)))
    if len(bad):
        where = shard[int(bad[0])]["where"]
        raise UserError(f"reward function '{name}' gave {scores[int(bad[0])]} for {where} ({len(bad)} such rows)")
