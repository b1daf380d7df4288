"""Campaigns of random faults, each from a seed: kills, damage, malformed rows. What goes wrong is told by its number.

A campaign gives, for every fault, what became of it; `FAILURES` are those that must not happen.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover import cli

TRACEBACK, HANG, OTHER_RESULTS, SILENT = "traceback", "hang", "other results", "used silently"
FAILURES = (TRACEBACK, HANG, OTHER_RESULTS, SILENT)
_SECONDS = 120  # within which a run of the tiny recipe is over
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


def in_a_child(words: list[str], said: Path, before: Callable[[], None] = lambda: None) -> Any:
    """A forked process that runs a command; its status is that of the command, 99 after a traceback."""

    def work() -> None:
        os.setsid()
        with said.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
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


def finished(words: list[str], said: Path, seconds: float = _SECONDS) -> int | None:
    """The status of a command in a process of its own; None if it hangs."""
    process = in_a_child(words, said)
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


def write_recipe(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content | {"output_dir": str(folder / "run")}))
    return path


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
            process.join(_SECONDS if by_rename else delay)
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, deadly)
                process.join(_SECONDS)
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
READERS = (["report"], ["check"], ["inspect"], ["export", "--output", "export"])


def corruptions(content: dict[str, Any], folder: Path, number: int, seed: int) -> Outcome:
    """Damage a random file of a finished or half-finished run; then a reader, and the run again."""
    draws, outcome, said = random.Random(seed), Outcome(), folder / "said.txt"
    whole, half = (write_recipe(folder / name, content) for name in ("whole", "half"))
    assert finished(["run", str(whole)], said) == 0, said.read_text()
    expected = results(folder / "whole/run")
    checkpoint = folder / "half/run/policies/a_lol_seq/seed-0/checkpoints"
    process = in_a_child(["run", str(half)], said)
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
                given = ["run", str(mine)]
            status = finished(given, said)
            text = said.read_text(errors="replace")
            if status is None:
                outcome.note(HANG, f"{name}: {given[0]}")
            elif status == 99 or "Traceback (most recent call last)" in text:
                outcome.note(TRACEBACK, f"{name}: {given[0]}: {text[-600:]}")
            elif given[0] != "run":
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


def bad_rows(folder: Path, rows: list[dict[str, Any]], number: int, seed: int) -> Outcome:
    """Files of rows with random damage are read, with and without `on_bad_row: skip`."""
    draws, outcome = random.Random(seed), Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    for fault in range(number):
        content, kind = _malformed(lines, draws)
        path = folder / draws.choice(["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz"])
        path.write_bytes(content)
        words = ["inspect", str(path), "--output", str(folder / "page.html")]
        if draws.random() < 0.5:
            words += ["--set", "data.on_bad_row=skip"]
        said = folder / "said.txt"
        status = finished(words, said, 60)
        text = said.read_text(errors="replace")
        if status is None:
            outcome.note(HANG, f"fault {fault}, {kind}, {path.name}")
        elif status == 99 or "Traceback" in text:
            outcome.note(TRACEBACK, f"fault {fault}, {kind}, {path.name}: {text[-400:]}")
        else:
            outcome["a clear line" if status else "read"] += 1
        path.unlink()
    outcome["faults"] = number
    return outcome


def _malformed(lines: list[str], draws: random.Random) -> tuple[bytes, str]:
    lines = list(lines)
    place = draws.randrange(len(lines))
    odd = {
        "half a line": lines[place][: draws.randrange(len(lines[place]))],
        "a number": "17",
        "a list": "[1, 2]",
        "deep": "[" * 50_000,
        "digits": '{"prompt": "a", "completion": "b", "reward": ' + "9" * 5000 + "}",
        "infinity": '{"prompt": "a", "completion": "b", "reward": Infinity}',
        "a reward in words": '{"prompt": "a", "completion": "b", "reward": "good"}',
        "a prompt of lists": '{"prompt": [[1]], "completion": "b", "reward": 1}',
        "no completion": '{"prompt": "a", "reward": 1}',
        "a surrogate": '{"prompt": "\\ud800", "completion": "b", "reward": 1}',
        "marks": '{"prompt": "\\u001b[31m\\u202e", "completion": "\\u0000b", "reward": 1}',
        "keys of keys": '{"prompt": {"a": {"b": 1}}, "completion": {"c": []}, "reward": {}}',
    }
    kind = draws.choice([*odd, "bytes", "bytes", "cut", "empty", "same line", "not UTF-8"])
    if kind in odd:
        lines[place] = odd[kind]
    elif kind == "same line":
        lines = [lines[0]] * len(lines)
    content = bytearray(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    if kind == "bytes":
        for _ in range(draws.randint(1, 20)):
            content[draws.randrange(len(content))] = draws.randrange(256)
    elif kind == "cut":
        content = content[: draws.randrange(len(content))]
    elif kind == "empty":
        content = bytearray()
    elif kind == "not UTF-8":
        content[:2] = b"\xff\xfe"
    return bytes(content), kind
