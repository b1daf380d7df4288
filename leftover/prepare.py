"""The stages that give the table its columns. Each writes one block, or finds it written already."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.config import LAYOUTS, DataSection
from leftover.data.formats import check_files, data_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, SPLITS, check_rows
from leftover.data.splits import assign_splits, count_near_duplicates
from leftover.data.tokens import Limits, tokenise
from leftover.errors import UserError
from leftover.table import column, equals
from leftover.workspace import Run

log = logging.getLogger(__name__)

# Settings of `data` that change no row: what becomes of rows in later stages.
_NOT_OF_ROWS = {
    "max_prompt_tokens",
    "max_completion_tokens",
    "long_completions",
    "rows",
    "validation_size",
    "test_size",
}


def read(run: Run) -> None:
    """Block `rows`: the user's rows, checked."""
    data, stats = run.recipe.data, dict[str, Any]()
    check_files(data)  # before an earlier table makes way
    files = {path: run.hashes.of(path) for path in data_files(data) if Path(path).exists()}

    def rows() -> Iterator[dict]:
        yield from check_rows(read_rows(data), data, run.rejects, stats)
        run.note(rows=stats)

    if run.table.write_rows("rows", {"files": files, "settings": row_settings(data)}, rows, ROWS_SCHEMA):
        log.info(
            "rows: %d read, %d rejected, %d repeat an earlier row, %d without a recorded score",
            stats["read"],
            stats["rejected"],
            stats["duplicates"],
            stats["without_reward"],
        )
        for reason, count in stats["left_out"].items():
            log.info("rows: %d left out %s", count, reason)
        if stats["other_parts"]:
            log.info("rows: %d left out, of families outside data.part", stats["other_parts"])


def row_settings(data: DataSection) -> dict[str, Any]:
    """The settings that rows depend on: all but those of later stages and of other layouts."""
    return data.model_dump(exclude=_NOT_OF_ROWS | (set(LAYOUTS) - {data.format}))


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

    def compute(shard: Any, _: Path) -> dict[str, Any]:
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
