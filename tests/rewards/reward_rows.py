"""Rows with a planted signal, for the tests of fitted rewards."""

import json
from pathlib import Path
from typing import Any

import numpy as np

_WORDS = ["table", "chair", "lamp", "door", "window", "floor", "garden", "river", "stone", "paper", "train", "letter"]


def planted_rows(kind: str, num_families: int = 80, seed: int = 0, shuffled: bool = False) -> list[dict[str, Any]]:
    """Two rows a family. `kind` label, score or pairs: a completion is better by its number of the word `splendid`."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for family in range(num_families):
        better = int(rng.integers(2))
        for place in (0, 1):
            good = place == better
            count = int(rng.integers(1, 4)) if good else 0
            words = [*rng.choice(_WORDS, 5), *["splendid"] * count]
            row: dict[str, Any] = {
                "prompt": f"What is in room {family}?",
                "completion": " ".join(rng.permutation(words)),
            }
            value = {"label": float(good), "score": 20.0 + 3 * count + rng.normal(0, 0.5)}.get(kind)
            rows.append(row | ({"is_chosen": good} if value is None else {"reward": value}))
    if shuffled:
        name = "is_chosen" if kind == "pairs" else "reward"
        order = rng.permutation(num_families)
        values = [[rows[2 * f + i][name] for i in (0, 1)] for f in order]
        rows = [row | {name: values[i // 2][(i + (i // 2)) % 2]} for i, row in enumerate(rows)]
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
