"""Rows that a user gives in Python, in whatever holds some -> checked rows of the table, and what is said of others."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from leftover.data.chat import Options
from leftover.data.formats import expand, read_rows
from leftover.data.labels import AS_REWARD, label_is_reward
from leftover.data.records import FAULT, LEFT_OUT, Located, Record, Row
from leftover.data.rows import Skipped, as_prompt, check_rows
from leftover.errors import UserError, located
from leftover.recipe.data_section import ColumnsSection, DataSection
from leftover.recipe.policy_config import PolicyConfig, PythonData
from leftover.store.table import SHARD_ROWS

log = logging.getLogger(__name__)

# Also a data frame of pandas or polars, or a table of pyarrow.
Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset | Iterable[Mapping[str, Any]] | str | Path

# Columns of prepared rows that nobody has but who prepared them.
CONSTANTS = {"reference_logprobs", "value", "advantage", "reward_quantile", "mismatched_ids", "prompt_features"}
_SKIPPED_SHOWN = 20
# Stands for the completion of a row that is a prompt alone.
_NO_COMPLETION = "-"


def checked_rows(
    rows: Rows,
    name: str = "train_dataset",
    args: PolicyConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    completions: str = "needed",
    labels: bool = True,
) -> list[Row]:
    """Rows of the table from what a user gave as the data set `name`; faults are raised together, or skipped and told.

    Besides the columns of ROWS_SCHEMA each has its own `chat_template_kwargs`, as TRL's trainers read them, and rows
    that are tokens already have `prompt_ids` and `completion_ids`.

    Args:
        tokenizer: for the text of rows that are tokens.
        completions: needed; `if given`: rows may be prompts alone, whose completion is then None; `not used`.
        labels: whether a column `label` of true and false may be the reward.
    """
    of_file = isinstance(rows, (str, Path))
    path = str(rows) if of_file else name
    data = args.data(path) if args else PythonData(path=path, columns=ColumnsSection(split=None))
    options: dict[str, Options] = {}
    tokens: dict[str, Row] = {}
    alone: set[str] = set()

    def given() -> Iterator[Located]:
        for where, row in _of_file(name, data) if of_file else located_rows(rows, name, data, completions):
            if not labels and AS_REWARD in row:
                row = {key: value for key, value in row.items() if key not in (AS_REWARD, data.columns.reward)}
            if FAULT not in row and LEFT_OUT not in row:
                try:
                    options[where] = _options(row)
                    if found := token_ids(row):
                        tokens[where] = found
                        row = row | _texts(row, found, data, tokenizer)
                except ValueError as error:
                    row = row | {FAULT: str(error)}
                if completions != "needed" and row.get(data.columns.completion) is None and data.columns.prompt in row:
                    alone.add(where)
                    row = row | {data.columns.completion: _NO_COMPLETION}
            yield where, row

    stats, skipped = dict[str, Any](), Skipped()
    checked = list(check_rows(given(), data, skipped, stats))
    _tell(name, stats, skipped)
    for row in checked:
        row |= {"chat_template_kwargs": options[row["where"]]} | tokens.get(row["where"], {})
        if row["where"] in alone or completions == "not used":
            row["completion"] = None
    if tokens and any("prompt_ids" not in row for row in checked):
        raise UserError(f"{name}: some rows are token ids and some are texts; give all in one form")
    return checked


def _tell(name: str, stats: dict[str, Any], skipped: Skipped) -> None:
    for reason, count in stats["left_out"].items():
        log.warning("%s: %d dropped %s", name, count, reason)
    if skipped.rows:
        shown = "".join(f"\n  {row}" for row in skipped.rows[:_SKIPPED_SHOWN])
        more = f"\n  and {len(skipped.rows) - _SKIPPED_SHOWN} more" if len(skipped.rows) > _SKIPPED_SHOWN else ""
        log.warning("%s: %d of %d rows skipped as faulty:%s%s", name, len(skipped.rows), stats["read"], shown, more)


def _of_file(name: str, data: DataSection) -> Iterator[Located]:
    if Path(data.paths[0]).is_dir():
        raise UserError(f"{name}: '{data.path}' is a folder: name a data file, or give datasets.load_from_disk of it")
    with located(name):
        yield from read_rows(data)


def located_rows(rows: Any, name: str, data: DataSection, completions: str = "needed") -> Iterator[Located]:
    """The rows of anything that holds some, in any layout, each with its place: `name[0]`, `name[1]`, ..."""
    found = stream(rows, name)
    labelled = label_is_reward(found, data)
    for i, row in enumerate(found):
        if completions == "not used" and row.get(data.columns.prompt) is not None:
            row = row | {data.columns.completion: _NO_COMPLETION}  # of a pair, too: it counts once
        yield from expand(Record(f"{name}[{i}]", row, name, i, labelled), data)


class _Stream:
    """Rows that every loop reads anew, so that none need be held."""

    def __init__(self, read: Callable[[], Iterator[Row]]):
        self._read = read

    def __iter__(self) -> Iterator[Row]:
        return self._read()


def records(rows: Any, name: str) -> list[Row]:
    """The rows of anything that holds some, as dictionaries; UserError for anything else."""
    return list(stream(rows, name))


def stream(rows: Any, name: str) -> Iterable[Row]:
    """`records`, to be looped over more than once; those of a data set, a data frame or a table are not held."""
    if isinstance(rows, _Stream):
        return rows
    if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        return rows.with_format(None)
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):  # a data frame of pandas
        columns = list(map(str, rows.columns))
        cells = partial(rows.itertuples, index=False, name=None)
        return _Stream(lambda: (dict(zip(columns, map(_plain, row), strict=True)) for row in cells()))
    if hasattr(rows, "iter_rows"):  # of polars
        return _Stream(lambda: rows.iter_rows(named=True))
    if hasattr(rows, "__arrow_c_stream__") and not hasattr(rows, "iloc"):  # a column of pandas has both
        table = _Stream(partial(_of_arrow, rows, name))
        return list(table) if hasattr(rows, "read_next_batch") else table  # a stream is read but once
    if isinstance(rows, Mapping):  # a DatasetDict is one
        lists = [entries for entries in rows.values() if isinstance(entries, list) and entries]
        columns_of_it = any(not isinstance(entries[0], Mapping) for entries in lists)
        remedy = "give datasets.Dataset.from_dict of it" if columns_of_it else "choose one split of it"
        raise UserError(f"{name} is a dictionary of {', '.join(map(str, rows))}: {remedy}")
    found = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, (str, bytes)) else None
    if found is None or (found and not all(isinstance(row, Mapping) for row in found)):
        other = "" if found is None else f" of {next(type(r).__name__ for r in found if not isinstance(r, Mapping))}"
        raise _no_rows(rows, name, other)
    return [{name: _native(value) for name, value in row.items()} for row in found]


def _no_rows(rows: Any, name: str, of: str = "") -> UserError:
    """The refusal of what holds no rows; `of`: what it holds instead."""
    return UserError(
        f"{name} is a {type(rows).__name__}{of}; give a datasets.Dataset, dictionaries in a list or any other "
        "iterable, a data frame, or the path of a data file"
    )


def _of_arrow(rows: Any, name: str) -> Iterator[Row]:
    """Rows of a table of pyarrow, or of anything else that gives its columns by Arrow's protocol."""
    import pyarrow as pa

    try:
        batches = pa.RecordBatchReader.from_stream(rows)
    except pa.ArrowInvalid as error:  # one column
        raise _no_rows(rows, name) from error
    for batch in batches:
        for start in range(0, len(batch), SHARD_ROWS):
            yield from batch.slice(start, SHARD_ROWS).to_pylist()


