"""Results in Python that show themselves as the command line tells of them."""

import contextlib
import html
import io
from collections.abc import Callable, Mapping
from typing import Any


class Shown:
    """A result whose text, also in a notebook, is what its command prints."""

    def show(self) -> None:
        """Print what the command prints."""
        raise NotImplementedError

    def __str__(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            self.show()
        return said.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class Results(Shown, dict[str, Any]):
    """The content of a file of results: a dictionary, which shows itself as its command does."""

    def __init__(self, content: Mapping[str, Any], show: Callable[[], None]):
        super().__init__(content)
        self._show = show

    def show(self) -> None:
        self._show()
