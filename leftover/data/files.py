"""Readers of files (JSON, CSV, TSV, Parquet, the Hub, plain text) -> (where, record), a record as its file has it."""

import csv
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from leftover.data.records import FAULT, Located, Row, parse_number
from leftover.errors import OF_THE_MACHINE, UserError, one_line, shortened
from leftover.recipe.data_section import DataSection

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

# Columns of numbers or truth values.
_SCORES = {"chosen_score", "chosen_reward", "rejected_score", "rejected_reward", "is_chosen"}
DELIMITERS = (";", "\t", "|", ",")
LONGEST_LINE = 64 * 2**20  # bytes of a text file, as they are unpacked; a row is no longer than that
_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*)\s+")


class Source(NamedTuple):
    """One file, or one split of one subset of a data set on the Hub."""

    path: str
    kind: str
    name: str  # short, and distinct among the sources of a run
    config: str | None = None
    data_dir: str | None = None
    split: str | None = None
    header: tuple[str, ...] = ()  # the published columns of a table whose file may lack a header line


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, plain or gzip; an empty or undecodable file is an error that names it."""
    number = 0
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}:{number}: a line of more than {LONGEST_LINE // 2**20} MiB: no data file?")
                # Some editors begin a file with a byte-order mark.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text ({error.reason}); convert it, as with iconv") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        at = f" after line {number}" if number else ""
        raise UserError(
            f"{path}: cannot be read{at} ({error.strerror}): is it a data file, and may you read it?"
        ) from error
    if number == 0:
        raise UserError(f"{path}: the file is empty")


def read_jsonl(source: Source, data: DataSection) -> Iterator[Located]:
    """One JSON object a line; any other line is a faulty row."""
    for number, line in read_lines(source.path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = {FAULT: f"malformed JSON: {error.msg} at column {error.colno}"}
        except (ValueError, RecursionError) as error:
            row = {FAULT: f"malformed JSON: {_beyond(error)}"}
        if not isinstance(row, dict):
            row = {FAULT: f"expected one JSON object a line, found a {type(row).__name__}"}
        yield f"{source.path}:{number}", row | ({"line": line.rstrip("\r\n")} if FAULT in row else {})


def read_json(source: Source, data: DataSection) -> Iterator[Located]:
    """One list of records, or one mapping from ids to records (then in the column `id`); else JSON lines."""
    first = next((line for _, line in read_lines(source.path) if line.strip()), "")
    try:
        lines = isinstance(content := json.loads(first), dict) and not _is_mapping(content)
    except (ValueError, RecursionError):
        lines = False
    if lines:
        yield from read_jsonl(source, data)
        return
    try:
        content = json.loads("".join(line for _, line in read_lines(source.path)))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source.path}:{error.lineno}: malformed JSON: {error.msg} at column {error.colno}; if every line is "
            f"a record, set {data.names.data}.format: jsonl"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source.path}: malformed JSON: {_beyond(error)}") from error
    if _is_mapping(content):
        content = [{"id": name} | row for name, row in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{source.path}: a JSON file holds a list of records or a mapping from ids to records")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            row = {FAULT: f"expected a JSON object, found a {type(row).__name__}", "record": row}
        yield f"{source.path} record {number}", row


def _beyond(error: ValueError | RecursionError) -> str:
    """What Python's reader of JSON refuses beside faulty syntax."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _is_mapping(content: object) -> TypeGuard[dict[str, Row]]:
    return isinstance(content, dict) and bool(content) and all(isinstance(row, dict) for row in content.values())


def read_table(source: Source, data: DataSection) -> Iterator[Located]:
    """Rows of a CSV or TSV file; cells are texts, an empty one None, and the scores among them numbers."""
    path, names = source.path, data.table.names
    quotes = source.kind == "csv" if data.table.quotes is None else data.table.quotes
    delimiter = data.table.delimiter or ("," if source.kind == "csv" else "\t")
    scores = _SCORES if data.labels else {*_SCORES, data.columns.reward}
    first_row = 1 if names else 2
    looks_quoted = 0
    for number, cells in (_quoted if quotes else _unquoted)(path, delimiter):
        if names is None:
            if isinstance(cells, str):
                raise UserError(f"{path}: the header line cannot be read: {cells}")
            names = _header(path, cells, source.header, data)
            if names is cells:
                continue
            first_row = 1
        elif number == 1 and cells == data.table.names:
            key = f"{data.names.data}.table.names"
            raise UserError(f"{path}: its first line is a header with the names in {key}: leave the key out")
        # A quoted row may take several lines.
        where = f"{path} row {number - first_row + 1}" if quotes else f"{path}:{number}"
        if isinstance(cells, str):
            yield where, {FAULT: cells}
        elif len(cells) != len(names):
            yield (
                where,
                {
                    FAULT: f"{len(cells)} cells for the {len(names)} columns {shortened(', '.join(names))}",
                    "cells": cells,
                },
            )
        else:
            looks_quoted += not quotes and any(len(c) > 1 and c[0] == c[-1] == '"' for c in cells)
            row: Row = dict(zip(names, (cell or None for cell in cells), strict=True))
            yield where, row | {name: parse_number(row[name]) for name in scores & row.keys() if row[name] is not None}
    if looks_quoted:
        log.warning(
            "%s: %d rows have cells that begin and end with a double quote, read as text; if they enclose cells, set "
            "%s.table.quotes: true",
            path,
            looks_quoted,
            data.names.data,
        )


