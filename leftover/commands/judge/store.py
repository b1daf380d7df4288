"""Every answer of a judge, kept as it arrives: JSON lines that are only appended to."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leftover.errors import UserError

Record = dict[str, Any]


class VerdictStore:
    """`verdicts.jsonl`: one record per question, by its `key`; a question with a record is not asked again.

    As a context manager it is held by one process, and raises UserError if another holds it. A last line that a killed
    process left unfinished is cut off; any other line that is no record raises UserError.
    """

    def __init__(self, folder: Path):
        self.path = folder / "verdicts.jsonl"
        self.records: dict[str, Record] = {}
        self._lock, self._held = threading.Lock(), FileLock(folder / "verdicts.lock")
        self._load()

    def __enter__(self) -> "VerdictStore":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another `leftover judge` writes {self.path}: wait for it, or stop it") from None
        whole = self._load()  # again: another process may have written until now
        if self.path.is_file() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release()

    def append(self, record: Record) -> None:
        """Keep an answer; it is on the disk when this returns. Safe to call from several threads."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self.records[record["key"]] = record

    def _load(self) -> int:
        """Read the records; returns how many bytes the whole lines take."""
        self.records = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{self.path}, line {number}: not a verdict as `leftover judge` writes it; remove the line to have "
                    "its question asked again"
                ) from None
        return whole
