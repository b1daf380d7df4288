"""A small part of the campaigns of `make faults`, whose seed is fixed."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import scored_rows
from tests.faults.bad_input import bad_rows, bad_values
from tests.faults.corruptions import corruptions
from tests.faults.disks import disks, may_mount
from tests.faults.kills import kills
from tests.faults.services import hostile_services
from tests.faults.test_campaigns import TRAIN


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM])
def test_some_kills(deadly: int, tiny_recipe: Callable, tmp_path: Path) -> None:
    assert kills(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 2, 1, deadly).bad == []


def test_some_corruptions(tiny_recipe: Callable, tmp_path: Path) -> None:
    assert corruptions(tiny_recipe(tmp_path, train=TRAIN), tmp_path, 3, 1).bad == []


def test_some_malformed_rows(tmp_path: Path) -> None:
    assert bad_rows(tmp_path, scored_rows(30), 8, 1).bad == []


def test_some_recipe_values(tiny_recipe: Callable, tmp_path: Path) -> None:
    assert bad_values(tiny_recipe(tmp_path), tmp_path, 4, 1).bad == []


def test_some_hostile_services(tiny_recipe: Callable, tmp_path: Path) -> None:
    assert hostile_services(tiny_recipe(tmp_path), tmp_path, 4, 1).bad == []


def test_some_full_disks(tiny_recipe: Callable, tmp_path: Path) -> None:
    if not may_mount(tmp_path / "try"):
        pytest.skip("no right to mount a tmpfs")
    assert disks(tiny_recipe(tmp_path), tmp_path, 2, 1).bad == []
