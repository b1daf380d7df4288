"""What the terminal calls artifacts, and that it has words for all of a run."""

import logging
from pathlib import Path

import pytest

from leftover.store.manifest import Manifest
from leftover.store.spoken import spoken


@pytest.mark.parametrize(
    ("name", "noun", "done"),
    [
        ("table/score-my:scores", "Scores by my:scores", "Scored {rows} by my:scores"),
        ("policy a, b, seed 3", "Policy a, b, seed 3", "Trained policy a, b, seed 3"),
        ("evaluation of kto-seed-1", "Evaluation of kto, seed 1", "Evaluated kto, seed 1"),
        ("evaluation of reference", "Evaluation of the reference", "Evaluated the reference"),
        ("table/own block", "Table/own block", "Made table/own block"),
    ],
)
def test_words_of_an_artifact(name: str, noun: str, done: str) -> None:
    assert spoken(name) == (noun, done)


def test_what_took_long_is_told_with_its_time_and_rows_and_later_that_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leftover")
    manifest = Manifest(tmp_path, "table/")
    manifest.names["score-a_b"] = "score-a:b"
    for seconds in (0.2, 3.0):
        monkeypatch.setattr("leftover.monitoring.costs.StageMeter.read", lambda _, took=seconds: {"seconds": took})
        manifest.begin("score-a_b", {"seconds": seconds})
        manifest.finish("score-a_b", num_rows=2591)
    manifest.begin("score-a_b", {"seconds": 3.0})
    Manifest(tmp_path / "own").begin("models", {})  # what every run checks is no news
    Manifest(tmp_path / "own").begin("models", {"changed": True})
    assert caplog.messages == [
        "Scores by a:b: made again, since something changed (seconds: 0.2 -> 3.0)",
        "Scored 2,591 rows by a:b, in 3.0 s",
        "Scores by a:b: kept from before",
    ]


def test_a_digest_is_not_shown_as_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "leftover")
    for digest in ("0123456789abcdef", "fedcba9876543210"):
        Manifest(tmp_path).begin("reference", {"model": digest})
    assert caplog.messages == ["Reference model: made again, since something changed (model)"]
