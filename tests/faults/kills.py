"""Runs that are killed at random moments, and go on."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.outcome import (
    HANG,
    OTHER_RESULTS,
    SECONDS,
    TRACEBACK,
    Outcome,
    differing,
    finished,
    in_a_child,
    results,
    write_recipe,
)


def kills(content: dict[str, Any], folder: Path, number: int, seed: int, deadly: int = signal.SIGKILL) -> Outcome:
    """Kill runs at random moments, half of them at a random rename of a file; each goes on until it has ended."""
    draws, outcome = random.Random(seed), Outcome()
    undisturbed, said = write_recipe(folder / "undisturbed", content), folder / "said.txt"
    began = time.monotonic()
    assert finished(["run", str(undisturbed)], said) == 0, said.read_text()
    whole = time.monotonic() - began
    expected = results(folder / "undisturbed/run")
    renames = 120  # about as many as a run makes
    killed = round_ = 0
    while killed < number:
        round_ += 1
        recipe = write_recipe(folder / str(round_), content)
        at: list[str] = []
        for _ in range(draws.randint(1, 5)):
            by_rename, after = draws.random() < 0.5, draws.randint(1, renames)
            delay = draws.uniform(0, whole)
            process = in_a_child(
                ["run", str(recipe)], said, (lambda n=after: _die_at_rename(n, deadly)) if by_rename else (lambda: None)
            )
            process.join(SECONDS if by_rename else delay)
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, deadly)
                process.join(SECONDS)
            if process.is_alive():
                process.kill()
                outcome.note(HANG, f"round {round_}: {said.read_text()[-300:]}")
            at.append(f"rename {after}" if by_rename else f"{delay:.2f} s")
            killed += process.exitcode != 0
            if process.exitcode == 99:
                outcome.note(TRACEBACK, f"round {round_}, {at}: {said.read_text()[-500:]}")
        status = finished(["run", str(recipe)], said)
        if status is None:
            outcome.note(HANG, f"round {round_}, {at}")
        elif status != 0:
            outcome.note(
                TRACEBACK if status == 99 else OTHER_RESULTS, f"round {round_}, {at}: {said.read_text()[-500:]}"
            )
        elif differ := differing(results(folder / str(round_) / "run"), expected):
            outcome.note(OTHER_RESULTS, f"round {round_}, {at}: {differ[:5]}")
        else:
            outcome["as undisturbed"] += len(at)
        shutil.rmtree(folder / str(round_))
    outcome["kills"] = killed
    return outcome


def _die_at_rename(number: int, deadly: int) -> None:
    """Die just before or after the so-manieth rename of a file: the moments at which a folder changes."""
    left, rename = number, Path.replace

    def replace(self: Path, target: Any) -> Path:
        nonlocal left
        left -= 1
        if left == 0 and number % 2:
            os.kill(os.getpid(), deadly)
        moved = rename(self, target)
        if left == 0:
            os.kill(os.getpid(), deadly)
        return moved

    Path.replace = replace  # type: ignore[method-assign]
