"""The stages that give the table its columns. Each writes one block, or finds it written already."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from leftover.data.checks import SPLITS
from leftover.data.formats import check_files, data_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, check_rows, log_rows
from leftover.data.splits import assign_splits, count_near_duplicates, words_of
from leftover.data.tokenizer import texts_of, train_tokenizer
from leftover.data.tokens import Limits, Tokenised, tokenise
from leftover.errors import UserError
from leftover.monitoring.ranks import is_main_process, shared
from leftover.prepare.checks import KEEP_LONG, NAME_SCORES, all_too_long
from leftover.prepare.reread import reread
from leftover.recipe.data_section import LAYOUTS, DataSection, idle_for_rows
from leftover.recipe.needs import records_scores
from leftover.recipe.sections import TokenizerSection
from leftover.runs.claim import check_random_weights
from leftover.runs.keys import tokenizer_key
from leftover.runs.run import Run
from leftover.store.manifest import Key
from leftover.store.table import column, equals

log = logging.getLogger(__name__)

_SKIP = "Fix them, set model.chat_template, or set data.on_bad_row: skip to put such rows aside in rejected_rows.jsonl"
# Where more of the first rows have a prompt and a completion that meet word to word, a space is likely to be missing.
_RUN_TOGETHER = 0.9
_SEAMS_READ = 1000
# What the token ids of a row depend on, and its place.
_TEXTS = ("prompt", "completion", "conversational", "tools", "where", "ended")


def read(run: Run) -> None:
    """Block `rows`: the user's rows, checked."""
    data, stats = run.recipe.data, dict[str, Any]()
    check_files(data)  # before an earlier table is discarded
    files = {path: run.hashes.of(path) for path in data_files(data) if Path(path).exists()}

    def rows() -> Iterator[dict]:
        remedy = NAME_SCORES if records_scores(run.recipe) else None
        yield from check_rows(read_rows(data), data, run.rejects, stats, score_remedy=remedy)
        run.note(rows=stats)

    written = run.table.write_rows("rows", {"files": files, "settings": row_settings(data)}, rows, ROWS_SCHEMA)
    if written and is_main_process():
        log_rows(stats, run.rejects)


def row_settings(data: DataSection) -> dict[str, Any]:
    """The settings that rows depend on: all but those of later stages and of other layouts."""
    return data.model_dump(exclude=idle_for_rows(data) | (set(LAYOUTS) - {data.format}))


def split(run: Run) -> None:
    """Block `split`: group, family and split of every row."""
    data = run.recipe.data
    sizes = [data.validation_size, data.test_size]
    key = {"from": {"rows": run.table.digest("rows")}, "sizes": sizes, "seed": run.seed}
    rows = run.table.open("rows")

    def compute() -> dict[str, Any]:
        columns = assign_splits(rows, data, run.seed)
        # The first row of every prompt on either side; a user's own splits may cut through one.
        first = np.unique(2 * columns["group"] + (columns["split"] == "train"), return_index=True)[1]
        near = count_near_duplicates(words_of(rows.select(first)), columns["split"][first])
        counts = {name: int((columns["split"] == name).sum()) for name in SPLITS}
        run.note(split=counts | {"held_out_near_duplicates_of_train": near})
        shares = ", ".join(f"{count} {name}" for name, count in counts.items())
        log.info("split: rows: %s; %d held-out prompts nearly repeat a training prompt", shares, near)
        return columns

    run.table.write_whole("split", key, compute)


def fit_tokenizer(run: Run) -> None:
    """`tokenizer/`: trained on the training rows, if the recipe asks for that."""
    settings = run.recipe.model.tokenizer
    if not isinstance(settings, TokenizerSection):
        return
    folder = run.folder / "tokenizer"
    key = {"from": {name: run.table.digest(name) for name in ("rows", "split")}, "settings": settings.model_dump()}
    if run.manifest.begin("tokenizer", key, partial(run.discard, folder)).finished:
        return
    rows = run.table.open("rows", "split")
    training = rows.select(np.flatnonzero(equals(rows, "split", "train")))
    tokenizer = train_tokenizer(texts_of(training), settings.vocab_size)
    check_random_weights(run.recipe.model, tokenizer)
    if is_main_process():
        tokenizer.save_pretrained(folder)
    run.manifest.finish("tokenizer", wrote=[folder], vocabulary=len(tokenizer))
    log.info("tokenizer: %d tokens, from the training rows", len(tokenizer))


