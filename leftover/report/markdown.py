"""report.md and comparison.md from their templates."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leftover.evaluation.measures import number
from leftover.evaluation.tables import escape, markdown_table
from leftover.monitoring.terminal import visible
from leftover.report.embedded import shorten

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
_TEXT_SHOWN = 300


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template filled in; several empty lines become one."""
    return re.sub(r"\n{3,}", "\n\n", _environment().get_template(template).render(values)).strip() + "\n"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"q": escape, "quote": quote, "number": number, "table": lambda grid: markdown_table(*grid)}
    return environment


def quote(text: str) -> str:
    """A text of data or models on one line of Markdown, its markup escaped, a long one without its middle."""
    return escape(shorten(visible(" ".join(text.split())), _TEXT_SHOWN)) or "(empty)"
