"""The one exception that means: the user can fix this."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input, named with its file, row or key and the remedy; the CLI prints it and exits with 2."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Name the place of a UserError: its message begins with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, whatever its case; None if none is close."""
    import difflib

    by_lower = {choice.lower(): choice for choice in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest valid name, or an empty string."""
    close = closest(name, valid)
    return f"; did you mean '{close}'?" if close else ""


def looked_for(path: str | Path) -> str:
    """Where a path that is not there was looked for, and what is there under a name like it; for a message."""
    folder = Path(path).parent
    where = "" if Path(path).is_absolute() else f"; looked for in {folder.resolve()}"
    if not folder.is_dir():
        return where or f"; there is no folder {folder}"
    return where + nearest(Path(path).name, [found.name for found in folder.iterdir()])


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, limit: int = 500) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())[:limit]
