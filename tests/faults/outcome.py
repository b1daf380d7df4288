"""What campaigns of random faults share: a command in a process of its own, what it left, and what became of a fault.

A campaign draws its faults from a seed; `FAILURES` are the ends that none may have.
"""

import json
import logging
import multiprocessing
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover import cli

TRACEBACK, HANG, OTHER_RESULTS = "traceback", "hang", "other results"
NO_HELP, OUTSIDE, LEAK = "an error without the name or a remedy", "written outside the folder", "a key is shown"
FAILURES = (TRACEBACK, HANG, OTHER_RESULTS, NO_HELP, OUTSIDE, LEAK)
SECONDS = 120  # within which a run of the tiny recipe is over
_TIMES = ("seconds", "runtime", "per_second", "cost", "peak", "sessions", "resumed_at", "machine", "time")


class Outcome(Counter[str]):
    """How many faults ended how, and the first lines of those that should not."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def note(self, kind: str, what: str) -> None:
        self[kind] += 1
        if kind in FAILURES:
            self.bad.append(f"{kind}: {what}")

    def ended(self, status: int | None, said: str, what: str) -> bool:
        """Whether a command ended by itself and without a traceback; else that is noted."""
        if status is None:
            self.note(HANG, what)
        elif status == 99 or "Traceback" in said:
            self.note(TRACEBACK, f"{what}: {said[-600:]}")
        else:
            return True
        return False


def in_a_child(words: list[str], said: Path, before: Callable[[], None] = lambda: None) -> Any:
    """A forked process that runs a command; its status is that of the command, 99 after a traceback."""

    def work() -> None:
        os.setsid()
        with said.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))  # not pytest's
        logging.getLogger().handlers.clear()
        logging.getLogger("leftover").handlers.clear()
        before()
        status = 0
        try:
            cli.main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 99
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finished(
    words: list[str], said: Path, seconds: float = SECONDS, before: Callable[[], None] = lambda: None
) -> int | None:
    """The status of a command in a process of its own; None if it hangs."""
    return status_of(in_a_child(words, said, before), seconds)


def status_of(process: Any, seconds: float = SECONDS) -> int | None:
    """The status that a process ends with; None if it hangs, and is killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def results(folder: Path) -> dict[str, Any]:
    """All that a run has computed, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "damaged" in path.parts or not path.is_file():
            continue
        if path.suffix in (".arrow", ".safetensors") or path.parent.name == "evaluation":
            found[name] = path.read_bytes()
        elif path.name in ("metrics.jsonl", "evaluations.jsonl"):
            found[name] = [_line(line) for line in path.read_text("utf-8", errors="replace").splitlines()]
        elif path.name == "results.json":
            found[name] = _timeless(json.loads(path.read_text("utf-8")))
    return found


def _line(line: str) -> Any:
    try:
        return _timeless(json.loads(line))
    except (ValueError, RecursionError):
        return line


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "checksum" and not any(time in k for time in _TIMES)}
        return {k: _timeless(v) for k, v in kept.items()}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]


def write_recipe(folder: Path, content: dict[str, Any], run: Path | None = None) -> Path:
    """A recipe in a folder, and where its run goes (default: `run` beside it)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content | {"output_dir": str(run or folder / "run")}))
    return path
