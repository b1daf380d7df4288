"""The table on disk: blocks of columns, row-aligned, memory-mapped, each written shard by shard.

table/manifest.json          a key for every block, and so for every column
table/<block>/00000.arrow    at most SHARD_ROWS rows; written under a temporary name and renamed
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.monitoring.terminal import progress_bar
from leftover.store.manifest import Key, Manifest

log = logging.getLogger(__name__)

SHARD_ROWS = 2048


class Table:
    """Columns that are computed once and then only read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = Manifest(folder, label="table/")

    def write_rows(self, block: str, key: Key, rows: Callable[[], Iterable[dict]], schema: pa.Schema) -> bool:
        """Write a block from a stream of rows. Returns False where the finished block was reused."""
        if self.manifest.begin(block, key, lambda: self._discard(block)).finished:
            return False
        # A stream has no place to resume at: reading is cheap, so it starts again.
        self._discard(block)
        num_rows = 0
        for number, shard in enumerate(_chunks(rows(), SHARD_ROWS)):
            self._write_shard(block, number, pa.Table.from_pylist(shard, schema=schema))
            num_rows += len(shard)
        self.manifest.finish(block, num_rows=num_rows, columns=schema.names)
        return True

    def write_columns(
        self,
        block: str,
        key: Key,
        source: Any,
        compute: Callable[[Any, Path], dict[str, Any]],
        *,
        description: str | None = None,
        conclude: Callable[[Any], None] = lambda block: None,
    ) -> bool:
        """Write a block computed from `source` (a Dataset), shard by shard; finished shards are kept on resume.

        `compute` gets the source rows of one shard and returns its columns; beside them a path where it may keep what
        it has of a shard that takes long, which goes once the shard is written. `conclude` gets the whole block just
        before it counts as finished, so that what it notes is there whenever the block is. Returns False on reuse.
        """
        if self.manifest.begin(block, key, lambda: self._discard(block)).finished:
            return False
        starts = range(0, len(source), SHARD_ROWS)
        todo = [(n, start) for n, start in enumerate(starts) if not self._shard(block, n).is_file()]
        with progress_bar(len(todo), description or block, "shard", shown=len(todo) > 1) as bar:
            for number, start in todo:
                scratch = self._shard(block, number).with_suffix(".scratch")
                scratch.parent.mkdir(parents=True, exist_ok=True)
                shard = compute(source.select(range(start, min(start + SHARD_ROWS, len(source)))), scratch)
                self._write_shard(block, number, pa.table({name: _arrow(column) for name, column in shard.items()}))
                scratch.unlink(missing_ok=True)
                self.manifest.note_costs()
                bar.update()
        whole = self._open_block(block)
        conclude(whole)
        self.manifest.finish(block, num_rows=len(source), columns=whole.column_names)
        return True

    def write_whole(self, block: str, key: Key, compute: Callable[[], dict[str, Any]]) -> bool:
        """Write a block that needs all rows at once (splits, values). Returns False on reuse."""
        if self.manifest.begin(block, key, lambda: self._discard(block)).finished:
            return False
        columns = compute()
        self._discard(block)
        whole = pa.table({name: _arrow(column) for name, column in columns.items()})
        self._write_shard(block, 0, whole)
        self.manifest.finish(block, num_rows=len(whole), columns=list(columns))
        return True

    def open(self, *blocks: str) -> Any:
        """The named blocks side by side as one memory-mapped `datasets.Dataset`."""
        import datasets

        parts = [self._open_block(block) for block in blocks]
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts, axis=1)

    def has(self, block: str) -> bool:
        return self.manifest.is_complete(block)

    def digest(self, block: str) -> str:
        return self.manifest.digest(block)

    def _discard(self, block: str) -> None:
        shutil.rmtree(self.folder / block, ignore_errors=True)

    def _open_block(self, block: str) -> Any:
        import datasets

        shards = sorted((self.folder / block).glob("*.arrow"))
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(shard)) for shard in shards])

    def _shard(self, block: str, number: int) -> Path:
        return self.folder / block / f"{number:05d}.arrow"

    def _write_shard(self, block: str, number: int, table: pa.Table) -> None:
        path = self._shard(block, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)


def _arrow(column: Any) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    if getattr(column, "ndim", 1) == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
    return pa.array(column)


def _chunks(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    chunk: list[dict] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def float_lists(sequences: Iterable[Any]) -> pa.Array:
    """A column of float32 lists of unequal length."""
    return pa.array(list(sequences), type=pa.list_(pa.float32()))


def column(dataset: Any, name: str) -> np.ndarray:
    """A column of numbers as an array, a missing one NaN; no Python object is made for a row."""
    return _chunked(dataset, name).to_numpy()


def equals(dataset: Any, name: str, value: Any) -> np.ndarray:
    """[N] bool: where a column of texts or truth values holds `value`; False where it holds nothing."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(_chunked(dataset, name), value), False).to_numpy()


def list_lengths(dataset: Any, name: str) -> np.ndarray:
    """[N] int: how long the lists of a column are."""
    import pyarrow.compute as pc

    return np.concatenate([pc.list_value_length(part).to_numpy() for part in _parts(dataset, name)]).astype(np.int64)


class FixedLists:
    """A column of lists of one size, of which `lists[rows]` reads the rows asked for: [n, size]."""

    def __init__(self, dataset: Any, name: str):
        self._rows, self._name = dataset.select_columns([name]).with_format("arrow"), name
        self.shape = (len(dataset), dataset.features[name].length)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        lists = self._rows[np.asarray(rows)].column(self._name).combine_chunks()
        return lists.flatten().to_numpy().reshape(len(rows), self.shape[1])


def _chunked(dataset: Any, name: str) -> pa.ChunkedArray:
    if len(dataset) == 0:
        return dataset.select_columns([name]).with_format("arrow")[:].column(name)
    # Each part is joined: its chunks are views of one row each where `select` has moved rows.
    return pa.chunked_array([part.combine_chunks() for part in _parts(dataset, name)])


def _parts(dataset: Any, name: str) -> Iterator[pa.ChunkedArray]:
    """A column, some thousand rows at a time: `datasets` makes an object for every row that `select` has moved."""
    for batch in dataset.select_columns([name]).with_format("arrow").iter(batch_size=2 * SHARD_ROWS):
        yield batch[name]
