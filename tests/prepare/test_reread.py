"""Tables of earlier versions are made anew where their tokens were others, and only there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from leftover.data.chat import Chat
from leftover.pipeline import prepare
from leftover.prepare.reread import reread, reread_prompts
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.data.tokenizers_in_code import byte_level, legacy


def rows(*texts: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"prompt": p, "completion": c, "conversational": False, "tools": None} for p, c in texts])


@pytest.mark.parametrize(
    ("make", "text", "kinds"),
    [
        (byte_level, ("hello wor", "ld"), None),
        (lambda: byte_level("<s> $A"), ("hello", " world"), None),
        (lambda: byte_level("<s> $A"), ("<s>hello", " world"), ["begun"]),
        (byte_level, ("<s>hello", " world"), None),
        (byte_level, ("hello</s>", " world"), ["ended"]),
        (byte_level, ("", " world"), ["empty"]),
        (lambda: byte_level("<s> $A"), ("", " world"), None),
        (legacy, ("hello", " world"), None),
        (legacy, ("hello wor", "ld"), ["seam"]),
        (lambda: byte_level("$A <s>"), ("hello", " world"), ["closed"]),
    ],
)
def test_the_key_changes_with_the_tokens(make: Any, text: tuple[str, str], kinds: list | None) -> None:
    expected = {"reread": kinds} if kinds else {}
    assert reread(Chat(make()), rows(("hello", " thanks"), text)) == expected
    if kinds != ["seam"]:
        assert reread_prompts(Chat(make()), ["hello", text[0]]) == expected


def test_an_ordinary_runs_key_is_that_of_earlier_versions(tmp_path: Path, tiny_recipe: Callable) -> None:
    prepare(open_run(make_recipe(tiny_recipe(tmp_path))), only="tokens")
    key = json.loads((tmp_path / "run/table/manifest.json").read_text())["tokens"]["key"]
    assert set(key) == {"from", "tokenizer", "limits"}
