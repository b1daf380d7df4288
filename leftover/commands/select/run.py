"""`leftover select`, top to bottom: scored rows in, rows of another trainer out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.commands.scored import IN_PYTHON, scored_source
from leftover.commands.select.formats import FORMATS, Selected
from leftover.data.records import Row
from leftover.errors import UserError, counted, nearest
from leftover.monitoring.shown import Shown
from leftover.monitoring.terminal import console
from leftover.objectives import OBJECTIVES
from leftover.prepare.own_rows import Rows
from leftover.report.analysis.rows import ScoredRows
from leftover.store.row_files import check_rows_output, write_rows
from leftover.store.table import equals
from leftover.training.selection import select_rows

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".jsonl", ".parquet", "")
_SELECTED = ("leftover", "best", "all")
_WORDS = {"pairs": "pair", "groups": "group"}


@dataclass(repr=False)
class Selection(Shown):
    """What `select` wrote, or made where it was given no path."""

    format: str
    num_rows: int  # written
    num_scored: int  # rows with a score that could be selected
    num_selected: int
    what: str  # of the scored rows
    left_out: dict[str, int]
    path: Path | None
    dataset: "Dataset | None" = None  # the rows, of a selection without a path

    def show(self) -> None:
        """Print what was done, in plain words."""
        written = counted(self.num_rows, _WORDS.get(self.format, f"{self.format} row"))
        where = f" to {self.path}" if self.path else ""
        desirable = f" ({self.num_selected:,} desirable)" if self.format == "kto" else ""
        of = f"{self.what}, {self.num_selected:,} of {counted(self.num_scored, 'scored row')}"
        terminal = console(width=140)
        terminal.print(f"{'Wrote' if self.path else 'Made'} {written}{desirable}{where}: {of}.", soft_wrap=True)
        for reason, number in self.left_out.items():
            if number:
                terminal.print(f"Skipped {_of(number, reason)}.", soft_wrap=True)


def select(
    table: Rows,
    output: str | Path | None = None,
    *,
    format: str = "prompt-completion",
    rows: str | None = None,
    top: float | None = None,
    overrides: Sequence[str] = (),
    reward: str | None = None,
) -> Selection:
    """Write rows of `table` for another trainer; without `output` they are a `datasets.Dataset` in memory.

    Args:
        table, overrides, reward: as of `leftover.commands.scored.scored_source`.
        output: a .jsonl or .parquet file, or, without an ending, a new folder for `datasets.load_from_disk`.
        format: prompt-completion, messages, pairs, kto or groups (`leftover.commands.select.formats`).
        rows: leftover (A > 0), best (of every prompt the row of highest reward) or all; default: leftover.
        top: in place of `rows`, this many per cent of the scored rows, by reward.

    Raises UserError if nothing is selected, or makes no row of the format.
    """
    _check(format, rows, top)
    name = Path(table).name if isinstance(table, (str, Path)) else IN_PYTHON
    target = Path(output) if output else None
    if target:
        check_rows_output(target, "--output", ENDINGS)
    rejects = (target or Path(name)).with_suffix(".rejected_rows.jsonl")
    option = "the folder of --output:"
    with scored_source(table, overrides=overrides, reward=reward, rejects=rejects, option=option) as source:
        found, left_out = _selected(source.rows, "top" if top else rows or "leftover", top or 100.0)
        counter = _Counted(FORMATS[format](found), found.left_out)
        dataset = None
        if target:
            write_rows(target, counter)
        else:
            from datasets import Dataset

            dataset = Dataset.from_list(list(counter))
    return Selection(
        format=format,
        num_rows=counter.number,
        num_scored=int(np.isfinite(found.reward).sum()),
        num_selected=int(found.selected.sum()),
        what=_what(rows, top),
        left_out=left_out | found.left_out,
        path=target,
        dataset=dataset,
    )


class _Counted:
    """A stream that counts its rows. UserError at its end if there was none."""

    def __init__(self, rows: Iterator[Row], left_out: Counter[str]):
        self.number, self._rows, self._left_out = 0, rows, left_out

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.number += 1
            yield row
        if not self.number:
            reasons = "; ".join(_of(number, reason) for reason, number in self._left_out.items() if number)
            raise UserError(
                f"no row can be written: {reasons}; pairs need prompts with several completions, of which a selected "
                "one has a higher reward than another (--rows best takes the best of every prompt)"
            )


def _check(format: str, rows: str | None, top: float | None) -> None:
    if format not in FORMATS:
        raise UserError(f"the format '{format}' is not one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")
    if rows not in (None, *_SELECTED):
        raise UserError(f"the rows '{rows}' are not one of {', '.join(_SELECTED)}; for the best by reward give top")
    if rows is not None and top is not None:
        raise UserError("--top takes rows by their reward, and --rows says which: give one of them")
    if top is not None and not 0 < top <= 100:
        raise UserError(f"--top is a percentage above 0 and at most 100, not {top}")
    if format == "kto" and rows == "all":
        raise UserError(
            "--rows all leaves no undesirable row: of kto the selected rows are the desirable ones, and all others are "
            "written too. Leave --rows out (desirable: the rows above their value), or give --rows best or --top 25"
        )


def _of(number: int, reason: str) -> str:
    """`3 rows without a score`, `1 row without a score`: a reason begins with its noun in the plural."""
    nouns, _, rest = reason.partition(" ")
    return f"{counted(number, nouns.removesuffix('s'), nouns)} {rest}"


def _what(rows: str | None, top: float | None) -> str:
    if top is not None:
        return f"the top {top:g} % by reward"
    return {"best": "the best row of every prompt", "all": "all"}.get(rows or "", "the leftover")


def _selected(rows: ScoredRows, which: str, top: float) -> tuple[Selected, dict[str, int]]:
    """What is selected, and how many rows could not be, by reason."""
    reward, held_out = rows.reward, _held_out(rows)
    unscored = ~np.isfinite(reward) & ~held_out
    reward = np.where(held_out, np.nan, reward)
    columns: dict[str, Any] = {"reward": reward, "advantage": np.where(held_out, np.nan, rows.advantage)}
    selected = select_rows(OBJECTIVES["nll"], columns | {"value": rows.value, "group": rows.group}, which, top)
    selected &= np.isfinite(reward)
    weights = rows.advantage if which == "leftover" else np.ones(len(reward))
    left_out = {
        "rows without a score": int(unscored.sum()),
        "rows of the file's own validation and test splits (--set data.columns.split=null takes them)": int(
            held_out.sum()
        ),
    }
    return Selected(rows, reward, selected, weights), left_out


def _held_out(rows: ScoredRows) -> np.ndarray:
    """[N] bool: the rows that the user's own splits keep from training."""
    splits = {name: equals(rows.stored, "user_split", name) for name in ("train", "validation", "test")}
    return (splits["validation"] | splits["test"]) & bool(splits["train"].any())
