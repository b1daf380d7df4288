"""A file of rows written chunk by chunk: a killed command continues it, and other settings never extend it."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.monitoring.finite import json_line
from leftover.monitoring.ranks import is_main_process, told
from leftover.runs.spelling import rewritten
from leftover.store.manifest import as_json, changes
from leftover.store.sealed import read_sealed, write_sealed

log = logging.getLogger(__name__)

_CHANGES_SHOWN = 5
_REMEDY = "name another --output, or start over with --overwrite"
_STATE = {"key": dict, "chunks": int, "complete": bool, "bytes": int, "counts": dict}


class RowsFile:
    """`rows.jsonl` and, beside it, `rows.jsonl.state.json`: the key, the number of finished chunks, and counts.

    `key` is what the rows depend on. Unless `overwrite`, raises UserError if the file has another key or none, or its
    rows are not as they were written (their SHA-256 is in the state; earlier versions noted their size alone). Of
    several processes the first writes, and all count.
    """

    def __init__(self, path: Path, key: dict[str, Any], overwrite: bool):
        if path.suffix != ".jsonl":
            raise UserError(f"--output {path}: rows are written as JSON lines; name a file that ends in .jsonl")
        self.path, self.state_path = path, path.with_name(path.name + ".state.json")
        self.chunks, self.complete, self.counts = 0, False, Counter[str]()
        self.key, self._bytes, self._sum = as_json(key), 0, hashlib.sha256()
        if is_main_process():
            self._open(overwrite)
        self.chunks, self.complete, self.counts = told((self.chunks, self.complete, self.counts))

    def _open(self, overwrite: bool) -> None:
        if self.path.is_file() and not overwrite:
            self._take_up()
        if not self.chunks:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.state_path.unlink(missing_ok=True)  # else a run killed here would leave the state of other rows
            self.path.write_bytes(b"")
            self._write_state()

    def append(self, rows: Iterable[dict[str, Any]], counts: Mapping[str, float]) -> None:
        """Add the rows of the next chunk and its counts; they are on the disk when this returns."""
        if is_main_process():
            with self.path.open("ab") as file:
                for row in rows:
                    line = (json_line(row, ensure_ascii=False) + "\n").encode()
                    file.write(line)
                    self._sum.update(line)
                file.flush()
                os.fsync(file.fileno())
                self._bytes = file.tell()
        self.counts.update(counts)  # adds
        self.chunks += 1
        self._write_state()

    def discard(self) -> None:
        """Remove the file and its state."""
        if not is_main_process():
            return
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Mark the file as complete."""
        self.complete = True
        self._write_state()

    def _take_up(self) -> None:
        state = self._read_state()
        if not (state["chunks"] if state else self.path.stat().st_size):
            return  # nothing would be lost
        if state is None:
            raise UserError(f"{self.path} already exists, and was not written by this command: {_REMEDY}")
        if rewritten(state["key"]) != rewritten(self.key):
            differ = changes(state["key"], self.key)
            more = f" and {len(differ) - _CHANGES_SHOWN} more" if len(differ) > _CHANGES_SHOWN else ""
            listed = "; ".join(differ[:_CHANGES_SHOWN])
            raise UserError(f"{self.path} holds rows of other settings ({listed}{more}): {_REMEDY}")
        self.chunks, self.complete, self.counts = state["chunks"], state["complete"], Counter(state["counts"])
        self._bytes = state["bytes"]
        self._check(state.get("sha256"))
        if not self.complete:
            os.truncate(self.path, self._bytes)  # a killed command may have left half a chunk
            log.info("generate: continues %s after %d chunks of prompts", self.path, self.chunks)

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = read_sealed(self.state_path)
        except UserError as error:
            raise UserError(
                f"{self.state_path}, which tells how far the rows have come, is damaged: {_REMEDY}"
            ) from error
        if state is not None and not all(isinstance(state.get(name), kind) for name, kind in _STATE.items()):
            raise UserError(f"{self.state_path} is not as this command writes it: {_REMEDY}")
        return state

    def _check(self, written: str | None) -> None:
        """Refuse rows that are not those that were written."""
        size = self.path.stat().st_size
        if size < self._bytes:
            raise UserError(f"{self.path} is shorter than it was when its rows were written: {_REMEDY}")
        with self.path.open("rb") as file:
            while block := file.read(min(2**20, self._bytes - file.tell())):
                self._sum.update(block)
        if written not in (None, self._sum.hexdigest()) or (self.complete and size > self._bytes):
            raise UserError(f"{self.path} is not as it was written (it was changed or damaged since): {_REMEDY}")

    def _write_state(self) -> None:
        state = {"key": self.key, "chunks": self.chunks, "complete": self.complete, "bytes": self._bytes}
        write_sealed(self.state_path, state | {"sha256": self._sum.hexdigest(), "counts": self.counts}, copied=False)
