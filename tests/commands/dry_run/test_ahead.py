"""How long a run will take, told once its rows are known: from the table, of this machine, and without a trace."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leftover.commands.dry_run import ahead, rows
from leftover.errors import UserError
from leftover.pipeline import prepare
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.runs.run import Run


@pytest.fixture
def tokenised(tmp_path: Path, tiny_recipe: Callable) -> Run:
    run = open_run(make_recipe(tiny_recipe(tmp_path)))
    prepare(run, "tokens")
    run.close()
    return run


def test_the_rows_of_the_table_are_those_of_the_recipe(tokenised: Run) -> None:
    own, read = ahead.rows_of(tokenised), rows.read(tokenised.recipe)
    assert isinstance(read, rows.Rows) and own.lengths is not None and read.lengths is not None
    for name in ("group", "family", "split", "chosen", "recorded"):
        np.testing.assert_array_equal(getattr(own, name), getattr(read, name))
    for name in ("prompts", "completions", "kept", "num_rows", "share_cut"):
        np.testing.assert_array_equal(getattr(own.lengths, name), getattr(read.lengths, name))


def test_the_time_is_told_once_and_draws_no_number_of_the_run(
    tokenised: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leftover.commands.dry_run.ahead")
    ahead.tell_time(tokenised, "report")
    assert not caplog.messages, "it takes less than the timing"
    monkeypatch.setattr(ahead, "_WORTH_IT", 0.0)
    ahead.tell_time(tokenised, "report")
    assert not caplog.messages, "it has fewer steps than the timing"
    monkeypatch.setattr(ahead, "_TIMED_STEPS", 0.1)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    draws = []
    for told in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if told:
            ahead.tell_time(tokenised, "report")
        draws.append(draw())
    assert draws[0] == draws[1]
    (line,) = caplog.messages
    assert line.startswith("The rest takes about 10 s, 10 s of it training steps")
    tokenised.manifest.begin("reference", {})
    tokenised.manifest.finish("reference")
    ahead.tell_time(tokenised, "report")
    assert len(caplog.messages) == 1, "the reference is there: the rest is not the whole run"


@pytest.mark.parametrize("kind", [UserError, ValueError, StopIteration])
def test_a_run_that_cannot_be_timed_goes_on(
    kind: type[Exception], tokenised: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise kind("too large for this machine")

    caplog.set_level(logging.INFO, "leftover.commands.dry_run.ahead")
    monkeypatch.setattr(ahead, "estimate_run", refuse)
    ahead.tell_time(tokenised, "report")
    assert caplog.messages == ["How long the run takes is not known (too large for this machine)"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(1, "10 s"), (44, "40 s"), (50, "1 min"), (250, "4 min"), (7950, "2 h 10 min")]
)
def test_an_estimate_is_as_precise_as_it_can_be(seconds: float, said: str) -> None:
    assert ahead.rounded(seconds) == said
