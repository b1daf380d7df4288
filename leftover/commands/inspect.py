"""`leftover inspect`: how good is my data? The leftover section of the report alone, before any training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftover.commands.scored import IN_PYTHON, scored_source
from leftover.errors import counted
from leftover.monitoring.shown import Shown
from leftover.monitoring.terminal import console
from leftover.prepare.own_rows import Rows
from leftover.prepare.value.described import described
from leftover.report.analysis.advice import advice
from leftover.report.analysis.analysis import analyse
from leftover.report.analysis.table import table_rows
from leftover.report.page import write_inspection
from leftover.store.folders import check_page
from leftover.store.row_files import check_rows_output, write_rows

_TARGETS = {
    "recorded": "the rows' own scores",
    "reference_samples": "the reference's own completions",
    None: "the rows",
}
ENDINGS = (".csv", ".jsonl", ".parquet")


@dataclass(repr=False)
class Inspection(Shown):
    """What `inspect` found."""

    analysis: dict[str, Any]  # of `leftover.report.analysis.analysis.analyse`
    page: Path
    export: Path | None = None

    def show(self) -> None:
        """Print the numbers that matter most, the paths of what was written, and what to do."""
        analysis = self.analysis
        about, twins, odd = analysis["about_value"], analysis["duplicates"], analysis["disagreement"]
        r2 = about.get("r2")
        terminal = console(width=140)
        if analysis["looked_at"]:
            terminal.print(f"Looked at {analysis['looked_at']}.")
        scored, worth = counted(analysis["rows"], "scored row"), round(analysis["effective_sample_size"])
        terminal.print(
            f"Leftover, what A-LoL would train on: {analysis['leftover']:,} of {scored} ({analysis['share']:.0%}) are "
            "above their value; weighted by how far (the advantage: score less value), they are worth "
            f"{counted(worth, 'equally weighted row')}."
        )
        targets = _TARGETS.get(about.get("targets"), about.get("targets"))
        terminal.print(
            f"Value, the score that a prompt leads to expect: {described(about)}, of {targets}; on held-out prompts R² "
            f"{'n/a' if r2 is None else format(r2, '.3f')} (1: exact; 0: no better than one number for all)."
        )
        terminal.print(
            f"Contradictions, one prompt and completion with several scores: {twins['contradictions']:,}, in "
            f"{counted(twins['contradicting_rows'], 'row')}. Repeats, further rows of a prompt and completion with one "
            f"score: {twins['repeats']:,}."
        )
        if odd["correlation"] is not None:
            terminal.print(
                f"Neighbours, rows that read alike: their scores correlate by {odd['correlation']:+.2f} (near 0: the "
                "score sees more than words, or is noise)."
            )
        if number := analysis["without_advantage"]:
            have = "has" if number == 1 else "have"
            terminal.print(
                f"{counted(number, 'row')} {have} no score: of these numbers they are in none but the repeats."
            )
        terminal.print(f"Page: {self.page}", soft_wrap=True)
        if self.export:
            terminal.print(f"Every row: {self.export}", soft_wrap=True)
        for line in advice(analysis):
            terminal.print(line)
        if self.export is None and (twins["contradictions"] or twins["repeats"]):
            terminal.print("--export rows.csv lists every row with what it repeats and contradicts.")


def inspect(
    table: Rows,
    *,
    overrides: Sequence[str] = (),
    reward: str | None = None,
    output: str | Path | None = None,
    export: str | Path | None = None,
) -> Inspection:
    """Write a page about the scored rows of `table`; returns its numbers and its path. UserError if no row has a score.

    Args:
        table, overrides, reward: as of `leftover.commands.scored.scored_source`.
        output: the page; default: inspect.html of the run's folder, or NAME.inspect.html here.
        export: a file for every row with what is known of it (`leftover.report.analysis.table.table_rows`): .csv,
            .jsonl or .parquet.
    """
    name = Path(table).name if isinstance(table, (str, Path)) else IN_PYTHON
    target, every_row = Path(output or f"{name}.inspect.html"), Path(export) if export else None
    if output is not None:
        check_page(target)
    if every_row:
        check_rows_output(every_row, "--export", ENDINGS)
    rejects, option = target.with_suffix(".rejected_rows.jsonl"), "the folder of --output:"
    with scored_source(table, overrides=overrides, reward=reward, rejects=rejects, option=option) as source:
        analysis = analyse(source.rows)
        if source.folder is not None and output is None:
            target = source.folder / "inspect.html"
        write_inspection(source.name, source.rows, analysis, target)
        if every_row:
            write_rows(every_row, table_rows(source.rows, analysis["duplicates"]["pair"]))
    return Inspection(analysis, target, every_row)
