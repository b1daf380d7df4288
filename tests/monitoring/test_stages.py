"""Parts of a command: their numbers, their time, and the indent of what is said in them."""

import io
import logging

import pytest

from leftover.monitoring import stages
from leftover.monitoring.stages import Stages
from leftover.monitoring.terminal import LogHandler
from leftover.pipeline import STAGES, STEPS, TITLES, titles
from tests.monitoring.test_terminal import put_in_place


def test_parts_are_numbered_and_end_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, handler, log = io.StringIO(), LogHandler(), logging.getLogger("leftover.test_stages")
    put_in_place(monkeypatch, stream)
    now = iter([10.0, 22.0, 30.0, 120.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(now))
    loggers = (log, stages.log)
    for one in loggers:
        one.addHandler(handler)
        monkeypatch.setattr(one, "level", logging.INFO)
    try:
        parts = Stages({"rows": "Read the rows", "train": "Train"})
        for name in ("rows", "tokens", "train"):  # tokens belong to the rows
            parts.begin(name)
            log.info("doing %s", name)
        parts.end()
        parts.end()
        log.info("afterwards")
    finally:
        for one in loggers:
            one.removeHandler(handler)
    assert stream.getvalue().splitlines() == [
        "1/2 Read the rows", "    doing rows", "    doing tokens", "    in 12.0 s",
        "2/2 Train", "    doing train", "    in 1 min 30 s", "afterwards",
    ]  # fmt: skip


def test_a_run_has_the_titles_up_to_where_it_ends() -> None:
    assert list(titles("report")) == ["rows", "score", "reference", "value", "train", "evaluate", "report"]
    assert list(titles("train"))[-1] == "train" and list(titles("prepare"))[-1] == "value"
    assert list(titles("prepare", only="tokens")) == ["rows"]
    assert set(TITLES) <= set(STEPS) | set(STAGES)
