"""From `data` of a recipe to rows: which file is read how, and which layout makes rows of its records."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from leftover.data import comet, dialogue, hh, reddit
from leftover.data.documents import read_documents, split_sentences
from leftover.data.files import Source, read_hub, read_json, read_jsonl, read_lines, read_parquet, read_table
from leftover.data.generic import expand_pair, expand_record
from leftover.data.records import FAULT, LEFT_OUT, Located, Record
from leftover.errors import UserError
from leftover.recipe.sections import DataSection

__all__ = [
    "Located",
    "check_files",
    "data_files",
    "expand",
    "expand_pair",
    "read_lines",
    "read_rows",
    "split_sentences",
]

_READERS: dict[str, Callable[[Source, DataSection], Iterator[Located]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_table,
    "tsv": read_table,
    "parquet": read_parquet,
    "hub": read_hub,
    "documents": read_documents,
}
# A published layout, over whatever kind of file; all other formats hold rows in the user's own columns.
_LAYOUTS: dict[str, Callable[[Record, DataSection], Iterator[Located]]] = {
    "hh": hh.expand_hh,
    "comet": comet.expand_comet,
    "reddit": reddit.expand_reddit,
    "dialogue": dialogue.expand_dialogue,
}
_HEADERS = {"comet": comet.HEADER}
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
}


def read_rows(data: DataSection) -> Iterator[Located]:
    """Every row of every file of `data`, with the place it came from (`file:line` or `file row n`).

    A row that cannot be one holds the reason under `__fault__`, one that a declared rule leaves out under
    `__left_out__`: `check_rows` deals with both. Where several files or subsets are read, each row says which it is of.
    """
    check_files(data)
    sources = list_sources(data)
    dropped = hh.listed_rows(sources, data.drop_listed) if data.drop_listed else {}
    for source in sources:
        for number, (where, row) in enumerate(_READERS[source.kind](source, data)):
            if len(sources) > 1 and row.get(data.columns.source) is None:
                row[data.columns.source] = source.name
            if FAULT in row:
                yield where, row
            elif number in dropped.get(source.path, ()):
                yield where, {LEFT_OUT: "on the list of data.drop_listed"}
            else:
                yield from expand(Record(where, row, source.name, number), data)


def expand(record: Record, data: DataSection) -> list[Located]:
    try:
        # As a list: a record that turns out to be faulty gives no rows at all.
        return list(_LAYOUTS.get(data.format, expand_record)(record, data))
    except ValueError as error:
        return [(record.where, record.row | {FAULT: str(error)})]


def check_files(data: DataSection) -> None:
    """UserError where a file of `data` is not there; a path that cannot be a file is taken for a Hub id."""
    for path in _paths(data):
        if _kind(path, data.format) != "hub" and not Path(path).is_file():
            raise UserError(f"no data file at '{path}' (key data.path)")


def data_files(data: DataSection) -> list[str]:
    """The files that the rows come from, for keys; a Hub id stands for itself."""
    return _paths(data) + ([data.drop_listed] if data.drop_listed else [])


def list_sources(data: DataSection) -> list[Source]:
    """What is read, in order, each under a name of its own: a file's without its ending, or what tells a subset."""
    paths = _paths(data)
    files = _distinct_names([path for path in paths if _kind(path, data.format) != "hub"])
    hub = [path for path in dict.fromkeys(paths) if path not in files]
    subsets = list(itertools.product(hub, [data.hub_config], _listed(data.hub_data_dir), _listed(data.hub_split)))
    telling = [i for i in range(4) if len({subset[i] for subset in subsets}) > 1] or [0]
    sources: list[Source] = []
    for path in paths:
        if path in files:
            kind = _kind(path, data.format)
            sources.append(Source(path, kind, files[path], header=_HEADERS.get(data.format, ())))
        for subset in subsets:
            if subset[0] == path:
                name = "/".join(str(subset[i]) for i in telling)
                sources.append(Source(path, "hub", name, *subset[1:], header=()))
    return sources


def _paths(data: DataSection) -> list[str]:
    return [data.path] if isinstance(data.path, str) else list(data.path)


def _listed(value: str | list[str] | None) -> list[str | None]:
    return list(value) if isinstance(value, list) else [value]


def _kind(path: str, declared: str) -> str:
    if declared in _READERS:
        return declared
    for suffix in Path(path).suffixes[-2:]:
        if suffix in _ENDINGS:
            return _ENDINGS[suffix]
    if Path(path).exists() and declared in _LAYOUTS:
        raise UserError(
            f"cannot tell what kind of file '{path}' is by its name, as data.format: {declared} needs; let it end in "
            f"one of {', '.join(_ENDINGS)}, or these and .gz"
        )
    if Path(path).exists():
        raise UserError(f"cannot tell the format of '{path}' by its name; set data.format")
    return "hub"


def _distinct_names(paths: list[str]) -> dict[str, str]:
    """File names without their endings; where two are alike, with as many folders before them as it takes."""
    parts = {path: [*Path(path).parent.parts, _stem(path)] for path in paths}
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "/".join(whole[-depth:]) for path, whole in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: path for path in paths}


def _stem(path: str) -> str:
    name = Path(path).name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in (*_ENDINGS, ".txt") else name
