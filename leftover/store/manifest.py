"""What has been computed, from what: the keys that decide between reusing, resuming and recomputing.

A key is a nested dictionary: the digests of the keys it builds on under `from`, and its own settings. It holds nothing
that the numbers do not depend on, so a change recomputes what depends on it and no more.
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from leftover.errors import UserError
from leftover.monitoring.costs import StageCost, StageMeter
from leftover.monitoring.ranks import is_main_process, told, wait
from leftover.monitoring.terminal import clock
from leftover.store.sealed import digest, faults, read_sealed, set_aside, sha256, sums, write_sealed
from leftover.store.spoken import spoken, whether_told

log = logging.getLogger(__name__)

Key = dict[str, Any]
_FILES = "files"  # of an entry: path -> SHA-256 of what was written
_LOGS = "logs"  # the same, of logs, which are not worth making an artifact again
_LONG = 1.0  # seconds: what takes less is not told
_OURS = ("key", "complete", "cost", _FILES, _LOGS)  # all other entries of an entry are facts


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
    if prefix.startswith("from.") or all(re.fullmatch("[0-9a-f]{16}", str(value)) for value in (old, new)):
        return [prefix.removeprefix("from.")]
    return [f"{prefix}: {old} -> {new}"]


@dataclass(frozen=True)
class Status:
    """`reused`: finished under this key. `resumed`: begun under it. `damaged`: of this key, but its files are not as
    they were written. `stale`: of another key. `new`: no entry."""

    action: str
    reason: str = ""
    damaged: tuple[str, ...] = ()  # paths

    @property
    def finished(self) -> bool:
        return self.action == "reused"

    @property
    def discard(self) -> bool:
        """Whatever is in the artifact's place has another key, or no known one, or is damaged, and must be removed."""
        return self.action in ("stale", "new", "damaged")


