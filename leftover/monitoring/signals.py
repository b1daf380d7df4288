"""SIGTERM and Ctrl-C: a training saves a checkpoint first; all else stops at once: what was finished is on disk."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

log = logging.getLogger(__name__)

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program; the status is 128 + its number."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"{signal.Signals(number).name}{where and f': {where}'}")
        self.number, self.where = number, where

    @property
    def status(self) -> int:
        return 128 + self.number


def stop_on_sigterm() -> None:
    """Let SIGTERM unwind the program as Ctrl-C does, so that locks, displays and child processes are ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Interrupted(number)


class Asked:
    """Which signal has asked to stop, if any. The same one a second time stops at once."""

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False  # what is being done leaves nothing to be saved at its end

    def __call__(self, number: int, _: FrameType | None) -> None:
        again, self.number = self.number == number, number
        if again or self.at_once:
            raise Interrupted(number)
        log.warning("%s: stops after this step", signal.Signals(number).name)


@contextmanager
def asked_by_signals(wanted: bool = True) -> Iterator[Asked]:
    """Inside, SIGTERM and Ctrl-C ask; one that nothing has obeyed by the end raises `Interrupted` there.

    Inside a block of `obeyed_once_saved`, that is at the end of the outer one. Python gives signals to the main thread
    alone: in others nothing is asked.
    """
    outer = signal.getsignal(signal.SIGTERM)
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield Asked()
    elif isinstance(outer, Asked):
        outer.at_once = False
        yield outer
    else:
        asked = Asked()
        before: dict[int, Any] = {number: signal.signal(number, asked) for number in _NUMBERS}
        try:
            yield asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if asked.number:
            raise Interrupted(asked.number)


@contextmanager
def obeyed_once_saved() -> Iterator[None]:
    """Around a training and the saving of its model: a signal after the last step is obeyed once that is done."""
    with asked_by_signals() as asked:
        asked.at_once = True  # until the training begins
        yield
