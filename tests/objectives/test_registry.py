"""Objectives of installed packages: found by their entry points, loaded when they are taken, refused when faulty."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, ONLINE, Objective
from leftover.objectives.registry import Registry

Install = Callable[..., Path]

MODULE = """
from leftover.objectives import OBJECTIVES, Objective
from leftover.objectives.pointwise import nll

margin = Objective(nll)
text = "no objective"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("name", "objective = module:attribute")` puts a package on the path, as pip does."""
    len(OBJECTIVES)  # has looked for packages before there are any of these

    def put(package: str, points: str, module: str = MODULE, site: Path = tmp_path / "site") -> Path:
        info = site / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[leftover.objectives]\n{points}\n")
        (site / f"{package.replace('-', '_')}.py").write_text(module)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        return site

    return put


def registry() -> Registry:
    """As `leftover.objectives` makes it, without what it has found so far."""
    return Registry(OBJECTIVES._known, reserved=ONLINE)


def test_an_installed_objective_is_one_like_the_others(install: Install) -> None:
    install("margins", "margin = margins:margin")
    found = registry()
    assert "margin" in found and list(found) == [*OBJECTIVES, "margin"] and len(found) == len(OBJECTIVES) + 1
    assert "margins" not in sys.modules  # names alone import nothing
    assert isinstance(found["margin"], Objective) and "margins" in sys.modules


def test_one_that_python_code_registers_keeps_its_place() -> None:
    found = registry()
    found["mine"] = found["nll"]
    assert found["mine"] is found["nll"] and "mine" not in OBJECTIVES
    del found["mine"]
    with pytest.raises(KeyError):
        found["mine"]


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        ("margin = faulty_one:absent", r"cannot be loaded \(AttributeError: .*absent"),
        ("margin = absent_module:margin", r"cannot be loaded \(ModuleNotFoundError: .*absent_module"),
        ("margin = faulty_one:text", r"is 'no objective', not an Objective"),
    ],
)
def test_a_faulty_one_is_named_with_its_package(install: Install, point: str, fault: str) -> None:
    install("faulty-one", point)
    found = registry()
    assert found["nll"] is OBJECTIVES["nll"]  # the others are as they were
    with pytest.raises(UserError, match=f"objective 'margin' of the package faulty-one 1.2: .*{fault}"):
        found["margin"]


@pytest.mark.parametrize("name", ["nll", "ppo"])
def test_a_name_of_ours_is_refused(install: Install, name: str) -> None:
    install("margins", f"{name} = margins:margin")
    with pytest.raises(UserError, match=f"margins 1.2 brings an objective '{name}', and so does Leftover itself"):
        list(registry())


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("margins", "margin = margins:margin")
    install("others", "margin = others:margin")
    with pytest.raises(UserError, match=r"brings an objective 'margin', and so does (margins|others) 1\.2"):
        "margin" in registry()  # noqa: B015


def test_what_looks_like_a_package_in_the_working_folder_is_none(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that somebody sent is not installed because a command runs inside it."""
    monkeypatch.chdir(install("strangers", "margin = strangers:margin"))
    monkeypatch.syspath_prepend("")
    assert "margin" not in registry()
