"""Random damage to the files of a run: a reader, then the run again."""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.outcome import (
    OTHER_RESULTS,
    Outcome,
    differing,
    finished,
    in_a_child,
    results,
    write_recipe,
)


def _flip(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(min(len(content), draws.choice([1, 8]))):
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draws: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draws.randrange(max(1, path.stat().st_size))])


def _empty(path: Path, draws: random.Random) -> None:
    path.write_bytes(b"")


def _garbage(path: Path, draws: random.Random) -> None:
    path.write_bytes(draws.choice([b"{}", b"[]", b"null", b"\x00" * 100, b"\xff\xfe", b'{"a": ', b"[" * 100_000]))


def _gone(path: Path, draws: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (_flip, _flip, _cut, _empty, _garbage, _gone)
READERS = (["report"], ["check"], ["inspect"], ["export", "--output", "export"], ["generate"])


def corruptions(
    content: dict[str, Any], folder: Path, number: int, seed: int, verb: str = "run", *options: str
) -> Outcome:
    """Damage a random file of a finished or half-finished run (`verb`: or comparison); then a reader, and it again."""
    draws, outcome, said = random.Random(seed), Outcome(), folder / "said.txt"
    whole, half = (write_recipe(folder / name, content) for name in ("whole", "half"))
    assert finished([verb, str(whole), *options], said) == 0, said.read_text()
    expected = results(folder / "whole/run")
    checkpoint = folder / "half/run/policies/a_lol_seq/seed-0/checkpoints"
    process = in_a_child([verb, str(half), *options], said)
    while not list(checkpoint.glob("checkpoint-*/checksums.json")):
        assert process.is_alive(), said.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    for fault in range(number):
        origin = draws.choice(["whole", "whole", "half"])
        shutil.copytree(folder / origin / "run", folder / "mine/run")
        files = [path for path in sorted((folder / "mine/run").rglob("*")) if path.is_file()]
        path, damage = draws.choice(files), draws.choice(DAMAGES)
        before = path.read_bytes()
        damage(path, draws)
        name = f"fault {fault}, {origin}, {path.relative_to(folder / 'mine/run')}, {damage.__name__}"
        unchanged = path.is_file() and path.read_bytes() == before
        for words in (READERS[draws.randrange(len(READERS))], None):
            mine = write_recipe(folder / "mine", content)
            if words is not None:
                output = [
                    str(folder / "mine" / word) if word == "export" and i else word for i, word in enumerate(words[1:])
                ]
                given = [words[0], str(mine.parent / "run"), *output]
            else:
                given = [verb, str(mine), *options]
            status = finished(given, said)
            text = said.read_text(errors="replace")
            if not outcome.ended(status, text, f"{name}: {given[0]}"):
                continue
            if given[0] != verb:
                outcome["reader: a clear line" if status else "reader: read"] += 1
            elif status == 2:
                outcome["a clear line"] += 1
            elif path.suffix == ".jsonl" and f"{path} is" in text:
                outcome["a log: named, and left"] += 1
            elif differ := differing(results(folder / "mine/run"), expected):
                outcome.note(OTHER_RESULTS, f"{name}: {differ[:4]}: {text[-300:]}")
            else:
                outcome["unchanged" if unchanged else "made again, or not used"] += 1
        shutil.rmtree(folder / "mine")
    outcome["faults"] = number
    return outcome
