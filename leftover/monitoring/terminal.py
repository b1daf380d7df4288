"""What is shown while something runs: one rule for when, and text that cannot speak to the terminal."""

import logging
import os
import re
import sys
from typing import Any, TextIO


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun or accelerate started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_live(stream: TextIO | None = None) -> bool:
    """Whether somebody watches `stream` (default: stderr): a terminal that can redraw a line, and not in CI.

    What moves or is coloured (bars, live lines, styles) is shown where this holds, and nowhere else.
    """
    stream = sys.stderr if stream is None else stream
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not in_ci and is_main_process()


def console(*, stderr: bool = False, width: int | None = None, markup: bool = False) -> Any:
    """A rich console on stdout (or stderr); plain text where that is not live, `width` columns wide.

    Strings are taken as they are (`markup`: read as rich's markup). Where NO_COLOR is set there is no colour.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    live = is_live(stream)
    return Console(
        file=stream,
        width=None if live else width,
        force_terminal=live,
        markup=markup,
        highlight=False,
        emoji=False,
        quiet=not is_main_process(),
    )


def progress_bar(total: int, description: str, unit: str, *, shown: bool = True) -> Any:
    """A bar on stderr with the rate and the time left (`tqdm`), cleared at its end; silent where that is not live."""
    from tqdm import tqdm

    disable = not (shown and is_live())
    options: dict[str, Any] = {"file": sys.stderr, "leave": False, "dynamic_ncols": True, "disable": disable}
    return tqdm(total=total, desc=description, unit=unit, **options)


def harmless(text: str) -> str:
    """`text` with every character that a terminal would obey, or not show, written out: ESC as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """`text` for a page or a file: control characters and those that turn the order of letters written out."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str, width: int, *, keep: str = "start") -> str:
    """The start (or the end) of `text` in `width` columns: white space as single spaces, and `harmless`."""
    from rich.cells import cell_len

    # A text may be long, and no more than this of it can be seen; combining characters take no column.
    some = text[: 8 * width] if keep == "start" else text[-8 * width :]
    line = harmless(" ".join(some.split()))
    if len(some) == len(text) and cell_len(line) <= width:
        return line
    pieces, used = [], 1  # the ellipsis
    for character in line if keep == "start" else reversed(line):
        used += cell_len(character)
        if used > width:
            break
        pieces.append(character)
    return "".join(pieces) + "…" if keep == "start" else "…" + "".join(reversed(pieces))


class LogHandler(logging.Handler):
    """Log lines on what `sys.stderr` is now, so that they pass above a live display; of several processes the first."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; of other processes than the first errors alone, which may be theirs."""
        if not is_main_process() and record.levelno < logging.ERROR:
            return
        try:
            sys.stderr.write(harmless(self.format(record)) + "\n")
        except OSError:
            self.handleError(record)


def _announce() -> None:
    """Progress in the log, one line a stage; libraries below warnings stay silent."""
    import logging
    import warnings

    from leftover.monitoring.terminal import LogHandler

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()])
    logging.getLogger("leftover").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs an error, and raises it too
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def size_text(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