def tokens(run: Run) -> None:
    """Block `tokens`: token ids under the truncation rule; rows that it drops go to the rejects.

    Conversations that the chat template refuses are faulty rows (`data.on_bad_row`).
    """
    fit_tokenizer(run)
    data = run.recipe.data
    limits = Limits(data.max_prompt_tokens, data.max_completion_tokens, data.long_completions)
    key: Key = {"from": {"rows": run.table.digest("rows")}}
    key |= {"tokenizer": tokenizer_key(run), "limits": list(limits)}
    rows = run.table.open("rows")
    key |= reread(run.models.chat, rows)
    names = [name for name in _TEXTS if name in rows.column_names]  # tables of earlier versions lack the last

    def compute(shard: Dataset, _: Path, __: int) -> dict[str, Any]:
        def by_row(texts: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
            done = tokenise(run.models.chat, texts, limits, skip_faulty=data.on_bad_row == "skip", remedy=_SKIP)
            return list(zip(*done, strict=True))

        done = Tokenised(*map(list, zip(*shared(by_row, shard.select_columns(names).to_list()), strict=True)))
        ids = pa.list_(pa.int32())
        return done._asdict() | {
            "prompt_ids": pa.array(done.prompt_ids, type=ids),
            "completion_ids": pa.array(done.completion_ids, type=ids),
            "fault": pa.array(done.fault, type=pa.string()),
        }

    conclude = partial(_count_tokens, run, rows)
    if not run.table.write_columns("tokens", key, rows, compute, description="tokenise", conclude=conclude):
        return
    plain = [row for row in rows.select(range(min(len(rows), _SEAMS_READ))) if not row["conversational"]]
    met = sum(bool(row["prompt"][-1:].strip()) and row["completion"][:1].isalnum() for row in plain)
    if plain and met > _RUN_TOGETHER * len(plain) and not run.models.chat.two_texts:
        log.warning(
            "tokens: prompts and completions meet without a space between them; where there should be one, set "
            'data.columns.completion: " {your_column}"'
        )
    if plain:
        run.models.chat.tell_plain(row["prompt"] for row in plain)
    if equals(rows, "conversational", True).any():
        run.models.chat.warn(tools=rows.with_format("arrow")["tools"].null_count < len(rows))


def _count_tokens(run: Run, rows: Dataset, block: Dataset) -> None:
    """Write the rejected rows down, and note and log what was cut and dropped. UserError if no row is left."""
    data = run.recipe.data
    long, cut, systems = (int(column(block, name).sum()) for name in ("completion_long", "prompt_cut", "system_cut"))
    dropped = long if data.long_completions == "drop" else 0
    rejected = np.flatnonzero(equals(block, "kept", False))
    faulty = len(rejected) - dropped
    run.rejects.start("tokens")
    for i in rejected:
        row = rows[int(i)]
        reason = block[int(i)]["fault"]
        reason = reason or f"completion longer than data.max_completion_tokens ({data.max_completion_tokens})"
        run.rejects.add("tokens", row["where"], reason, {k: row[k] for k in ("prompt", "completion")})
    facts = {"prompts_cut": cut, "completions_long": long, "rows_dropped": dropped}
    share_cut = (long - dropped) / len(rows)
    rare = {"system_turns_cut": systems, "rows_refused": faulty, "share_cut": share_cut}
    run.note(tokens=facts | {name: count for name, count in rare.items() if count})
    log.info(
        "tokens: %d prompts cut on the left, %d completions too long (%s)%s",
        cut,
        long,
        "cut, without end of sequence" if data.long_completions == "cut" else f"{dropped} rows dropped",
        f"; to keep them {KEEP_LONG}" if dropped else "",
    )
    if share_cut:
        log.warning(
            "tokens: %.1f %% of the rows are cut at data.max_completion_tokens (%d) and have no end: who trains on "
            "them learns not to stop. Raise it, or set data.long_completions: drop",
            100 * share_cut,
            data.max_completion_tokens,
        )
    if faulty:
        log.warning("tokens: %d rows dropped because chat template or tokenizer cannot write them", faulty)
    if systems:
        log.warning(
            "tokens: %d of the cut prompts lost their system turn or tools, which stand first: raise "
            "data.max_prompt_tokens",
            systems,
        )
    if dropped == len(rows):
        raise all_too_long(data)
    if len(rejected) == len(rows):
        raise UserError(f"no row is left: see {run.rejects.path} for the reasons")
