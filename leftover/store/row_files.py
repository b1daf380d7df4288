"""Rows in files for people and other programs: JSON lines, CSV, Parquet, or a folder of the library `datasets`."""

import csv
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leftover.errors import UserError, one_line
from leftover.monitoring.terminal import visible
from leftover.store.files import renamed, write_lines
from leftover.store.folders import check_output
from leftover.store.table import SHARD_ROWS, on_disk

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Iterable[dict[str, Any]]


def check_rows_output(path: Path, option: str, endings: Sequence[str]) -> None:
    """Refuse, before anything is computed for it, a path that rows cannot be written to.

    endings: of the files that the command writes; "" is a folder of `datasets`, which must be new or empty.
    """
    if path.suffix not in endings:
        files = " or ".join(ending for ending in endings if ending)
        folder = ", or a folder by a name without an ending" if "" in endings else ""
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UserError(f"{option} {path} {ending}: name a file that ends in {files}{folder}")
    if path.suffix or path.is_file():
        check_output(path, option)
    if not path.suffix and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{option} {path} is {'not empty' if path.is_dir() else 'a file'}: name a new folder")


def write_rows(path: Path, rows: Rows) -> None:
    """Write a stream of rows as the ending of the path says, under a temporary name that is renamed.

    Rows of Parquet and of a folder lack no column: None stands where a row has none. Raises UserError if they cannot
    share columns, such as texts in one row and conversations in another.
    """
    _WRITERS[path.suffix](path, rows)


def csv_cell(value: Any) -> Any:
    """A spreadsheet would take a text that begins so for a formula."""
    return f"'{visible(value)}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _write_csv(path: Path, rows: Rows) -> None:
    stream = iter(rows)
    first = list(itertools.islice(stream, 1))
    with renamed(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first[0]) if first else [])
        writer.writeheader()
        for row in itertools.chain(first, stream):
            writer.writerow({name: csv_cell(value) for name, value in row.items()})


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow.parquet as pq

    def write(dataset: "Dataset") -> None:
        with renamed(path) as temporary:
            pq.write_table(dataset.data.table, temporary, row_group_size=8 * SHARD_ROWS)

    _by_columns(path, rows, write)


def _write_folder(path: Path, rows: Rows) -> None:
    def write(dataset: "Dataset") -> None:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            dataset.save_to_disk(Path(folder) / path.name)
            (Path(folder) / path.name).replace(path)  # which may be there, but empty

    _by_columns(path, rows, write)


def _by_columns(path: Path, rows: Rows, write: Callable[["Dataset"], None]) -> None:
    """Write rows by way of Arrow files beside the path, so that memory does not grow with them."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        try:
            found = on_disk(Path(folder), rows)
        except pa.ArrowException as error:
            kind = f"as {path.suffix}" if path.suffix else "as a folder of datasets"
            raise UserError(
                f"{path}: these rows cannot be written {kind}, whose columns have one type each ({one_line(error)}): "
                "write a .jsonl file"
            ) from error
        write(found)


_WRITERS: Mapping[str, Callable[[Path, Rows], None]] = {
    ".jsonl": write_lines,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    "": _write_folder,
}
