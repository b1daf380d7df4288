"""The table on disk: blocks of columns, row-aligned, memory-mapped, each written shard by shard.

table/manifest.json          a key for every block, and so for every column
table/<block>/00000.arrow    some thousand rows (`shard_bounds`); written under a temporary name and renamed
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from leftover.errors import UserError
from leftover.monitoring.ranks import is_main_process, told, wait
from leftover.monitoring.terminal import progress_bar
from leftover.store.folders import remove
from leftover.store.manifest import Key, Manifest

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_ROWS = 2048
# So many shards of a size, then twice as large ones: ten million rows are 700 files, and none takes long to redo.
_OF_A_SIZE, _LARGEST = 64, 8 * SHARD_ROWS
_NOTED_EVERY = 1.0  # seconds
Column: TypeAlias = pa.Array | np.ndarray | list


def shard_bounds() -> Iterator[tuple[int, int]]:
    """First row and size of every shard, whatever their number. The first 131,072 rows lie in shards of SHARD_ROWS."""
    start, size = 0, SHARD_ROWS
    while True:
        for _ in range(_OF_A_SIZE):
            yield start, size
            start += size
        size = max(size, min(2 * size, _LARGEST))


class Table:
    """Columns that are computed once and then only read.

    The `write_*` methods return False if a block that is finished under the same key is reused.
    """

    def __init__(self, folder: Path, meaning: Callable[[Key], Key] | None = None):
        self.folder = folder
        self.manifest = Manifest(folder, label="table/", meaning=meaning)
        self._opened: dict[str, pa.Table] = {}  # finished blocks

    def _begin(self, block: str, key: Key, *, in_parts: bool = False) -> bool:
        """Whether a block is finished under this key. One of an earlier version whose shards are gone is not."""
        of_before = self.has(block) and "files" not in self.manifest.entries[block]
        if is_main_process() and of_before and not self._shards(block):
            self.manifest.entries.pop(block)
        return self.manifest.begin(block, key, lambda: self._discard(block), in_parts=in_parts).finished

    def write_rows(self, block: str, key: Key, rows: Callable[[], Iterable[dict]], schema: pa.Schema) -> bool:
        """Write a block from a stream of rows."""
        if self._begin(block, key):
            return False
        # A stream cannot be resumed in the middle; reading is cheap, so it starts again.
        self._discard(block)
        num_rows = self._write_stream(block, rows() if is_main_process() else (), schema)
        self.manifest.finish(block, wrote=self._shards(block), num_rows=num_rows, columns=schema.names)
        return True

    def _write_stream(self, block: str, rows: Iterable[dict], schema: pa.Schema | None) -> int:
        num_rows, stream = 0, iter(rows)
        for number, (_, size) in enumerate(shard_bounds()):
            parts = _parts(itertools.islice(stream, size))
            if not (tables := [pa.Table.from_pylist(part, schema=schema) for part in parts]):
                break
            num_rows += self._write_shard(block, number, tables)
        return num_rows

    def write_columns(
        self,
        block: str,
        key: Key,
        source: "Dataset",
        compute: Callable[["Dataset", Path, int], Mapping[str, Column]],
        *,
        description: str | None = None,
        conclude: Callable[["Dataset"], None] = lambda block: None,
    ) -> bool:
        """Write a block computed from `source`, shard by shard; finished shards are kept on resume.

        `compute` gets at most SHARD_ROWS source rows, so that memory does not grow with the shards; a path for what it
        wants to keep of them while their shard is unfinished, removed after that; and the place of the first of these
        rows. It returns their columns. `conclude` gets the whole block just before it counts as finished.
        """
        if self._begin(block, key, in_parts=True):
            return False
        bounds = itertools.takewhile(lambda shard: shard[0] < len(source), shard_bounds())
        shards = [(n, start, min(start + size, len(source))) for n, (start, size) in enumerate(bounds)]
        self._discard_other_bounds(block, shards)
        todo = told([shard for shard in shards if not self._is_written(block, shard[0])])
        with (
            progress_bar(len(todo), description or block, "shard", shown=len(todo) > 1) as bar,
            self._noting() as note,
        ):
            for number, start, end in todo:
                (self.folder / block).mkdir(parents=True, exist_ok=True)
                tables, scratches = list[pa.Table](), list[Path]()
                for place in range(start, end, SHARD_ROWS):
                    part = f".{len(tables)}" if tables else ""
                    scratches.append(self._shard(block, number).with_suffix(f"{part}.scratch"))
                    rows = source.select(range(place, min(place + SHARD_ROWS, end)))
                    tables.append(_arrow_table(compute(rows, scratches[-1], place)))
                self._write_shard(block, number, tables)
                if is_main_process():
                    for scratch in scratches:
                        scratch.unlink(missing_ok=True)
                note(self._shard(block, number))
                bar.update()
        wait()
        whole = _dataset(self._map(block))
        conclude(whole)
        self.manifest.finish(block, wrote=self._shards(block), num_rows=len(source), columns=whole.column_names)
        return True

    @contextlib.contextmanager
    def _noting(self) -> Iterator[Callable[[Path], None]]:
        """Gives what notes that a shard is whole; once a second, since the manifest grows with the shards.

        A killed run makes again what was not noted.
        """
        written, last = list[Path](), time.monotonic()

        def note(path: Path) -> None:
            nonlocal last
            written.append(path)
            if time.monotonic() - last > _NOTED_EVERY:
                self.manifest.note_costs(written)
                written.clear()
                last = time.monotonic()

        try:
            yield note
        finally:
            if written:
                self.manifest.note_costs(written)

    def write_whole(self, block: str, key: Key, compute: Callable[[], Mapping[str, Column]]) -> bool:
        """Write a block that needs all rows at once (splits, values)."""
        if self._begin(block, key):
            return False
        columns = compute()
        self._discard(block)
        num_rows = self._write_shard(block, 0, [_arrow_table(columns)])
        self.manifest.finish(block, wrote=self._shards(block), num_rows=num_rows, columns=list(columns))
        return True

    def open(self, *blocks: str) -> "Dataset":
        """The named blocks side by side as one memory-mapped `datasets.Dataset`. UserError if a shard is damaged."""
        for block in set(blocks) - self._opened.keys() if is_main_process() else ():
            self.manifest.check(block)
        parts = {block: self._opened.get(block) or self._map(block) for block in blocks}
        self._opened |= {name: part for name, part in parts.items() if self.has(name)}
        return _dataset(pa.table({name: part[name] for part in parts.values() for name in part.column_names}))

    def has(self, block: str) -> bool:
        return self.manifest.is_complete(block)

    def digest(self, block: str) -> str:
        return self.manifest.digest(block)

    def _discard(self, block: str) -> None:
        self._opened.pop(block, None)
        remove(self.folder / block, self.folder.parent)

    def _discard_other_bounds(self, block: str, shards: list[tuple[int, int, int]]) -> None:
        """Discard an unfinished block of more than 64 shards that a version without larger ones began."""
        later = [(n, end - start) for n, start, end in shards[_OF_A_SIZE:] if self._is_written(block, n)]
        if any(_num_rows(self._shard(block, number)) != rows for number, rows in later):
            self._discard(block)

    def _map(self, block: str) -> pa.Table:
        # A column may hold nothing but missing values in some shards, and so be of no type.
        if not (shards := self._shards(block)):
            what = f"{self.folder} is a file" if self.folder.is_file() else f"no rows in {self.folder / block}"
            raise UserError(f"{what}, where a run keeps its rows: move away what is there, and run the recipe again")
        return pa.concat_tables([_mapped(shard) for shard in shards], promote_options="permissive")

    def _shards(self, block: str) -> list[Path]:
        return sorted((self.folder / block).glob("*.arrow"))

    def _is_written(self, block: str, number: int) -> bool:
        path = self._shard(block, number)
        return path.is_file() and self.manifest.is_known(block, path)

    def _shard(self, block: str, number: int) -> Path:
        return self.folder / block / f"{number:05d}.arrow"

    def _write_shard(self, block: str, number: int, tables: list[pa.Table]) -> int:
        """Write tables as one; returns its rows. A column may hold nothing but missing values in some of them."""
        table = pa.concat_tables(tables, promote_options="permissive")
        if not is_main_process():
            return len(table)
        path = self._shard(block, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
        return len(table)


def on_disk(folder: Path, rows: Iterable[dict], schema: pa.Schema | None = None) -> "Dataset":
    """Rows of a stream as a data set that is mapped from files in the folder; `schema`: default: as they need it."""
    table = Table(folder)
    table._write_stream("rows", rows, schema)
    return _dataset(table._map("rows"))


def _parts(rows: Iterator[dict]) -> Iterator[list[dict]]:
    while part := list(itertools.islice(rows, SHARD_ROWS)):
        yield part


def _num_rows(shard: Path) -> int:
    return _mapped(shard).num_rows


def _mapped(shard: Path) -> pa.Table:
    """A shard of which nothing is read before it is used."""
    with pa.memory_map(str(shard)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()


def _dataset(table: pa.Table) -> "Dataset":
    """As a data set, which is never pickled: its fingerprint would be of all that is mapped."""
    import datasets
    from datasets.table import InMemoryTable

    return datasets.Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex[:16])


def _arrow_table(columns: Mapping[str, Column]) -> pa.Table:
    def arrow(column: Column) -> pa.Array:
        if isinstance(column, np.ndarray) and column.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        return column if isinstance(column, pa.Array) else pa.array(column)

    return pa.table({name: arrow(column) for name, column in columns.items()})


def float_lists(sequences: Iterable[Any]) -> pa.Array:
    """A column of float32 lists of any length."""
    return pa.array(list(sequences), type=pa.list_(pa.float32()))


def column(dataset: "Dataset", name: str) -> np.ndarray:
    """A column of numbers as an array, NaN if one is missing, without a Python object for every row."""
    return _by_row(dataset, name, lambda chunk: chunk)


def equals(dataset: "Dataset", name: str, value: Any) -> np.ndarray:
    """[N] bool: where a column of texts or truth values holds `value`; False where it is null."""
    import pyarrow.compute as pc

    return _by_row(dataset, name, lambda chunk: pc.fill_null(pc.equal(chunk, value), False)).astype(bool)


def list_lengths(dataset: "Dataset", name: str) -> np.ndarray:
    """[N] int: how long the lists of a column are."""
    import pyarrow.compute as pc

    return _by_row(dataset, name, pc.list_value_length).astype(np.int64)


def list_maxima(dataset: "Dataset", name: str) -> np.ndarray:
    """[N] int: the largest entry of every list of a column of integers; -1 of an empty one."""

    def maxima(lists: pa.ListArray) -> pa.Array:
        lengths, values = np.diff(lists.offsets.to_numpy()), lists.flatten().cast(pa.int64()).to_numpy()
        largest = np.full(len(lengths), -1, np.int64)
        starts = np.cumsum(lengths) - lengths
        if len(values):
            largest[lengths > 0] = np.maximum.reduceat(values, starts[lengths > 0])
        return pa.array(largest)

    return _by_row(dataset, name, maxima).astype(np.int64)


def _by_row(dataset: "Dataset", name: str, of: Callable[[Any], pa.Array]) -> np.ndarray:
    """[N]: what `of` makes of the stored arrays, as numbers; then the rows that the data set selects.

    `datasets` would read a selection row by row, with a Python object and an Arrow array for each.
    """
    stored = dataset.data.column(name)
    parts = [of(chunk).to_numpy(zero_copy_only=False) for chunk in stored.chunks]
    values = np.concatenate(parts) if parts else stored.to_numpy()
    selected = dataset._indices  # no public name tells them
    return values if selected is None else values[selected.column(0).to_numpy()]


def read_rows(rows: "Dataset | dict[str, Any]", names: list[str], chosen: np.ndarray) -> dict[str, list]:
    """These columns of the chosen rows, in the order of `chosen`."""
    if isinstance(rows, dict):
        return {name: [rows[name][int(i)] for i in chosen] for name in names}
    # `rows[name][i]` takes the column apart anew for every row.
    return rows.select_columns(names).select(chosen)[:]


class Stored(Sequence):
    """A column, or what `of` makes of several, of which no row is held: it is read when it is asked for."""

    def __init__(self, dataset: "Dataset", *names: str, of: Callable[[dict[str, Any]], Any] | None = None):
        self._rows, self._of = dataset.select_columns(list(names)), of or itemgetter(*names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._of(self._rows[int(row)])

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), SHARD_ROWS):
            yield from map(self._of, self._rows.select(range(start, min(start + SHARD_ROWS, len(self)))).to_list())


class SomeLists:
    """A column whose lists are of one size, or empty; `lists[rows]` reads these rows, of which none is empty: [n, size]
    float32."""

    def __init__(self, dataset: "Dataset", name: str):
        self._rows, self._name = dataset.select_columns([name]).with_format("arrow"), name
        self.shape = (len(dataset), int(list_lengths(dataset, name).max(initial=0)))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        lists = self._rows[np.asarray(rows)].column(self._name).combine_chunks()
        return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), self.shape[1])
