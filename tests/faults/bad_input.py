"""Malformed rows, and recipe values of a wrong type or range."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.faults.outcome import NO_HELP, OUTSIDE, Outcome, finished, write_recipe
from tests.recipe.test_corpus import KEYS

# As YAML, which `--set` takes.
VALUES = (
    "xyz",
    ".nan",
    ".inf",
    "-.inf",
    "-1",
    "0",
    "0.5",
    "1e30",
    "''",
    "null",
    "true",
    "[]",
    "[x]",
    "{}",
    "{a: 1}",
    "../../x",
)


def bad_values(content: dict[str, Any], folder: Path, number: int, seed: int) -> Outcome:
    """Runs of a recipe of which a key has a value that it may not have, or may."""
    draws, outcome, said = random.Random(seed), Outcome(), folder / "said.txt"
    recipe = write_recipe(folder / "inside/mine", content)
    before = _files(folder)
    for fault in range(number):
        *parents, key = draws.choice(KEYS)
        if parents[:1] == ["policies"]:
            parents = ["policies", "a_lol_seq"]
        value = draws.choice(VALUES)
        setting = f"{'.'.join([*parents, key])}={value}"
        status = finished(["run", str(recipe), "--set", setting], said)
        text = said.read_text(errors="replace")
        if outcome.ended(status, text, f"fault {fault}, {setting}"):
            if status and key not in text:
                outcome.note(NO_HELP, f"fault {fault}, {setting}: {text[-300:]}")
            else:
                outcome["a line that names the key" if status else "a value that the key may have"] += 1
        shutil.rmtree(recipe.parent / "run", ignore_errors=True)
        if strays := _files(folder) - before:
            outcome.note(OUTSIDE, f"fault {fault}, {setting}: {sorted(map(str, strays))[:3]}")
            before |= strays
    outcome["faults"] = number
    return outcome


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "said.txt"}


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
        if outcome.ended(status, text, f"fault {fault}, {kind}, {path.name}"):
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
