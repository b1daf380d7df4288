"""A small part of the campaigns of `make faults`, whose seed is fixed."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import scored_rows
from tests.faults.campaigns import bad_rows, corruptions, kills
from tests.faults.test_campaigns import TRAIN


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM])
def test_some_kills(deadly: int, tiny_recipe: Callable, tmp_path: Path) -> None:
    assert kills(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 2, 1, deadly).bad == []


def test_some_corruptions(tiny_recipe: Callable, tmp_path: Path) -> None:
    assert corruptions(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 3, 1).bad == []


def test_some_malformed_rows(tmp_path: Path) -> None:
    assert bad_rows(tmp_path, scored_rows(30), 8, 1).bad == []
