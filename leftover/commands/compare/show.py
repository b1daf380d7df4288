"""A comparison at the terminal."""

from pathlib import Path
from typing import Any

from leftover.commands.compare.tables import short_grid
from leftover.report.write import print_table


def print_comparison(results: dict[str, Any], folder: str) -> None:
    """Print the short table, the methods that do not apply, and where the files are."""
    console = print_table(results, short_grid(results))
    for name, reason in results["not_applicable"].items():
        console.print(f"{name}: n/a, {reason}")
    console.print(f"Comparison: {Path(folder) / 'comparison.md'}")
