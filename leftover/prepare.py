"""The stages that give the table its columns. Each writes one block, or finds it written already."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from leftover.advantages import advantage, leftover_mask
from leftover.data.formats import data_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, as_prompt, check_rows
from leftover.data.splits import assign_splits, count_near_duplicates
from leftover.data.tokens import Limits, tokenise
from leftover.draws import effective_sample_size
from leftover.errors import UserError
from leftover.manifest import write_json
from leftover.models import align_generation_config, read_json
from leftover.objectives import OBJECTIVES
from leftover.reference import model_identity, reference_pass
from leftover.rewards import ColumnReward
from leftover.rewards.transform import apply_transform, fit_transform
from leftover.selection import check_requirements
from leftover.standalone import mean_sampled_rewards
from leftover.table import float_lists
from leftover.workspace import Run

log = logging.getLogger(__name__)


def read(run: Run) -> None:
    """Block `rows`: the user's rows, checked."""
    data, stats = run.recipe.data, dict[str, int]()
    settings = data.model_dump(
        include={"path", "format", "columns", "documents", "on_bad_row", "hub_split", "max_rows", "drop_listed"}
    )
    from pathlib import Path

    files = {path: run.hashes.of(path) for path in data_files(data) if Path(path).exists()}
    rows = lambda: check_rows(read_rows(data), data, run.rejects, stats)  # noqa: E731
    if run.table.write_rows("rows", {"files": files, "settings": settings}, rows, ROWS_SCHEMA):
        _facts(run, rows=stats)
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
    if run.table.write_whole("split", key, lambda: assign_splits(rows, data, run.seed)):
        splits = np.array(run.table.open("split")["split"][:])
        near = count_near_duplicates(rows["prompt"][:], splits)
        counts = {name: int((splits == name).sum()) for name in ("train", "validation", "test")}
        _facts(run, split=counts | {"held_out_near_duplicates_of_train": near})
        log.info("split: %s; %d held-out prompts nearly repeat a training prompt", counts, near)


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

    if run.table.write_columns("tokens", key, rows, compute, description="tokenise"):
        table = run.table.open("tokens")
        long, cut = int(np.sum(table["completion_long"][:])), int(np.sum(table["prompt_cut"][:]))
        dropped = long if data.long_completions == "drop" else 0
        run.rejects.start("tokens")
        for i in np.flatnonzero(~np.array(table["kept"][:])) if dropped else []:
            row = rows[int(i)]
            reason = f"completion longer than data.max_completion_tokens ({data.max_completion_tokens})"
            run.rejects.add("tokens", row["where"], reason, {k: row[k] for k in ("prompt", "completion")})
        _facts(run, tokens={"prompts_cut": cut, "completions_long": long, "rows_dropped": dropped})
        log.info(
            "tokens: %d prompts cut on the left, %d completions too long (%s)",
            cut,
            long,
            "cut, without end of sequence" if not dropped else f"{dropped} rows put aside",
        )
        if dropped == len(rows):
            raise UserError(
                f"every completion is longer than data.max_completion_tokens ({data.max_completion_tokens}); raise it"
            )


