"""Readers: files -> (where, row) pairs, one dictionary a row, in the user's own columns."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leftover.config import ColumnsSection, DataSection
from leftover.errors import UserError

Located = tuple[str, dict[str, Any]]

_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*)\s+")


def read_rows(data: DataSection) -> Iterator[Located]:
    """Every row of every file of `data`, with the place it came from (`file:line` or `file row n`)."""
    check_files(data)
    for path in _paths(data):
        yield from _READERS[_kind(path, data.format)](path, data)


def check_files(data: DataSection) -> None:
    """UserError where a file of `data` is not there; a path that cannot be a file is taken for a Hub id."""
    for path in _paths(data):
        if _kind(path, data.format) != "hub" and not Path(path).is_file():
            raise UserError(f"no data file at '{path}' (key data.path)")


def data_files(data: DataSection) -> list[str]:
    """The files that the rows come from, for keys; a Hub id stands for itself."""
    return _paths(data) + ([data.drop_listed] if data.drop_listed else [])


def _paths(data: DataSection) -> list[str]:
    return [data.path] if isinstance(data.path, str) else list(data.path)


def _kind(path: str, declared: str) -> str:
    if declared != "auto":
        return declared
    suffixes = "".join(Path(path).suffixes[-2:])
    for ending, kind in ((".jsonl", "jsonl"), (".json", "jsonl"), (".parquet", "parquet"), (".csv", "csv")):
        if ending in suffixes:
            return kind
    if Path(path).exists():
        raise UserError(f"cannot tell the format of '{path}' by its name; set data.format")
    return "hub"


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, plain or gzip; an empty or undecodable file is an error that names it."""
    opener: Any = gzip.open if path.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                # Some editors begin a file with a byte-order mark.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 text ({error.reason}); convert the file, for example with iconv"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    if number == 0:
        raise UserError(f"{path}: the file is empty")


def _jsonl(path: str, data: DataSection) -> Iterator[Located]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = {"__fault__": f"malformed JSON: {error.msg} at column {error.colno}"}
        if not isinstance(row, dict):
            row = {"__fault__": f"expected one JSON object a line, found a {type(row).__name__}"}
        if "__fault__" in row:
            row["line"] = line.rstrip("\r\n")
        yield from expand_pair(where, row, data.columns)


def _datasets(builder: str):
    def read(path: str, data: DataSection) -> Iterator[Located]:
        import datasets

        try:
            if builder == "hub":
                rows = datasets.load_dataset(path, split=data.hub_split, streaming=True)
            else:
                rows = datasets.load_dataset(builder, data_files=path, split="train", streaming=True)
            for number, row in enumerate(rows, start=1):
                yield from expand_pair(f"{path} row {number}", row, data.columns)
        except UserError:
            raise
        except Exception as error:  # datasets raises a different type for every cause
            raise UserError(f"{path}: cannot be read as {builder}: {' '.join(str(error).split())[:300]}") from error

    return read


def expand_pair(where: str, row: dict[str, Any], columns: ColumnsSection | None = None) -> Iterator[Located]:
    """One row as it is; a `chosen`/`rejected` pair as two rows that share a prompt.

    A row of nothing but `messages` is a conversation whose last message is the completion.

    Scores come from `chosen_reward` and `rejected_reward` (or `_score`); a pair that has neither says that the
    chosen one is better and no more: 1 and 0.
    """
    columns = columns or ColumnsSection()
    if isinstance(row.get("messages"), list) and columns.prompt not in row and columns.completion not in row:
        yield where, row | {columns.prompt: row["messages"][:-1], columns.completion: row["messages"][-1:]}
        return
    if "chosen" not in row or "rejected" not in row or columns.completion in row:
        yield where, row
        return
    if row.get(columns.reward) is not None:
        one = f"a chosen/rejected pair with one '{columns.reward}': give chosen_reward and rejected_reward"
        yield where, row | {"__fault__": one}
        return
    rest = {k: v for k, v in row.items() if not k.startswith(("chosen", "rejected"))}
    scores = {side: row.get(f"{side}_score", row.get(f"{side}_reward")) for side in ("chosen", "rejected")}
    if scores == {"chosen": None, "rejected": None}:
        scores = {"chosen": 1.0, "rejected": 0.0}
    for side in ("chosen", "rejected"):
        prompt, completion = rest.get(columns.prompt), row[side]
        if isinstance(completion, list) and prompt is None:  # implicit prompt: all turns but the last
            prompt, completion = completion[:-1], completion[-1:]
        extra = {"is_chosen": side == "chosen", columns.reward: scores[side]}
        yield f"{where} {side}", rest | {columns.prompt: prompt, columns.completion: completion} | extra


