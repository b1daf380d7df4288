"""Objectives by name: our own, those that Python code registers, and those of installed packages.

A package brings objectives by the entry point group `leftover.objectives`, each an `Objective` under its name:

    [project.entry-points."leftover.objectives"]
    margin = "my_package.losses:margin"
"""

import sys
from collections.abc import Iterator, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, EntryPoints, distributions
from pathlib import Path
from typing import Any, NamedTuple

from leftover.errors import UserError, one_line
from leftover.objectives.batch import Objective

GROUP = "leftover.objectives"
REGISTER = "OBJECTIVES['mine'] = Objective(loss), then objective='mine' (docs/methods.md)"


class _Installed(NamedTuple):
    point: EntryPoint
    package: str  # with its version


class Registry(MutableMapping[str, Objective]):
    """Name -> objective. Names of installed ones are known at once; a module is imported when its objective is taken.

    Raises UserError that names the package where an entry point has a name that is taken, or gives no Objective.
    """

    def __init__(self, own: dict[str, Objective], reserved: tuple[str, ...] = ()) -> None:
        """`reserved`: names that no objective may have."""
        self._known, self._taken = dict(own), {*own, *reserved}

    @cached_property
    def _installed(self) -> dict[str, _Installed]:
        found: dict[str, _Installed] = {}
        for package, points in _packages():
            for point in points:
                new = _Installed(point, package)
                other = "Leftover itself" if point.name in self._taken else found.get(point.name, new).package
                if other != package:
                    raise UserError(
                        f"the package {package} brings an objective '{point.name}', and so does {other}: uninstall it, "
                        "or rename its entry point"
                    )
                found[point.name] = new
        return found

    def __getitem__(self, name: str) -> Objective:
        if name not in self._known:
            point, package = self._installed[name]
            self._known[name] = _load(point, package)
        return self._known[name]

    def __contains__(self, name: object) -> bool:  # without importing what has the name
        return name in self._known or name in self._installed

    def __setitem__(self, name: str, objective: Any) -> None:
        if not isinstance(objective, Objective):
            raise UserError(f"OBJECTIVES['{name}'] is {objective!r:.80}, not an Objective: {REGISTER}")
        self._known[name] = objective

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._known, *sorted(self._installed))))

    def __len__(self) -> int:
        return len(self._known.keys() | self._installed.keys())


def _packages() -> Iterator[tuple[str, EntryPoints]]:
    """Every installed package that brings objectives, with its version: the first on the path, which is imported.

    A folder that looks like a package is none because a command is run inside it: it may have come with anybody's run.
    """
    here, seen = Path.cwd(), set[str]()
    for package in distributions(path=[place for place in sys.path if place and Path(place).absolute() != here]):
        if (points := package.entry_points.select(group=GROUP)) and package.name not in seen:
            seen.add(package.name)
            yield f"{package.name} {package.version}", points


def _load(point: EntryPoint, package: str) -> Objective:
    who = f"objective '{point.name}' of the package {package}: {point.value}"
    try:
        found = point.load()
    except Exception as error:  # whatever the package's module does
        raise UserError(
            f"{who} cannot be loaded ({type(error).__name__}: {one_line(error, 200)}): mend or uninstall the package"
        ) from error
    if not isinstance(found, Objective):
        raise UserError(f"{who} is {found!r:.80}, not an Objective: it names Objective(loss, ...) in a module")
    return found