class Manifest:
    """`manifest.json` of a folder: the key, the state and the facts of every artifact in it.

    `label` precedes every name where it is told. `shared`: several processes write entries of the folder, each its own
    under the lock `manifest.lock`. `meaning`: two keys for which it gives the same say the same; they are stored as
    they are.
    """

    def __init__(
        self, folder: Path, label: str = "", *, shared: bool = False, meaning: Callable[[Key], Key] | None = None
    ):
        self.label, self.shared, self.meaning = label, shared, meaning
        self.folder, self.path = folder, folder / "manifest.json"
        self.names: dict[str, str] = {}  # of artifacts whose names are told otherwise than they are kept
        self._meters: dict[str, StageMeter] = {}  # of what this process has begun and not finished
        self.reload()

    def reload(self) -> None:
        """Read what other processes have written."""
        self.entries: dict[str, dict[str, Any]] = read_sealed(self.path) or {}
        if not all(isinstance(entry, dict) and {"key", "complete"} <= entry.keys() for entry in self.entries.values()):
            raise UserError(f"{self.path} is damaged (it is no manifest): put back a whole one, or remove the folder")

    def status(self, name: str, key: Key) -> Status:
        key = as_json(key)
        entry = self.entries.get(name)
        if entry is None:
            return Status("new")
        if not self._alike(entry["key"], key):
            return Status("stale", ", ".join(changes(entry["key"], key)) or "key")
        if found := self.faults(name):
            return Status(
                "damaged", "; ".join(f"{self.folder / path} {what}" for path, what in found.items()), tuple(found)
            )
        if entry["complete"]:
            return Status("reused", "nothing it depends on has changed")
        return Status("resumed", "it was begun before")

    def faults(self, name: str, which: str = _FILES) -> dict[str, str]:
        """What is wrong with the files (or `logs`) of an artifact; of those of earlier versions nothing is known."""
        return faults(self.folder, self.entries.get(name, {}).get(which, {}))

    def check(
        self, name: str, remedy: str = "run the recipe again, which sets it aside and computes that part anew"
    ) -> None:
        """Raises UserError if a file of a finished artifact is not as it was written."""
        if self.is_complete(name) and (found := self.faults(name)):
            path, what = next(iter(found.items()))
            raise UserError(f"{self.folder / path} {what}: {remedy}")

    def tell_damaged_logs(self, name: str) -> None:
        """Warn of the logs of a finished artifact that are not as they were written."""
        for path, what in self.faults(name, _LOGS).items():
            log.warning("%s %s: it stays so, since %s is not made again for a log", self.folder / path, what, name)

    def _alike(self, old: Key, new: Key) -> bool:
        return old == new or (self.meaning is not None and self.meaning(old) == self.meaning(new))

    def begin(
        self, name: str, key: Key, discard: Callable[[], None] = lambda: None, *, in_parts: bool = False
    ) -> Status:
        """The status of `name` under `key`, which is logged; unless finished, it is marked as begun.

        `discard` removes what is in the artifact's place. It is called before the new key is written, so that a run
        killed in between finds the old key again and discards again. Damaged files are set aside first; `in_parts`:
        of an artifact whose other files need not be made again.

        Of several processes the first decides, discards and writes; the others wait for its answer.
        """
        status = told(self._begin(name, key, discard, in_parts) if is_main_process() else None)
        if not is_main_process():
            self.reload()
        return status

    def _begin(self, name: str, key: Key, discard: Callable[[], None], in_parts: bool) -> Status:
        key = as_json(key)
        status = self.status(name, key)
        if status.finished:
            self._tell(name, "reused", "{noun}: kept from before")
            self.tell_damaged_logs(name)
            return status
        if status.action == "damaged":
            self._tell(name, "damaged", "{noun}: made again: {reason}", status.reason, logging.WARNING)
            set_aside(self.folder, status.damaged)
        elif status.action == "resumed":
            self._tell(name, "resumed", "{noun}: goes on where it stopped")
        elif status.action == "stale":
            self._tell(name, "stale", "{noun}: made again, since something changed ({reason})", status.reason)
        discards = status.discard and not (in_parts and status.action == "damaged")
        if discards:
            discard()
        cost = {} if discards else self.cost(name)
        self._meters.pop(name, None)
        self._meters[name] = StageMeter(cost)
        entry: dict[str, Any] = {"key": key, "complete": False} | ({"cost": cost} if cost else {})
        if discards:
            entry[_FILES] = {}
        elif _FILES in self.entries[name]:  # earlier versions noted none
            known = self.entries[name][_FILES]
            entry[_FILES] = {path: found for path, found in known.items() if path not in status.damaged}
        self._write(name, entry)
        return status

    def finish(self, name: str, *, wrote: Iterable[Path] = (), logs: Any = (), **facts: Any) -> None:
        """Mark `name` as finished, with what the first process found; the others wait until it is.

        wrote: its files, and folders with nothing but its files, inside the manifest's own: they are checked before
        they are reused. logs: paths of files that are checked too, and not made again.
        """
        if is_main_process():
            meter = self._meters.pop(name, None)
            cost = {"cost": meter.read()} if meter else {}
            noted = {_FILES: sums(self.folder, wrote)} | ({_LOGS: sums(self.folder, logs)} if logs else {})
            self._write(name, self.entries[name] | {"complete": True, **cost, **facts, **noted})
            took = cost["cost"]["seconds"] - meter.earlier.get("seconds", 0.0) if meter else 0.0  # of this process
            rows = f"{facts['num_rows']:,} rows" if "num_rows" in facts else "the rows"
            level = logging.INFO if took >= _LONG else logging.DEBUG
            self._tell(name, "done", f"{{done}}, in {clock(took)}", level=level, rows=rows)
        wait()
        if not is_main_process():
            self.reload()

    def _tell(
        self, name: str, state: str, text: str, reason: str = "", level: int = logging.INFO, rows: str = ""
    ) -> None:
        """Log a line in the words of `spoken`; the record has the `artifact` and its `state` too."""
        artifact = self.label + name
        if not whether_told(artifact):
            return
        noun, done = spoken(self.label + self.names.get(name, name))
        told = text.format(noun=noun, done=done.replace("{rows}", rows), reason=reason)
        log.log(level, "%s", told, extra={"artifact": artifact, "state": state})

    def note_costs(self, wrote: Iterable[Path] = ()) -> None:
        """Write down what the stage begun last took and wrote so far, in case the process is killed.

        Work that is lost then, and done again, counts nowhere.
        """
        if self._meters:
            name, meter = next(reversed(self._meters.items()))
            entry = self.entries[name] | {"cost": meter.read()}
            if _FILES in entry:
                entry[_FILES] = entry[_FILES] | sums(self.folder, wrote)
            self._write(name, entry)

    def is_known(self, name: str, path: Path) -> bool:
        """Whether an unfinished artifact's file was whole when it was noted; that of earlier versions is believed."""
        known = self.entries.get(name, {}).get(_FILES)
        return known is None or str(path.relative_to(self.folder)) in known

    def cost(self, name: str) -> StageCost:
        """What `name` took; empty if that was not recorded."""
        cost: StageCost | None = self.entries.get(name, {}).get("cost")
        return cost or {}

    def digest(self, name: str) -> str:
        """The digest of an artifact's key, for the keys of what is computed from it."""
        return digest(self.entries[name]["key"])

    def facts(self, name: str) -> dict[str, Any]:
        """What was recorded when `name` was finished."""
        return {k: v for k, v in self.entries.get(name, {}).items() if k not in _OURS}

    def is_complete(self, name: str) -> bool:
        return bool(self.entries.get(name, {}).get("complete"))

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")) if self.shared else contextlib.nullcontext():
            if self.shared:
                self.reload()
            self.entries[name] = entry
            write_sealed(self.path, self.entries)


def file_hash(path: Path) -> str:
    """The start of a file's SHA-256."""
    return sha256(path)[:16]


_KNOWN = [int, int, str]  # size, modification time, the start of the SHA-256


class FileHashes:
    """SHA-256 of files, remembered by size and modification time in `hashes.json` of a folder."""

    def __init__(self, folder: Path):
        self.path = folder / "hashes.json"
        try:
            found = read_sealed(self.path) or {}
        except UserError:  # they are computed anew
            found = {}
        self.known = {path: of for path, of in found.items() if isinstance(of, list) and list(map(type, of)) == _KNOWN}

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
        write_sealed(self.path, self.known, copied=False)
        return value
