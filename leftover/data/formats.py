"""From `data` of a recipe to rows: which file is read how, and which layout makes rows of its records."""

import itertools
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from leftover.data.comet import HEADER, comet_row
from leftover.data.dialogue import expand_dialogue
from leftover.data.files import Source, read_documents, read_hub, read_json, read_jsonl, read_parquet, read_table
from leftover.data.generic import expand_record
from leftover.data.hh import expand_hh, listed_rows
from leftover.data.labels import LABEL, label_is_reward
from leftover.data.records import FAULT, LEFT_OUT, Located, Record
from leftover.data.reddit import reddit_row
from leftover.errors import OF_THE_MACHINE, UserError, looked_for, shortened
from leftover.recipe.data_section import ENDINGS, DataSection

_READERS: dict[str, Callable[[Source, DataSection], Iterator[Located]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_table,
    "tsv": read_table,
    "parquet": read_parquet,
    "hub": read_hub,
    "documents": read_documents,
}
# Published layouts, over any kind of file; with all other formats rows are in the user's own columns. They raise
# ValueError for a faulty record.
_ONE_ROW = {"comet": comet_row, "reddit": reddit_row}
_SEVERAL_ROWS = {"hh": expand_hh, "dialogue": expand_dialogue}


def read_rows(data: DataSection) -> Iterator[Located]:
    """Every row of every file of `data`, with the place it came from (`file:line` or `file row n`).

    A faulty row holds the reason under `__fault__`, one that a declared rule drops under `__left_out__`: `check_rows`
    deals with both. Where several files or subsets are read, each row names its own.
    """
    check_files(data)
    sources = list_sources(data)
    dropped = listed_rows(sources, data.drop_listed) if data.drop_listed else {}
    streams = [_READERS[source.kind](source, data) for source in sources]
    labelled, streams[0] = _labelled(streams[0], sources, data)
    for source, stream in zip(sources, streams, strict=True):
        for number, (where, row) in enumerate(stream):
            if len(sources) > 1 and row.get(data.columns.source) is None:
                row[data.columns.source] = source.name
            if FAULT in row:
                yield where, row
            elif number in dropped.get(source.path, ()):
                yield where, {LEFT_OUT: "on the list of data.drop_listed"}
            else:
                yield from expand(Record(where, row, source.name, number, labelled), data)


def read_records(data: DataSection) -> Iterator[Located]:
    """Every record of every file of `data` as it stands there, before a layout makes rows of it."""
    check_files(data)
    return itertools.chain.from_iterable(_READERS[source.kind](source, data) for source in list_sources(data))


def _labelled(
    stream: Iterator[Located], sources: Sequence[Source], data: DataSection
) -> tuple[bool, Iterator[Located]]:
    """Whether the column `label` is the reward, and the stream of the first source with what was read of it.

    The sources are read twice only where their first record has a label.
    """
    first = list(itertools.islice(stream, 1))
    if not any(LABEL in row or FAULT in row for _, row in first):
        return False, itertools.chain(first, stream)
    records = (row for source in sources for _, row in _READERS[source.kind](source, data))
    return label_is_reward(records, data), itertools.chain(first, stream)


def expand(record: Record, data: DataSection) -> list[Located]:
    """The rows of one record; a faulty record gives its fault alone."""
    try:
        if data.format in _ONE_ROW:
            return [(record.where, _ONE_ROW[data.format](record, data))]
        return list(_SEVERAL_ROWS.get(data.format, expand_record)(record, data))
    except ValueError as error:
        return [(record.where, record.row | {FAULT: str(error)})]


def check_files(data: DataSection) -> None:
    """UserError if a file of `data` is missing or none; a path that cannot be a file is taken for a Hub id."""
    for path in data.paths:
        if data.format != "hub" and (what := _no_file(path)):
            raise UserError(f"'{shortened(path, 100)}'{data.names.path} {what}: name a data file")
        if _kind(path, data) != "hub" and not Path(path).is_file():
            raise UserError(f"no data file at '{path}'{data.names.path}{looked_for(path)}")


def _no_file(path: str) -> str | None:
    """What stands at a path that no rows can be read from, though it is there; None for a file, or for nothing."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISREG(mode):
            with Path(path).open("rb") as file:
                file.read(1)
            return None
    except FileNotFoundError:
        return "is a link to what is not there" if Path(path).is_symlink() else None
    except NotADirectoryError:  # Hub ids may begin as a file is called
        return None
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder" if Path(path).suffix in ENDINGS else None
    return "is a pipe, which can be read only once" if stat.S_ISFIFO(mode) else "is no regular file"


def data_files(data: DataSection) -> list[str]:
    """The files and Hub ids that the rows come from."""
    return data.paths + ([data.drop_listed] if data.drop_listed else [])


def list_sources(data: DataSection) -> list[Source]:
    """What is read, in order, each under a distinct name: a file's without its ending, or what tells subsets apart."""
    kinds = {path: _kind(path, data) for path in data.paths}
    files = _distinct_names([path for path, kind in kinds.items() if kind != "hub"])
    hub = [path for path in kinds if path not in files]
    folders, splits = (v if isinstance(v, list) else [v] for v in (data.hub_data_dir, data.hub_split))
    subsets = list(itertools.product(hub, [data.hub_config], folders, splits))
    telling = [i for i in range(4) if len({subset[i] for subset in subsets}) > 1] or [0]
    header = HEADER if data.format == "comet" else ()
    sources: list[Source] = []
    for path in data.paths:
        if path in files:
            sources.append(Source(path, kinds[path], files[path], header=header))
        for subset in (subset for subset in subsets if subset[0] == path):
            sources.append(Source(path, "hub", "/".join(str(subset[i]) for i in telling), *subset[1:]))
    return sources


def _kind(path: str, data: DataSection) -> str:
    declared, key = data.format, f"{data.names.data}.format"
    if declared in _READERS:
        return declared
    for suffix in Path(path).suffixes[-2:]:
        if suffix in ENDINGS:
            return ENDINGS[suffix]
    if not Path(path).exists():
        return "hub"
    if Path(path).is_dir():
        raise UserError(
            f"'{path}' (data.path) is a folder without a run: name a data file, a recipe, or the folder of a run"
        )
    remedy = f"set {key} to one of {', '.join(_READERS)} (plain text)"
    if declared != "auto":
        remedy = f"as {key}: {declared} needs; let it end in one of {', '.join(ENDINGS)}, or these and .gz"
    raise UserError(f"cannot tell the kind of the file '{path}' by its name: {remedy}")


def _distinct_names(paths: Iterable[str]) -> dict[str, str]:
    """File names without their endings; if two are alike, with as many folders before them as it takes."""

    def stem(path: str) -> str:
        name = Path(path).name.removesuffix(".gz")
        return name.removesuffix(Path(name).suffix) if Path(name).suffix in (*ENDINGS, ".txt") else name

    parts = {path: [*Path(path).parent.parts, stem(path)] for path in paths}
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "/".join(whole[-depth:]) for path, whole in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: path for path in parts}