def fit_reference(run: Run) -> None:
    """The reference: NLL on the training rows, or a model given by path, or the base as it is."""
    recipe = run.recipe
    if recipe.reference.source != "fit":
        log.info("reference: %s, taken from %s", recipe.reference.source, run.reference_path)
        if recipe.reference.source == "as_is" and recipe.model.path is None:
            raise UserError("reference.source: as_is needs model.path: random weights cannot be a reference")
        return
    from leftover.training import effective, train_reference

    key = {
        "from": {name: run.table.digest(name) for name in ("tokens", "split")},
        "base": run.base_key,
        "model": recipe.model.model_dump(include={"dtype", "attn_implementation", "lora"}),
        "rows": recipe.data.rows,
        "train": effective(recipe.reference.train),
        "seed": run.seed,
    }
    status = run.manifest.begin("reference", key)
    if not status.finished:
        run.manifest.finish("reference", **train_reference(run, discard=status.discard))


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
    scores = run.table.open("scores", "split").with_format("numpy")

    def total() -> dict[str, Any]:
        summed = np.array(run.reward.total({n: scores[f"reward/{n}"][:] for n in run.reward.components}))
        fitted = fit_transform(recipe.reward.transform, summed[np.array(scores["split"][:]) == "train"])
        write_json(run.folder / "reward_transform.json", fitted)
        return {"reward": apply_transform(fitted, summed)}

    if run.table.write_whole("reward", key, total):
        reward = np.array(run.table.open("reward").with_format("numpy")["reward"][:])
        found = reward[np.isfinite(reward)]
        if len(found) == 0:
            log.warning("reward: no row has a score; only the reference can be trained from these rows")
        elif np.ptp(found) == 0:
            log.warning("reward: all rewards are equal (%g); no row can be better than its value", found[0])
    _check_rewards(run)


def _check_rewards(run: Run) -> None:
    """Refuse a policy that the rewards cannot serve before the reference is fitted for it."""
    table = run.table.open("rows", "split", "tokens", "reward")
    trains = (np.array(table["split"][:]) == "train") & np.array(table["kept"][:])
    if run.recipe.data.rows == "chosen":
        trains &= np.array([chosen is True for chosen in table["is_chosen"][:]])
    reward = np.array(table.with_format("numpy")["reward"][:])[trains]
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
        if needs_advantage and np.nanmax(reward) == np.nanmin(reward) and value_targets(run) != "reference_samples":
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


def reference_columns(run: Run) -> None:
    """Block `reference`: log-probabilities of completion tokens and pooled prompt features, in one pass."""
    key = {
        "from": {"tokens": run.table.digest("tokens")},
        "reference": model_identity(run.reference_path, run.hashes),
        "dtype": run.recipe.model.dtype,
        "compute_dtype": compute_dtype(run),
        "attention": run.recipe.model.attn_implementation,
    }
    loaded: list[Any] = []

    def compute(shard: Any) -> dict[str, Any]:
        if not loaded:
            loaded.append(run.load_reference())
        rows = list(shard)
        kept = [row for row in rows if row["kept"]]
        logprobs, features = reference_pass(loaded[0], run.tokenizer, kept, compute_dtype=compute_dtype(run))
        assert features is not None
        where = np.flatnonzero([row["kept"] for row in rows])
        all_features = np.full((len(rows), features.shape[1]), np.nan, np.float32)
        all_features[where] = features
        by_row: list[Any] = [[]] * len(rows)
        for i, values in zip(where, logprobs, strict=True):
            by_row[i] = values
        return {"reference_logprobs": float_lists(by_row), "prompt_features": all_features}

    source = run.table.open("tokens")
    if run.table.write_columns("reference", key, source, compute, description="reference log-probabilities"):
        per_token = float(
            np.mean(np.concatenate(run.table.open("reference").with_format("numpy")[:2048]["reference_logprobs"]))
        )
        _facts(run, reference={"mean_logprob_per_token": per_token})
        log.info("reference: %.3f nats a completion token on the first rows", -per_token)
        if run.recipe.reference.source == "as_is" and per_token < _FAR_FROM_ROWS:
            log.warning(
                "reference: the rows are far from the model as it is (%.2f nats a token); importance weights will be "
                "mostly clipped. Consider reference.source: fit",
                -per_token,
            )


# Nats a token below which an instruct model plainly does not write such completions.
_FAR_FROM_ROWS = -3.0


def compute_dtype(run: Run) -> str | None:
    """The autocast dtype that the recipe's training uses; the reference pass shares it."""
    train = run.recipe.train
    return "bfloat16" if train.get("bf16") else "float16" if train.get("fp16") else None


