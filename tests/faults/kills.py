"""Runs that are killed at random moments, and go on."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

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
    """Kill runs at a random time, rename of a file or call of a function; each goes on until it has ended."""
    draws, outcome = random.Random(seed), Outcome()
    undisturbed, said = write_recipe(folder / "undisturbed", content), folder / "said.txt"
    began = time.monotonic()
    assert finished(["run", str(undisturbed)], said, before=lambda: _count_calls(folder / "calls.txt")) == 0
    whole = time.monotonic() - began
    expected = results(folder / "undisturbed/run")
    moments = {_die_at_rename: 120, _die_at_call: int((folder / "calls.txt").read_text())}  # about as many as a run has
    killed = round_ = 0
    while killed < number:
        round_ += 1
        recipe = write_recipe(folder / str(round_), content)
        at: list[str] = []
        for _ in range(draws.randint(1, 5)):
            die = draws.choice([None, *moments])
            after, delay = draws.randint(1, moments.get(die, 1)), draws.uniform(0, whole)
            before = (lambda d=die, n=after: d(n, deadly)) if die else (lambda: None)
            process = in_a_child(["run", str(recipe)], said, before)
            process.join(SECONDS if die else delay)
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, deadly)
                process.join(SECONDS)
            if process.is_alive():
                process.kill()
                outcome.note(HANG, f"round {round_}: {said.read_text()[-300:]}")
            at.append(f"{die.__name__} {after}" if die else f"{delay:.2f} s")
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


def _die_at_call(number: int, deadly: int) -> None:
    """Die at the so-manieth call of, or return from, a function of ours or of the Trainer."""
    left = number

    def called(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if _is_of_training(frame, event):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), deadly)

    sys.setprofile(called)


def _count_calls(path: Path) -> None:
    """Write down how many calls and returns there were, once the process ends."""
    number, end = 0, os._exit

    def called(frame: FrameType, event: str, _: Any) -> None:
        nonlocal number
        number += _is_of_training(frame, event)

    def ended(status: int) -> NoReturn:
        sys.setprofile(None)
        path.write_text(str(number))
        end(status)

    os._exit = ended  # type: ignore[assignment]
    sys.setprofile(called)


def _is_of_training(frame: FrameType, event: str) -> bool:
    name = frame.f_code.co_filename
    return event in ("call", "return") and ("/leftover/" in name or "/transformers/trainer" in name)