def _documents(path: str, data: DataSection) -> Iterator[Located]:
    """Plain text cut into prompts of a few sentences and the sentences that follow; a document is a family."""
    settings = data.documents
    needed = settings.prompt_sentences + settings.completion_sentences
    stride = settings.stride or needed
    for number, document in _split_documents(path, settings.separator):
        sentences = split_sentences(document)
        for start in range(0, len(sentences) - needed + 1, stride):
            middle = start + settings.prompt_sentences
            yield (
                f"{path} document {number}",
                {
                    data.columns.prompt: " ".join(sentences[start:middle]),
                    data.columns.completion: " " + " ".join(sentences[middle : start + needed]),
                    data.columns.family: f"{Path(path).name}#{number}",
                },
            )


def _split_documents(path: str, separator: str) -> Iterator[tuple[int, str]]:
    lines: list[str] = []
    number = 1
    for _, line in read_lines(path):
        if line.strip() == separator:
            yield number, "".join(lines)
            lines, number = [], number + 1
        else:
            lines.append(line)
    yield number, "".join(lines)


def split_sentences(text: str) -> list[str]:
    """Sentences of plain English text; closing quotes stay with the sentence they close."""
    flat = " ".join(text.split())
    return [s for s in _SENTENCE_END.sub(lambda m: m.group(1) + "\n", flat).split("\n") if s]


_HH_ROLES = {"<|prompter|>": "user", "<|assistant|>": "assistant"}


def _hh(path: str, data: DataSection) -> Iterator[Located]:
    """Helpful and Harmless rows in the form of PRO (arXiv 2306.17492): prefix turns, suffixes, reward logits."""
    dropped = _listed(path, data.drop_listed)
    for where, row in _jsonl(path, data):
        if row.get("__fault__"):
            yield where, row
            continue
        line = int(where.rpartition(":")[2])
        if line - 1 in dropped:
            continue
        try:
            for i, (turns, suffix) in enumerate(zip(row["prefix"], row["suffix"], strict=True)):
                messages = [_turn(turn) for turn in turns[:-1]]  # the last turn is the bare assistant tag
                yield (
                    f"{where} completion {i}",
                    {
                        data.columns.prompt: messages,
                        data.columns.completion: suffix,
                        data.columns.reward: row["reward"][i],
                        data.columns.family: messages[0]["content"],
                        "is_chosen": i == 0,
                    },
                )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            yield where, row | {"__fault__": f"not a Helpful-and-Harmless row of PRO's form: {error!r}"}


def _turn(turn: str) -> dict[str, str]:
    for tag, role in _HH_ROLES.items():
        if turn.startswith(tag):
            return {"role": role, "content": turn.removeprefix(tag)}
    raise ValueError(f"a turn starts with neither {' nor '.join(_HH_ROLES)}")


def _listed(path: str, listing: str | None) -> set[int]:
    """Row numbers (from 0) that the authors' list drops from this file."""
    if listing is None:
        return set()
    try:
        by_file = json.loads(Path(listing).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{listing}' (key data.drop_listed) cannot be read as JSON: {error}") from error
    stem = Path(path).name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("test_")
    return set(by_file.get(f"{stem}.json", []))


_READERS = {
    "jsonl": _jsonl,
    "parquet": _datasets("parquet"),
    "csv": _datasets("csv"),
    "hub": _datasets("hub"),
    "documents": _documents,
    "hh": _hh,
}
