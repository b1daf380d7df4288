"""The one exception that means: the user can mend this."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input, named with its file, row or key and the remedy; the CLI prints it and exits with 2."""


def nearest(name: str, valid: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the valid name closest to `name`, whatever its case, or an empty string."""
    import difflib

    by_lower = {choice.lower(): choice for choice in valid}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