def _quoted(path: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Numbered rows by the rules of CSV; for a row that breaks them a text with the reason."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    number = 1
    while True:
        before = reader.line_num
        try:
            cells: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed takes all lines up to the next one.
            cells = f"lines {before + 1} to {reader.line_num} are not a row of CSV: {error}"
        if cells:
            yield number, cells
            number += 1


def _unquoted(path: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Numbered lines, cut at every delimiter."""
    for number, line in read_lines(path):
        if line.strip("\r\n"):
            yield number, line.rstrip("\r\n").split(delimiter)


def _header(path: str, cells: list[str], published: tuple[str, ...], data: DataSection) -> list[str]:
    """The names of the columns: the first line, or the published names where that line is a row."""
    if published and not set(published) <= set(cells):
        return list(published)
    if len(cells) == 1 and (sign := next((sign for sign in DELIMITERS if sign in cells[0]), None)):
        raise UserError(
            f"{path}: its header is the one column {cells[0]!r:.100}: set {data.names.data}.table.delimiter to "
            f"{json.dumps(sign)} if that parts the columns"
        )
    # Spreadsheets leave columns without a name behind the last one.
    cells[:] = [name or f"column {number}" for number, name in enumerate(cells, start=1)]
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated:
        key = f"{data.names.data}.table.names"
        raise UserError(
            f"{path}: the header names '{shortened(repeated[0])}' twice: rename one; if it is a row, set {key}"
        )
    return cells


def read_parquet(source: Source, data: DataSection) -> Iterator[Located]:
    """Rows of a Parquet file, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            if repeated := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{source.path}: it has two columns named '{shortened(repeated)}': rename one")
            left_out = set[str]()
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in _as_python(batch, left_out, source))
            for number, row in enumerate(rows, start=1):
                yield f"{source.path} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: cannot be read as parquet: {one_line(error)}") from error


def _as_python(batch: "pa.RecordBatch", left_out: set[str], source: Source) -> list[Row]:
    """The rows of a batch; one with a cell that is no value of Python's, such as faulty UTF-8, is a faulty row.

    Times that Python has no values for are seldom what rows are made of: such a column is left out, from here on, with
    a warning.
    """
    import pyarrow as pa

    rows: list[Row] = [{} for _ in range(batch.num_rows)]
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in left_out:
            continue
        try:
            for row, value in zip(rows, column.to_pylist(), strict=True):
                row[name] = value
        except Exception:  # pyarrow, and what makes Python's values, raise another type for every cause
            if pa.types.is_temporal(column.type):
                left_out.add(name)
                text = "%s: the column '%s' (%s) is left out: Python has no such times, or does not know their zone"
                log.warning(text, source.path, name, column.type)
                continue
            for row, cell in zip(rows, column, strict=True):
                try:
                    row[name] = cell.as_py()
                except Exception as fault:
                    row.setdefault(FAULT, f"its column '{name}' ({column.type}) cannot be read: {one_line(fault, 80)}")
    return rows


def read_hub(source: Source, data: DataSection) -> Iterator[Located]:
    """Rows of a data set on the Hub, streamed."""
    import datasets

    path, config, folder, split = source.path, source.config, source.data_dir, source.split
    named = " ".join(part for part in (path, config, folder, split) if part)
    try:
        rows = datasets.load_dataset(path, config, data_dir=folder, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{named} row {number}", row
    except Exception as error:  # datasets raises a different type for every cause
        offline = "Offline" in type(error).__name__ or "Offline" in str(error)
        remedy = "; nothing is downloaded offline: unset HF_HUB_OFFLINE, or name a data file" if offline else ""
        raise UserError(f"{named}: cannot be read as hub: {one_line(error)}{remedy}") from error


def read_documents(source: Source, data: DataSection) -> Iterator[Located]:
    """Plain text cut into prompts of a few sentences and the sentences that follow; a document is a family."""
    settings, columns = data.documents, data.columns
    needed = settings.prompt_sentences + settings.completion_sentences
    for number, document in enumerate(_documents(source.path, settings.separator), start=1):
        sentences = split_sentences(document)
        for start in range(0, len(sentences) - needed + 1, settings.stride or needed):
            middle = start + settings.prompt_sentences
            row = {
                columns.prompt: " ".join(sentences[start:middle]),
                columns.completion: " " + " ".join(sentences[middle : start + needed]),
                columns.family: f"{Path(source.path).name}#{number}",
            }
            yield f"{source.path} document {number}", row


def _documents(path: str, separator: str) -> Iterator[str]:
    lines: list[str] = []
    for _, line in read_lines(path):
        if line.strip() == separator:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def split_sentences(text: str) -> list[str]:
    """Sentences of plain English text; closing quotes stay with the sentence they close."""
    flat = " ".join(text.split())
    return [s for s in _SENTENCE_END.sub(lambda m: m.group(1) + "\n", flat).split("\n") if s]
