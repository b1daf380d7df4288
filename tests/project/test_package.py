"""What the package says of itself, and that nothing of it stays behind when it is built."""

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import leftover
from leftover import cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_file_beside_the_code_is_package_data() -> None:
    """Templates, styles and py.typed; `make package-check` looks into the wheel itself."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["leftover"]
    beside = [path.relative_to(ROOT / "leftover") for path in (ROOT / "leftover").rglob("*") if path.is_file()]
    beside = [path for path in beside if path.suffix not in (".py", ".pyc")]
    assert Path("py.typed") in beside and len(beside) > 10
    assert not [str(path) for path in beside if not any(fnmatch(str(path), pattern) for pattern in patterns)]


def test_every_room_is_a_package() -> None:
    """setuptools finds those with an `__init__.py`."""
    folders = {path.parent for path in (ROOT / "leftover").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_version_is_said_in_one_place(capsys: pytest.CaptureFixture) -> None:
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "leftover.__version__"}
    cli.main(["--version"])
    assert leftover.__version__ in capsys.readouterr().out


def test_pinned_versions_are_within_the_bounds() -> None:
    """pip refuses them together otherwise, extras included."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [Requirement(text) for text in (*PROJECT["project"]["dependencies"], *extras["dev"], *extras["bench"])]
    for requirement in wanted:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("target", ["check", "package-check", "bounds", "reference", "lock", "wheel"])
def test_targets_that_the_guide_names_are_there(target: str) -> None:
    done = subprocess.run(["make", "-n", target, f"VENV={sys.prefix}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_guide_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 60


def test_the_guide_names_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "leftover").glob("*/__init__.py")}
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert not [room for room in rooms if f"\n  {room}/ " not in guide]
