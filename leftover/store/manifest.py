"""What has been computed, from what: the keys that decide between reusing, resuming and recomputing.

A key is a nested dictionary: the digests of the keys it builds on under `from`, and its own settings. It holds nothing
that the numbers do not depend on, so a change recomputes what depends on it and no more.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from leftover.monitoring.costs import StageCost, StageMeter
from leftover.monitoring.finite import json_line
from leftover.monitoring.ranks import is_main_process, told, wait
from leftover.store.folders import regular

log = logging.getLogger(__name__)

Key = dict[str, Any]


def digest(key: Any) -> str:
    """A short hash of anything that JSON can hold, whatever the order of dictionary keys."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_json(key: Key) -> Key:
    """The key as it will be read back: tuples are lists, names of entries are strings."""
    return json.loads(json.dumps(key, default=str))


def changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """`name: old -> new` for every leaf in which two keys differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            path = f"{prefix}.{name}" if prefix else str(name)
            if name in old and name in new:
                found += changes(old[name], new[name], path)
            else:
                found.append(f"{path}: {'new' if name in new else 'gone'}")
        return found
    if old == new:
        return []
    # A digest means nothing to a reader: name the input without its value.
    return [prefix.removeprefix("from.")] if prefix.startswith("from.") else [f"{prefix}: {old} -> {new}"]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does, numbers that are not finite as None (`leftover.monitoring.finite`)."""
    write_text(path, json_line(value, indent=2, ensure_ascii=False, default=str))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, written as `write_text` does."""
    write_text(path, "".join(json_line(record, ensure_ascii=False) + "\n" for record in records))


def read_lines(path: Path) -> list[Any]:
    """What `write_lines` wrote."""
    # Not `splitlines`, which also splits at characters that JSON leaves in texts, such as U+2028.
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write UTF-8 under a temporary name and rename it, so that a killed run leaves the old file or the new one.

    Of several processes the first writes. A link is written through. Raises UserError for what no file may take the
    place of: a folder, a device, a pipe.
    """
    if not is_main_process():
        return
    path = regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors=errors, newline="")
    temporary.replace(path)


@dataclass(frozen=True)
class Status:
    """`reused`: finished under this key. `resumed`: begun under it. `stale`: of another key. `new`: no entry."""

    action: str
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.action == "reused"

    @property
    def discard(self) -> bool:
        """Whatever is in the artifact's place has another key, or no known one, and must be removed."""
        return self.action in ("stale", "new")


class Manifest:
    """`manifest.json` of a folder: the key, the state and the facts of every artifact in it.

    `label` precedes every name in the log. `shared`: several processes write entries of the folder, each its own
    under the lock `manifest.lock`. `meaning`: two keys for which it gives the same say the same; they are stored as
    they are.
    """

    def __init__(
        self, folder: Path, label: str = "", *, shared: bool = False, meaning: Callable[[Key], Key] | None = None
    ):
        self.label, self.shared, self.meaning = label, shared, meaning
        self.path = folder / "manifest.json"
        self._meters: dict[str, StageMeter] = {}  # of what this process has begun and not finished
        self.reload()

    def reload(self) -> None:
        """Read what other processes have written."""
        self.entries: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def status(self, name: str, key: Key) -> Status:
        key = as_json(key)
        entry = self.entries.get(name)
        if entry is None:
            return Status("new")
        if not self._alike(entry["key"], key):
            return Status("stale", ", ".join(changes(entry["key"], key)) or "key")
        if entry["complete"]:
            return Status("reused", "nothing it depends on has changed")
        return Status("resumed", "it was begun before")

    def _alike(self, old: Key, new: Key) -> bool:
        return old == new or (self.meaning is not None and self.meaning(old) == self.meaning(new))

    def begin(self, name: str, key: Key, discard: Callable[[], None] = lambda: None) -> Status:
        """The status of `name` under `key`, which is logged; unless finished, it is marked as begun.

        `discard` removes what is in the artifact's place. It is called before the new key is written, so that a run
        killed in between finds the old key again and discards again.

        Of several processes the first decides, discards and writes; the others wait for its answer.
        """
        status = told(self._begin(name, key, discard) if is_main_process() else None)
        if not is_main_process():
            self.reload()
        return status

    def _begin(self, name: str, key: Key, discard: Callable[[], None]) -> Status:
        key = as_json(key)
        status = self.status(name, key)
        if status.finished:
            log.info("%s%s: reused (%s)", self.label, name, status.reason)
            return status
        if status.action != "new":
            log.info("%s%s: %s (%s)", self.label, name, status.action, status.reason)
        if status.discard:
            discard()
        cost = {} if status.discard else self.cost(name)
        self._meters.pop(name, None)
        self._meters[name] = StageMeter(cost)
        self._write(name, {"key": key, "complete": False} | ({"cost": cost} if cost else {}))
        return status

    def finish(self, name: str, **facts: Any) -> None:
        """Mark `name` as finished, with what the first process found; the others wait until it is."""
        if is_main_process():
            meter = self._meters.pop(name, None)
            cost = {"cost": meter.read()} if meter else {}
            self._write(name, self.entries[name] | {"complete": True, **cost, **facts})
            log.info("%s%s: done", self.label, name)
        wait()
        if not is_main_process():
            self.reload()

    def note_costs(self) -> None:
        """Write down what the stage begun last took so far, in case the process is killed.

        Work that is lost then, and done again, counts nowhere.
        """
        if self._meters:
            name, meter = next(reversed(self._meters.items()))
            self._write(name, self.entries[name] | {"cost": meter.read()})

    def cost(self, name: str) -> StageCost:
        """What `name` took; empty if that was not recorded."""
        cost: StageCost | None = self.entries.get(name, {}).get("cost")
        return cost or {}

    def digest(self, name: str) -> str:
        """The digest of an artifact's key, for the keys of what is computed from it."""
        return digest(self.entries[name]["key"])

    def facts(self, name: str) -> dict[str, Any]:
        """What was recorded when `name` was finished."""
        return {k: v for k, v in self.entries.get(name, {}).items() if k not in ("key", "complete", "cost")}

    def is_complete(self, name: str) -> bool:
        return bool(self.entries.get(name, {}).get("complete"))

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")) if self.shared else contextlib.nullcontext():
            if self.shared:
                self.reload()
            self.entries[name] = entry
            write_json(self.path, self.entries)


def file_hash(path: Path) -> str:
    """The start of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class FileHashes:
    """SHA-256 of files, remembered by size and modification time in `hashes.json` of a folder."""

    def __init__(self, folder: Path):
        self.path = folder / "hashes.json"
        self.known: dict[str, list] = read_json(self.path) if self.path.is_file() else {}

    def of(self, path: str | Path) -> str:
        """The hash of a file, or of all files of a folder with their names."""
        path = Path(path).resolve()
        if path.is_dir():
            return digest({str(f.relative_to(path)): self.of(f) for f in sorted(path.rglob("*")) if f.is_file()})
        stat = path.stat()
        remembered = self.known.get(str(path))
        if remembered and remembered[:2] == [stat.st_size, stat.st_mtime_ns]:
            return remembered[2]
        value = file_hash(path)
        self.known[str(path)] = [stat.st_size, stat.st_mtime_ns, value]
        write_json(self.path, self.known)
        return value
