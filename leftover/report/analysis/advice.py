"""What to do about rows, in a line or two of plain words."""

from collections.abc import Mapping
from typing import Any

from leftover.prepare.value.described import constant_folds


def advice(analysis: Mapping[str, Any]) -> list[str]:
    """What to do about the rows that `analyse` measured, how many would not train, and what to know of the value."""
    twins, rows, leftover = analysis["duplicates"], analysis["rows"], analysis["leftover"]
    tasks = [
        f"{what} {number:,} {thing}{'' if number == 1 else 's'}"
        for what, number, thing in (
            ("fix", twins["contradictions"], "contradiction"),
            ("drop", twins["repeats"], "repeat"),
            ("score", analysis["without_advantage"], "row"),
        )
        if number
    ]
    todo = ", ".join(tasks).capitalize() or "No row contradicts or repeats another"
    trains = f"{(rows - leftover) / rows:.0%} of the rows would not train" if leftover else "no row would train"
    if leftover == rows:
        trains = "all rows would train"
    lines = [f"{todo}; {trains}."]
    if said := constant_folds(analysis["about_value"]):
        lines.append(f"{said[0].upper()}{said[1:]}: there a row is compared with the mean of all, not with its prompt.")
    return lines
