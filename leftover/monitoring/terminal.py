"""What is shown while something runs, and text made safe for terminals and pages."""

import contextlib
import logging
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, TextIO

from leftover.monitoring.ranks import is_main_process

if TYPE_CHECKING:
    from rich.console import Console
    from tqdm import tqdm


def is_live(stream: TextIO | None = None) -> bool:
    """Whether somebody watches `stream` (default: stderr): a terminal that can redraw a line, and not in CI.

    Bars, live lines and colours are shown only then.
    """
    stream = sys.stderr if stream is None else stream
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not in_ci and is_main_process()


def console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """A rich console without markup, on stdout (or stderr); plain text, `width` columns wide, unless that is live."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    live = is_live(stream)
    return Console(
        file=stream,
        width=None if live else width,
        force_terminal=live,
        markup=False,
        highlight=False,
        emoji=False,
        quiet=not is_main_process(),
    )


def progress_bar(total: int, description: str, unit: str, *, shown: bool = True) -> "tqdm":
    """A bar on stderr with the rate and the time left, cleared at its end; silent unless stderr is live."""
    from tqdm import tqdm

    hidden = not (shown and is_live())
    return tqdm(
        total=total, desc=description, unit=unit, file=sys.stderr, leave=False, dynamic_ncols=True, disable=hidden
    )


def harmless(text: str) -> str:
    """`text` with every character that a terminal would obey, or not show, escaped: ESC as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """`text` for a page or a file: control characters, and those that reverse the order of letters, are escaped."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str, width: int, *, keep: str = "start") -> str:
    """The start (or the end) of `text` in `width` columns: white space as single spaces, and `harmless`."""
    from rich.cells import cell_len

    # Of a long text no more than this can be seen; combining characters take no column.
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
    """Writes to the current `sys.stderr`, so that log lines pass above a live display; there no word is cut in two.

    A record may bring its own `indent`: that of its lines, and that of all later ones.
    """

    indent = ""

    def emit(self, record: logging.LogRecord) -> None:
        # Of other processes only errors, which may be theirs alone.
        if not is_main_process() and record.levelno < logging.ERROR:
            return
        if not str(record.name).startswith("leftover"):  # libraries log the tracebacks of what they get over
            record = copy(record)
            record.exc_info = record.exc_text = None
        own, self.indent = getattr(record, "indent", (self.indent, self.indent))
        try:
            sys.stderr.write(_indented(harmless(self.format(record)), own) + "\n")
        except OSError:
            self.handleError(record)


def _indented(text: str, indent: str) -> str:
    """Each line behind `indent`; for a terminal in lines of its width, further ones a little deeper."""
    if not is_live():
        return textwrap.indent(text, indent)
    width = max(40, shutil.get_terminal_size().columns)
    wrapper = textwrap.TextWrapper(
        width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapper.fill(line) for line in text.splitlines())


@cache
def tell_start() -> None:
    """Say at once, and once, that something happens, if PyTorch is not loaded yet, which takes seconds."""
    if "torch" not in sys.modules and is_main_process():
        print("Leftover starts; loading PyTorch takes some seconds ...", file=sys.stderr, flush=True)


def set_up_logging() -> None:
    """Log progress, a few lines a stage; libraries log warnings and errors only."""
    tell_start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()])
    logging.getLogger("leftover").setLevel(logging.INFO)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs the errors that it raises
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # peft, of every saved adapter of an embedding: that it saves the embedding too.
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")


@contextlib.contextmanager
def adapter_warnings_off() -> Iterator[None]:
    """Inside, what peft says while it makes or merges an adapter is not shown, where it or we set that right.

    It reads an old name of transformers', and turns the weights of GPT-2's layers around. Embeddings and head that are
    one tensor are parted when an adapter of one of them is merged (`leftover.models.load.merged`).
    """
    known = ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set to", ".*`tie_word_embeddings=")
    with warnings.catch_warnings():
        for message in known:
            warnings.filterwarnings("ignore", message=message)
        yield


def clock(seconds: float) -> str:
    """`1 h 02 min`, `8 min 36 s` or `7.5 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size_text(size: float) -> str:
    """A number of bytes in a fitting unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
