"""What stands under reproductions/ can be reproduced: recipes that are read, commands that exist, scripts that run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from leftover.recipe.files import load_recipe
from tests.docs.blocks import blocks_of, parse, shell_lines

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reproductions"
SCRIPTS = sorted(path.name for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".md")
PAGES = sorted(FOLDER.glob("*.md"))
SMOKE: dict[str, Callable[[], None]] = {}  # script -> a tiny run of it


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `leftover` command line in the pages' blocks."""
    lines = [(page.name, words) for page in PAGES for block in blocks_of(page) for words in shell_lines(block.text)]
    return [(page, words) for page, words in lines if words[0] == "leftover"]


@pytest.mark.parametrize("script", [*SCRIPTS, *SMOKE])
def test_every_script_runs(script: str) -> None:
    assert script in SMOKE and script in SCRIPTS, f"reproductions/{script} has no run of its own here: add one to SMOKE"
    SMOKE[script]()


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[1])
def test_commands_are_those_that_exist(page: str, words: list[str]) -> None:
    given = parse(words).params
    if (given.get("recipe") or "").startswith("recipes/"):
        load_recipe(ROOT / given["recipe"], list(given["overrides"]))


def test_the_pages_are_found() -> None:
    assert len(PAGES) > 5 and len({page for page, _ in commands()}) > 3
