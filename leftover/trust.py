"""Whose code may run: what a recipe of the user's own names, and nothing that came with the folder of a run.

A folder may be anybody's. What its recipe names (functions in Python, a model's own code) runs only if the user says so
on this machine (`--allow-code`). A dry run runs nothing at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from leftover.errors import UserError

_OURS = ("leftover.demo.grammar:score_answers",)  # of the demonstration
_allowed = False
_closed = False


def allow_code(allowed: bool = True) -> None:
    """What `--allow-code` says, for the rest of this process."""
    global _allowed
    _allowed = allowed


@contextmanager
def no_code() -> Iterator[None]:
    """Inside, no code runs, whoever's: functions are looked for in their files."""
    global _closed
    before, _closed = _closed, True
    try:
        yield
    finally:
        _closed = before


def code_is_closed() -> bool:
    return _closed


def code_is_allowed() -> bool:
    """Whether `--allow-code` was given."""
    return _allowed and not _closed


def check_code(what: str, where: str, *, of_folder: bool) -> None:
    """Refuse code that a run's folder names, unless it was allowed."""
    if of_folder and not _allowed and not _closed:
        raise UserError(
            f"{where}: {what} would run code that this folder names: add --allow-code if you trust it, or give "
            "your own recipe"
        )


def functions_in_python(spec: Any) -> Iterator[str]:
    """The functions that the specification of a reward names, at any depth."""
    if isinstance(spec, dict):
        if spec.get("type") == "python" and spec.get("function") not in _OURS:
            yield str(spec.get("function"))
        spec = list(spec.values())
    for part in spec if isinstance(spec, list) else ():
        yield from functions_in_python(part)
