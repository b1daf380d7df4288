"""What a run found: numbers in results.json, words in report.md, all of it in report.html, the main part printed."""

import csv
import io
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leftover.evaluation.caveats import caveats
from leftover.evaluation.measures import number
from leftover.evaluation.rounds import rounds_grid, rounds_sentence
from leftover.evaluation.tables import Grid, escape, markdown_table, result_grid
from leftover.evaluation.verdict import headline, verdict
from leftover.monitoring.terminal import console, visible
from leftover.prepare.value.described import described
from leftover.report.curves import draw_curves
from leftover.report.embedded import shorten
from leftover.report.page import TEMPLATES, run_view, write_page
from leftover.report.rounds import draw_rounds
from leftover.runs.finished import FinishedRun
from leftover.runs.names import ROUNDS_PICTURE
from leftover.store.files import write_text
from leftover.store.row_files import csv_cell
from leftover.store.sealed import write_sealed

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console


_TEXT_SHOWN = 300  # characters of a text in Markdown
_NUMBER_WIDTH = 8  # of a cell that is not wrapped
_PIPED_WIDTH = 1000  # columns: nothing is cut or wrapped if no terminal sets a width


def write_report(run: FinishedRun, results: dict[str, Any], *folders: Path) -> None:
    """Write results.json, report.md, its pictures and report.html, by default into the folder of the run."""
    view = run_view(run, results)
    for folder in folders or (run.folder,):
        _write_report(run, results, view, folder)


def _write_report(run: FinishedRun, results: dict[str, Any], view: dict[str, Any], folder: Path) -> None:
    write_sealed(folder / "results.json", results, copied=False)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    values = {
        "runs": results["training"],
        "sentence": verdict(results),
        "curves": draw_curves(folder, results["training"]),
        "versions": f"Python {platform.python_version()}, {packages}",
    }
    if run.rounds:
        draw_rounds(run.rounds, folder / ROUNDS_PICTURE)
    write_text(folder / "report.md", render("report.md.j2", results | view | values))
    write_page([view], folder / "report.html")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Flat dictionaries as CSV; a column for each of their keys."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def render(template: str, values: Mapping[str, Any]) -> str:
    """A Markdown template filled in; several empty lines become one."""
    return re.sub(r"\n{3,}", "\n\n", _environment().get_template(template).render(values)).strip() + "\n"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"q": escape, "quote": quote, "number": number, "table": lambda grid: markdown_table(*grid)}
    environment.filters |= {"described": described}
    return environment


def quote(text: str) -> str:
    """A text of data or models on one line of Markdown, without its middle if it is long."""
    return escape(shorten(visible(" ".join(text.split())), _TEXT_SHOWN)) or "(empty)"


def print_table(results: Mapping[str, Any], table: Grid) -> "Console":
    """Print a table of results on stdout, at full width if that is no terminal; returns its console."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{results['name']}: {results['primary']} completions on held-out prompts",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for i, (name, *cells) in enumerate(zip(table.header, *table.cells, strict=True)):
        # Where a terminal is too narrow, names and intervals go on in a second line; no number is cut.
        number = i > 0 and max(map(len, cells), default=0) <= _NUMBER_WIDTH
        shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=number, overflow="fold")
    for line in table.cells:
        shown.add_row(*line)
    terminal = console(width=_PIPED_WIDTH)
    terminal.print(shown)
    return terminal


def print_rounds(rounds: Mapping[str, Any]) -> None:
    """Print the table of all rounds, and what they came to."""
    print_table(rounds, rounds_grid(rounds)).print(rounds_sentence(rounds))


def print_results(results: Mapping[str, Any]) -> None:
    """Print the short result table, the leftover share and the verdict."""
    terminal = print_table(results, result_grid(results, results["primary"], short=True))
    leftover = results["prepare"].get("leftover")
    if leftover:
        terminal.print(
            f"Leftover: {leftover['leftover_rows']:,} of {leftover['training_rows']:,} training rows "
            f"({leftover['share']:.0%}) are better than what the reference would answer (advantage above 0)."
        )
    terminal.print(headline(results))
    if found := caveats(results):
        terminal.print("Before you believe it:")
    for caveat in found:
        terminal.print(f"- {caveat}")