def value_targets(run: Run) -> str:
    """The kind of value targets: the recipe's, or samples where new completions can be scored."""
    targets = run.recipe.value.targets
    if targets == "auto":
        return "reference_samples" if run.reward.scores_new_completions else "recorded"
    if targets == "reference_samples" and not run.reward.scores_new_completions:
        raise UserError(
            "value.targets: reference_samples scores new completions, but the rewards are a recorded column; use "
            "recorded or group_loo"
        )
    return targets


def needs_value(run: Run) -> bool:
    """Whether any policy of the recipe uses values or the leftover selection."""
    merged = [run.recipe.train | fields for fields in run.recipe.policies.values()]
    return any(
        "value" in OBJECTIVES.get(m.get("objective", "a_lol_seq"), OBJECTIVES["a_lol_seq"]).requires
        or m.get("rows") == "leftover"
        for m in merged
    )


def value(run: Run) -> None:
    """Block `value`: V(x), and beside it A = R - V."""
    from leftover.value.estimate import RowConstants, estimate_values

    table = run.table.open("rows", "split", "tokens", "reference", "reward")
    targets = value_targets(run)
    key = {
        "from": {name: run.table.digest(name) for name in ("reference", "reward", "split")},
        "targets": targets,
        "settings": run.recipe.value.model_dump(exclude={"targets"}),
        "seed": run.seed,
    }
    if targets == "reference_samples":
        key["max_new_tokens"] = max_new_tokens(run)

    def compute() -> dict[str, Any]:
        numbers = table.with_format("numpy")
        kept = np.flatnonzero(np.array(table["kept"][:]))
        inside = table.select(kept)
        reward = np.array(numbers["reward"][:])[kept]
        if not np.isfinite(reward).any():
            raise UserError("no row has a score: there is no value to fit (such rows can train the reference only)")
        model = run.load_reference()
        align_generation_config(model, run.tokenizer)
        rows = RowConstants(
            np.array(numbers["group"][:])[kept],
            np.array(numbers["family_id"][:])[kept],
            reward,
            np.array(table["split"][:])[kept] == "train",
            np.asarray(numbers["prompt_features"][:], np.float32)[kept],
            inside["prompt_ids"],
        )
        fitted_transform = read_json(run.folder / "reward_transform.json")

        def sample_rewards(chosen: np.ndarray) -> np.ndarray:
            return mean_sampled_rewards(
                model,
                run.tokenizer,
                inside,
                chosen,
                lambda p, c: apply_transform(fitted_transform, run.reward(p, c)),
                run.recipe.value,
                max_new_tokens(run),
                run.seed,
                run.recipe.evaluate.batch_size,
            )

        values, report = estimate_values(
            rows,
            run.recipe.value,
            targets,
            model=model,
            tokenizer=run.tokenizer,
            compute_dtype=compute_dtype(run),
            seed=run.seed,
            sample_rewards=sample_rewards,
        )
        write_json(run.folder / "value.json", report)
        whole = np.full(len(table), np.nan)
        whole[kept] = values
        reward_all = torch.from_numpy(np.array(numbers["reward"][:], np.float64))
        return {"value": whole, "advantage": advantage(reward_all, torch.from_numpy(whole)).numpy()}

    if run.table.write_whole("value", key, compute):
        _facts(run, value=read_json(run.folder / "value.json"), leftover=leftover_facts(run))


def leftover_facts(run: Run) -> dict[str, Any]:
    """How many training rows are left over, how large their advantages are, how evenly they carry the run."""
    table = run.table.open("split", "tokens", "value").with_format("numpy")
    rows = (np.array(table["split"][:]) == "train") & np.array(table["kept"][:])
    advantages = np.array(table["advantage"][:])[rows]
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


def max_new_tokens(run: Run) -> int:
    return run.recipe.evaluate.max_new_tokens or run.recipe.data.max_completion_tokens


def _facts(run: Run, **facts: Any) -> None:
    """Counts of the preparation, for the report, in `prepare.json`."""
    path = run.folder / "prepare.json"
    write_json(path, (read_json(path) if path.is_file() else {}) | facts)
