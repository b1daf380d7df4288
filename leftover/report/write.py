"""What a run found: numbers in results.json, words in report.md, all of it in report.html, the main part printed."""

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from leftover.evaluation.tables import Grid, result_grid
from leftover.evaluation.verdict import verdict
from leftover.monitoring.terminal import console
from leftover.report.curves import draw_curves
from leftover.report.markdown import render
from leftover.report.page import run_view, write_page
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

_PIPED_WIDTH = 1000  # columns: nothing is cut or wrapped where no terminal sets a width


def write_report(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write results.json, report.md, its picture and report.html."""
    write_json(run.folder / "results.json", results)
    view = run_view(run, results)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    values = {
        "runs": results["training"],
        "sentence": verdict(results),
        "curves": draw_curves(run.folder, results["training"]),
        "versions": f"Python {platform.python_version()}, {packages}",
    }
    write_text(run.folder / "report.md", render("report.md.j2", results | view | values))
    log.info("report: %s", run.folder / "report.md")
    write_page([view], run.folder / "report.html")


def print_table(results: Mapping[str, Any], table: Grid) -> "Console":
    """Print a table of results on stdout, at full width if that is no terminal; returns its console."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{results['name']}: {results['primary']} completions on held-out prompts",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(table.header):
        shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for line in table.cells:
        shown.add_row(*line)
    terminal = console(width=_PIPED_WIDTH)
    terminal.print(shown)
    return terminal


def print_results(results: Mapping[str, Any]) -> None:
    """Print the short result table, the leftover share and the verdict."""
    terminal = print_table(results, result_grid(results, results["primary"], short=True))
    leftover = results["prepare"].get("leftover")
    if leftover:
        terminal.print(
            f"Leftover: {leftover['leftover_rows']} of {leftover['training_rows']} training rows "
            f"({leftover['share']:.0%}) have a positive advantage."
        )
    terminal.print(verdict(results))