def as_dataset(rows: Any, name: str) -> datasets.Dataset:
    """Prepared rows as a Dataset, unchanged."""
    return rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(records(rows, name))


def _native(value: Any) -> Any:
    """Python's own numbers and lists in place of numpy's."""
    if isinstance(value, np.ndarray):
        return [_native(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    """A cell of a data frame, whose gaps are None."""
    value = _native(value)
    if isinstance(value, (str, list, dict)) or value is None:
        return value
    return None if type(value).__name__ == "NAType" or value != value else value  # pandas.NA, NaN, NaT


def column_names(rows: Any) -> set[str]:
    """The columns of a Dataset, or of the first of a list of rows; none of what can be read only once, or is a file."""
    if isinstance(rows, datasets.Dataset):
        return set(rows.column_names)
    first = rows[0] if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)) and rows else None
    return set(first) if isinstance(first, Mapping) else set()


def token_ids(row: Row) -> Row | None:
    """`prompt_ids` and `completion_ids` of a row that is tokens already; None of a row of text.

    They stand under these names, or in `input_ids`, of which `labels` (-100 elsewhere) or `completion_mask` mark the
    completion. Raises ValueError if what they mark is not one completion behind a prompt.
    """
    if row.get("prompt_ids") is not None:
        return {"prompt_ids": list(row["prompt_ids"]), "completion_ids": list(row.get("completion_ids") or [])}
    marks = next((name for name in ("labels", "completion_mask") if isinstance(row.get(name), list)), None)
    if marks is None or not isinstance(row.get("input_ids"), list):
        return None
    ids = row["input_ids"]
    trained = [mark != -100 if marks == "labels" else bool(mark) for mark in row[marks]]
    if len(trained) != len(ids):
        raise ValueError(f"'{marks}' has {len(trained)} entries for {len(ids)} of 'input_ids'")
    if True not in trained or trained[0]:
        raise ValueError(f"'{marks}' marks no completion behind a prompt: -100 (0) over the prompt alone")
    start = trained.index(True)
    end = len(ids) - trained[::-1].index(True)  # padding may follow
    if not all(trained[start:end]) or (marks == "labels" and row[marks][start:end] != ids[start:end]):
        raise ValueError(f"'{marks}' marks more than one stretch of 'input_ids', or other tokens than these")
    return {"prompt_ids": ids[:start], "completion_ids": ids[start:end]}


def _texts(row: Row, tokens: Row, data: DataSection, tokenizer: PreTrainedTokenizerBase | None) -> Row:
    """The texts of a row of tokens, for reward functions; those that it has are kept."""
    assert tokenizer is not None
    if row.get("conversational") and isinstance(row.get("prompt"), str):  # as our own tables write messages
        row = row | {"prompt": as_prompt(row["prompt"], True)}

    def text(name: str, ids: list[int]) -> Any:
        if row.get(name) is not None or not ids:
            return row.get(name)
        plain = str(tokenizer.decode(ids, skip_special_tokens=True))
        return plain if plain.strip() else tokenizer.decode(ids)

    columns = data.columns
    return {
        columns.prompt: text(columns.prompt, tokens["prompt_ids"]),
        columns.completion: text(columns.completion, tokens["completion_ids"]),
    }


def _options(row: Row) -> Options:
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(f"'chat_template_kwargs' is a {type(options).__name__}, not a dictionary of options")
    # A data set gives every row the keys of all rows, with None for those that it lacks.
    return {name: value for name, value in options.items() if value is not None}
