"""Files of JSON and text, written under a temporary name and renamed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leftover.errors import UserError, one_line
from leftover.monitoring.finite import json_line
from leftover.monitoring.ranks import is_main_process
from leftover.store.folders import regular


def read_json(path: Path) -> Any:
    """The content of a file of JSON. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error, 80)})") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does, numbers that are not finite as None (`leftover.monitoring.finite`)."""
    write_text(path, json_line(value, indent=2, ensure_ascii=False, default=str))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, one after the other, written as `write_text` does."""
    if is_main_process():
        with renamed(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(json_line(record, ensure_ascii=False, default=str) + "\n" for record in records)


def read_lines(path: Path) -> list[Any]:
    """What `write_lines` wrote. Raises UserError if it is damaged."""
    records = list[Any]()
    try:
        # Not `splitlines`, which also splits at characters that JSON leaves in texts, such as U+2028.
        with path.open(encoding="utf-8", newline="\n") as lines:
            records.extend(map(json.loads, lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {len(records) + 1}, is damaged ({one_line(error, 80)})") from error
    return records


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write UTF-8 under a temporary name and rename it, so that a killed run leaves the old file or the new one.

    Of several processes the first writes. A link is written through. Raises UserError for what no file may take the
    place of: a folder, a device, a pipe.
    """
    if is_main_process():
        with renamed(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=errors, newline="")


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary path beside this one, whose file takes its place at the end; after an error it is gone."""
    path = regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
