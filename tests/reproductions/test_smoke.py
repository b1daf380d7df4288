"""What stands under reproductions/ can be reproduced: recipes that are read, commands that exist, scripts that run."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from leftover.cli import cli
from leftover.recipe.files import load_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reproductions"
SCRIPTS = sorted(path.name for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".md")
PAGES = sorted(FOLDER.glob("*.md"))
SMOKE: dict[str, Callable[[], None]] = {}  # script -> a tiny run of it


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `leftover` command line in the pages' blocks."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, shlex.split(line, comments=True)) for line in lines if line.startswith("leftover ")]
    return found


@pytest.mark.parametrize("script", [*SCRIPTS, *SMOKE])
def test_every_script_runs(script: str) -> None:
    assert script in SMOKE and script in SCRIPTS, f"reproductions/{script} has no run of its own here: add one to SMOKE"
    SMOKE[script]()


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[1])
def test_commands_are_those_that_exist(page: str, words: list[str]) -> None:
    recipes = [word for word in words if word.startswith("recipes/")]
    for recipe in recipes:
        load_recipe(ROOT / recipe, [words[i + 1] for i, word in enumerate(words) if word == "--set"])
    options = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    told = CliRunner().invoke(cli, [words[1], "--help"]).output
    assert all(option in told for option in options), f"{page}: {options}"


def test_the_pages_are_found() -> None:
    assert len(PAGES) > 5 and len({page for page, _ in commands()}) > 3
