"""Disks that are full, or may not be written any more, in the middle of a run. Needs the right to mount a tmpfs."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.outcome import (
    HANG,
    NO_HELP,
    OTHER_RESULTS,
    TRACEBACK,
    Outcome,
    differing,
    finished,
    in_a_child,
    results,
    status_of,
    write_recipe,
)

_ROOM = "256m"


def may_mount(folder: Path) -> bool:
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(_mount(folder), capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def _mount(folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "tmpfs", str(folder)]


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(_mount(folder), check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def _remounted(folder: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], capture_output=True)
    return done.returncode == 0


def disks(content: dict[str, Any], folder: Path, number: int, seed: int) -> Outcome:
    """A run on a disk of a random size, or one that becomes read-only at a random moment; then on one with room."""
    draws, outcome, said = random.Random(seed), Outcome(), folder / "said.txt"
    with _disk(folder / "whole") as disk:
        recipe = write_recipe(folder / "recipe", content, disk / "run")
        began = time.monotonic()
        assert finished(["run", str(recipe)], said) == 0, said.read_text()
        whole, expected = time.monotonic() - began, results(disk / "run")
        size = sum(path.stat().st_size // 4096 + 1 for path in disk.rglob("*")) * 4  # KiB
    for fault in range(number):
        with _disk(folder / "disk") as disk:
            recipe = write_recipe(folder / "recipe", content, disk / "run")
            if draws.random() < 0.6:
                room = draws.randint(8, round(size * 1.2))
                name = f"fault {fault}, {room} KiB of {size}"
                _remounted(disk, f"size={room}k")
                status = finished(["run", str(recipe)], said)
            else:
                delay = draws.uniform(0, whole)
                name = f"fault {fault}, read-only after {delay:.2f} s of {whole:.2f}"
                status = _read_only_after(delay, disk, recipe, said)
            text = said.read_text(errors="replace")
            if not outcome.ended(status, text, name):
                continue
            if status and not ("the disk is full" in text or "read-only" in text):
                outcome.note(NO_HELP, f"{name}: {text[-300:]}")
            else:
                assert _remounted(disk, f"rw,size={_ROOM}")
                again = finished(["run", str(recipe)], said)
                if again != 0:
                    outcome.note(TRACEBACK if again == 99 else HANG, f"{name}, again: {said.read_text()[-600:]}")
                elif differ := differing(results(disk / "run"), expected):
                    outcome.note(OTHER_RESULTS, f"{name}: {differ[:4]}")
                else:
                    outcome["a clear line, then as undisturbed" if status else "it was over before"] += 1
    outcome["faults"] = number
    return outcome


def _read_only_after(delay: float, disk: Path, recipe: Path, said: Path) -> int | None:
    process = in_a_child(["run", str(recipe)], said)
    process.join(delay)
    while process.is_alive() and not _remounted(disk, "ro"):  # refused while a file is open to be written
        time.sleep(0.001)
    return status_of(process)
