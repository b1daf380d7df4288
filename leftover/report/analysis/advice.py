"""What to do about rows, in a line or two of plain words."""

from collections.abc import Mapping
from typing import Any

from leftover.errors import counted
from leftover.prepare.value.described import constant_folds


def advice(analysis: Mapping[str, Any]) -> list[str]:
    """What to do about the rows that `analyse` measured, how many would not train, and what to know of the value."""
    twins, rows, leftover = analysis["duplicates"], analysis["rows"], analysis["leftover"]
    of = f" ({counted(twins['contradicting_rows'], 'row')})"
    tasks = [
        f"{what} {counted(number, thing)}{more}"
        for what, number, thing, more in (
            ("fix", twins["contradictions"], "contradiction", of),
            ("drop", twins["repeats"], "repeat", ""),
            ("score", analysis["without_advantage"], "row", " without a score"),
        )
        if number
    ]
    todo = ", ".join(tasks).capitalize() or "No row contradicts or repeats another"
    trains = f"{(rows - leftover) / rows:.0%} of the scored rows would not train" if leftover else "no row would train"
    if leftover == rows:
        trains = "all scored rows would train"
    both = analysis["faulty_dropped"]
    overlap = f", {both:,} of those to fix or drop among them" if both and leftover else ""
    lines = [f"{todo}; {trains}{overlap}."]
    if said := constant_folds(analysis["about_value"]):
        lines.append(f"{said[0].upper()}{said[1:]}: there a row is compared with the mean of all, not with its prompt.")
    return lines
