"""Results at the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leftover.evaluation.tables import Grid, result_grid
from leftover.evaluation.verdict import verdict
from leftover.monitoring.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 1000  # columns: nothing is cut or wrapped where no terminal sets a width


def print_table(results: Mapping[str, Any], table: Grid) -> "Console":
    """Print a table of results on stdout, as wide as it must be where that is no terminal; returns its console."""
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
    """The short result table, the leftover share and the verdict."""
    terminal = print_table(results, result_grid(results, results["primary"], short=True))
    leftover = results["prepare"].get("leftover")
    if leftover:
        terminal.print(
            f"Leftover: {leftover['leftover_rows']} of {leftover['training_rows']} training rows "
            f"({leftover['share']:.0%}) have a positive advantage."
        )
    terminal.print(verdict(results))
