"""The parts of a command, numbered as they begin, each with its time when it ends."""

import logging
import time
from collections.abc import Mapping

from leftover.monitoring.terminal import clock

log = logging.getLogger(__name__)


class Stages:
    """Tells each of `titles` (name -> title) as `2/7 Score the answers` when it begins, and `in 12 s` when it ends."""

    def __init__(self, titles: Mapping[str, str]):
        self.titles = titles
        self._begun: float | None = None

    def begin(self, name: str) -> None:
        """A part without a title belongs to the one that is going on."""
        if name not in self.titles:
            return
        self.end()
        number = list(self.titles).index(name) + 1
        log.info("%d/%d %s", number, len(self.titles), self.titles[name], extra={"indent": ("", _INDENT)})
        self._begun = time.monotonic()

    def end(self) -> None:
        """The part that is going on has ended; nothing if there is none."""
        if self._begun is not None:
            log.info("in %s", clock(time.monotonic() - self._begun), extra={"indent": (_INDENT, "")})
            self._begun = None


_INDENT = "    "  # of the lines of a part
