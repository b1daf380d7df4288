"""docs/reference lists every key and every option, and is what the code says now."""

import dataclasses
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from transformers import TrainingArguments

from leftover.cli import cli
from leftover.recipe.forms import Section
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.recipe.training_fields import RESERVED

ROOT = Path(__file__).parents[2]
MAKER = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
PAGES = {name: (ROOT / "docs" / "reference" / name).read_text("utf-8") for name in ("recipe.md", "cli.md")}


def keys_of(section: type[Section], path: str = "") -> Iterator[str]:
    """Found apart from the script that writes the page."""

    def inside(annotation: Any) -> Iterator[type[Section]]:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
        for part in get_args(annotation):
            yield from inside(part)

    for name, field in section.model_fields.items():
        yield path + name
        for nested in inside(field.annotation):
            yield from keys_of(nested, f"{path}{name}.")


def options() -> Iterator[tuple[str, str]]:
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                yield from ((name, spelling) for spelling in (*option.opts, *option.secondary_opts))


@pytest.mark.parametrize("key", keys_of(Recipe))
def test_every_key_is_on_the_page(key: str) -> None:
    assert f"\n| `{key}` |" in PAGES["recipe.md"], "`make reference` writes docs/reference"


@pytest.mark.parametrize("config", [LoLConfig, PPOConfig])
def test_every_training_setting_of_ours_is_on_the_page(config: type) -> None:
    ours, theirs = ({field.name for field in dataclasses.fields(of)} for of in (config, TrainingArguments))
    assert not [name for name in ours - theirs - RESERVED.keys() if f"\n| `{name}` |" not in PAGES["recipe.md"]]


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_on_the_page(command: str, option: str) -> None:
    _, found, rest = PAGES["cli.md"].partition(f"\n## leftover {command}\n")
    assert found and f"`{option}`" in rest.partition("\n## ")[0], "`make reference` writes docs/reference"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    assert PAGES[name] == MAKER["pages"]()[name], "`make reference` writes docs/reference"


@pytest.mark.parametrize("parts", ["recipe_parts", "cli_parts"])
def test_every_key_and_option_is_described(parts: str) -> None:
    undescribed = [f"{part.title}: {key.name}" for part in MAKER[parts]() for key in part.keys if not key.text]
    assert not undescribed, "say what it does where it is declared: in its help, or a comment above or beside it"
