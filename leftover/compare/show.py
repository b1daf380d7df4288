"""A comparison at the terminal."""

import sys
from pathlib import Path
from typing import Any

from leftover.compare.write import short_cells


def print_comparison(results: dict[str, Any], folder: str) -> None:
    """The short table, what did not apply, and where the files are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, cells = short_cells(results)
    table = Table(
        title=f"{results['name']}: {results['primary']} completions on held-out prompts",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for name, reason in results["not_applicable"].items():
        console.print(f"{name}: n/a, {reason}", highlight=False, markup=False)
    console.print(f"Comparison: {Path(folder) / 'comparison.md'}", highlight=False)
