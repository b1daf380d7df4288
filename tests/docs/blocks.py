"""The blocks of code in README and docs, and how they are made small enough to run in a test.

A page may name any model, as many steps and as many rows as a reader wants. What stands in for them is said here alone:
`MODELS` become a tiny model, `CONFIGS` and `RECIPE` replace settings of trainers and recipes.
"""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from leftover.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md"))]

MODELS = ("path/or/hub-id", "HuggingFaceTB/SmolLM2-135M-Instruct")

_TRAINER = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "LoLConfig": _TRAINER | {"max_steps": 1, "max_completion_length": 32},
    "PPOConfig": _TRAINER | {"total_episodes": 4, "num_mini_batches": 2, "max_completion_length": 8},
}
RECIPE: dict[str, dict[str, Any]] = {
    "reference": {"train": {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 3e-3}},
    "value": {"num_prompts": 8, "candidates": ["constant", "ridge"]},
    "train": {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    "evaluate": {"max_prompts": 4, "max_selection_prompts": 2, "max_new_tokens": 8},
}

_BLOCK = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str  # its path in the repository
    line: int
    language: str
    title: str  # the file that the text is of, or nothing
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page.relative_to(ROOT).as_posix(),
            text.count("\n", 0, found.start()) + 1,
            found[2],
            found[3] or "",
            textwrap.dedent(found[4]),
        )
        for found in _BLOCK.finditer(text)
    ]


def shell_lines(text: str) -> list[list[str]]:
    """The words of every command of a block, continued lines joined, comments and variables before it left out."""
    found = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    lines = []
    for words in found:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            lines.append(words)
    return lines


def parse(words: list[str]) -> click.Context:
    """A `leftover` command as its command line reads it, options and values; nothing runs. UsageError otherwise."""
    words = [word for word in words[1:] if word not in ("--debug", "--allow-code")]
    command = cli.commands.get(words[0])
    if command is None:
        raise click.UsageError(f"leftover has no command '{words[0]}'")
    return command.make_context(words[0], words[1:])


class _Small(ast.NodeTransformer):
    def __init__(self, model: str) -> None:
        self.model = model

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if small := CONFIGS.get(name):
            kept = [keyword for keyword in node.keywords if keyword.arg not in small]
            node.keywords = kept + [ast.keyword(key, ast.Constant(value)) for key, value in small.items()]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(self.model) if node.value in MODELS else node


def small_code(text: str, model: str, where: str) -> Any:
    """Python code, compiled, with the small model and small settings."""
    return compile(ast.fix_missing_locations(_Small(model).visit(ast.parse(text))), where, "exec")


def small_recipe(content: dict[str, Any], model: str) -> dict[str, Any]:
    """A recipe with the small model and small settings; what it says besides stays."""
    return _with_model({**content, **{name: {**content.get(name, {}), **new} for name, new in RECIPE.items()}}, model)


def _with_model(value: Any, model: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_model(entry, model) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_model(entry, model) for entry in value]
    return model if value in MODELS else value


def small_words(words: list[str], model: str) -> list[str]:
    return [model if word in MODELS else word for word in words]


def all_blocks(*languages: str) -> Iterator[Block]:
    for page in PAGES:
        yield from (block for block in blocks_of(page) if block.language in languages)
