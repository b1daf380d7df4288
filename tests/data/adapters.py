"""What the tests of the data adapters share: rows of files as the table would hold them, and what was set aside."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from leftover.data.checks import check_row
from leftover.data.formats import read_rows
from leftover.data.rows import Rejects, check_rows
from leftover.recipe.data_section import DataSection

SHARED = Path("../shared/data")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the real data are absent."""
    return pytest.mark.skipif(not (SHARED / name).exists(), reason="the real data are not here")


class Read(list):
    """Checked rows; `stats` of the reading, and `reasons` why rows were rejected."""

    stats: dict[str, Any]
    reasons: list[str]


def read(path: Any, **settings: Any) -> Read:
    """Rows of `data.path` under these settings of `data`; faulty ones are skipped."""
    data = DataSection(path=path, **({"on_bad_row": "skip"} | settings))
    stats: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rejects = Path(folder) / "rejects"
        rows = Read(check_rows(read_rows(data), data, Rejects(rejects), stats))
        lines = rejects.read_text(encoding="utf-8").splitlines() if rejects.exists() else []
    rows.stats = stats
    rows.reasons = [json.loads(line)["reason"] for line in lines]
    return rows


def faults(path: Any, **settings: Any) -> list[str]:
    """Why rows are faulty, where perhaps all are."""
    data, found = DataSection(path=path, **settings), []
    for _, row in read_rows(data):
        try:
            check_row(row, data)
        except ValueError as error:
            found.append(str(error))
    return found


def messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The prompt of a conversation as (role, content)."""
    assert row["conversational"]
    return [(turn["role"], turn["content"]) for turn in json.loads(row["prompt"])]


def texts(rows: list[dict[str, Any]]) -> list[tuple[str, str, float | None]]:
    """(prompt, completion, reward) of every row."""
    return [(row["prompt"], row["completion"], row["recorded_reward"]) for row in rows]
