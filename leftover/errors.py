"""The one exception that means: the user can fix this; what remedies call the settings; errors of the disk."""

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """Bad input, named with its file, row or key and the remedy; the CLI prints it and exits with 2."""


@dataclass(frozen=True)
class SettingNames:
    """What messages call the settings that change how rows are read and scored; by default keys of a recipe."""

    path: str = " (key data.path)"  # after the name of a data file
    data: str = "data"  # the section with the settings that have no name of their own here
    columns: str = "data.columns"
    labels: str = "data.labels"
    faulty_rows: str = (  # the remedy
        "Fix them, name your columns in data.columns (those of a table without a header line in data.table.names), or "
        "set data.on_bad_row: skip to put faulty rows aside in rejected_rows.jsonl"
    )
    template_options: str = "model.template_options"
    chat_template: str = "model.chat_template"
    how_to_give_a_template: str = " (a template, a file, or plain)"
    end_tokens: str = "model.end_tokens"
    tokenizer: str = "key model.tokenizer or model.path"
    missing_scores: str = "return None if there is no score: reward.missing has a rule for it"
    negative_rewards: str = "set reward.transform (minmax, sigmoid, quantile, or a scale and an offset)"


RECIPE = SettingNames()
PYTHON = SettingNames(
    path="",
    data="data_options",
    columns="columns",
    labels="labels",
    faulty_rows=(
        "Fix or drop them, name your columns in the configuration (columns={'prompt': ...}) or by "
        "Dataset.rename_column, or set on_bad_row='skip'"
    ),
    template_options="chat_template_kwargs",
    chat_template="the tokenizer's chat_template",
    how_to_give_a_template=", and pass it as processing_class",
    end_tokens="end_tokens",
    tokenizer="pass one as processing_class",
    missing_scores="every completion needs a score",
    negative_rewards="shift or scale them",
)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Name the place of a UserError: its message begins with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def counted(number: int, noun: str, nouns: str = "") -> str:
    """`1 row`, `1,204 rows`; `nouns` where the plural is no mere s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def closest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid name closest to `name`, whatever its case; None if none is close (1 is equal)."""
    import difflib

    by_lower = {choice.lower(): choice for choice in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest valid name, or an empty string."""
    close = closest(name, valid)
    return f"; did you mean '{close}'?" if close else ""


@contextmanager
def not_readable(what: str) -> Iterator[None]:
    """Whatever a library raises for what it reads or makes inside becomes a UserError: `what`, and the error's line.

    Libraries raise another type for every cause. Only what says nothing of the input passes: our own errors, a full
    disk, too little memory.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) in OF_THE_MACHINE or type(error).__name__ == "OutOfMemoryError":
            raise
        line = first_line(error)
        line = one_line(error, 200) if line.endswith(":") else line
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UserError(f"{what}: {kind}{line}") from error


def looked_for(path: str | Path) -> str:
    """Where a path that is not there was looked for, and what is there under a name like it; for a message."""
    folder = Path(path).parent
    where = "" if Path(path).is_absolute() else f"; looked for in {folder.resolve()}"
    if not folder.is_dir():
        return where or f"; there is no folder {folder}"
    return where + nearest(Path(path).name, [found.name for found in folder.iterdir()])


def shortened(text: str, limit: int = 500) -> str:
    """A text that may be of any length, for a message."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, limit: int = 500) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())[:limit]


def remedy_of(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_folder():
        return "the folder that you run in is not there any more: change to one that is (cd), then run again"
    # A write on an open file knows no name; safetensors and torch.save raise their own errors without a number.
    code, name = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    place = f" ({name})" if name else ""
    for codes, signs, remedy in _REMEDIES:
        if code in codes or (signs and re.search(signs, str(error))):
            return remedy.format(place=place)
    return None


def _has_working_folder() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


# Errors that say nothing of the file that was read or written.
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)
_ELSEWHERE = "set output_dir to a folder of your own"
# Numbers of errors, or else what their texts hold -> what the user can do.
_REMEDIES: list[tuple[tuple[int, ...], str, str]] = [
    (
        (errno.EFBIG,),
        "File too large",
        "a file{place} would be larger than the system allows (ulimit -f): raise that, then run again: it continues",
    ),
    (
        (errno.ENOSPC, errno.EDQUOT),
        r"No space left on device|inline_container\.cc|\d requested and \d+ written",
        "the disk is full{place}; free some space, then run again: it continues (or raise the limit of ulimit -f)",
    ),
    ((errno.EROFS,), "", f"the disk is read-only{{place}}; {_ELSEWHERE} on another disk"),
    ((errno.EACCES, errno.EPERM), "", f"no permission for a file{{place}}; {_ELSEWHERE}, or make the file readable"),
    (
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        "",
        f"a file stands in the place of a folder, or the reverse{{place}}: mend that path, or {_ELSEWHERE}",
    ),
    (
        (errno.ENAMETOOLONG, errno.ELOOP),
        "",
        "the system takes no such path{place}: it is too long, or a link that leads to itself; name another",
    ),
    (
        (errno.EMFILE, errno.ENFILE),
        "Too many open files",
        "the system opens no more files for this process{place}: raise ulimit -n, then run again: it continues",
    ),
    (
        (errno.EIO,),
        "Input/output error",
        "the disk or device failed to read or write{place}: check it (dmesg), or move to another",
    ),
    (
        (),
        "can't start new thread",
        "the system starts no more threads: raise ulimit -u or end other programs, then run again: it continues",
    ),
]
