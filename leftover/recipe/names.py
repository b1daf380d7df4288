"""What a run, its policies, its rewards and its judges may be called: names of files and of rows in tables."""

import re
from collections.abc import Iterable

from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, ONLINE
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.sections import NAME_RULE, Recipe

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
# Rows of tables that are not the policies'.
_TAKEN = {"reference": "the frozen reference", "data": "the completions of the data"}


def check_names(recipe: Recipe, where: str) -> None:
    """Refuse names in a recipe that a new run cannot have; those of runs of earlier versions are read as they are."""
    _check(f"{where}: name", [recipe.name])
    for name, fields in recipe.policies.items():
        if name.lower() in _TAKEN:
            raise UserError(
                f"{where}: policies: '{name}' stands for {_TAKEN[name.lower()]} in the results: give this policy "
                "another name"
            )
        objective = str((recipe.train | fields).get("objective", LoLConfig.objective))
        if name in (*OBJECTIVES, *ONLINE) and name != objective:
            raise UserError(
                f"{where}: policies.{name} is called as an objective and trains by another, {objective}: set "
                f"policies.{name}.objective, or give it another name"
            )
    _check(f"{where}: policies", recipe.policies)
    for key, specs in (("reward.functions", recipe.reward.functions), ("evaluate.judges", recipe.evaluate.judges)):
        _check(f"{where}: {key}", [spec["name"] for spec in specs if isinstance(spec.get("name"), str)])


def check_distinct(where: str, names: Iterable[str]) -> None:
    """Refuse names that differ in case alone."""
    by_lower: dict[str, str] = {}
    for name in names:
        if (other := by_lower.setdefault(name.lower(), name)) != name:
            raise UserError(
                f"{where}: '{other}' and '{name}' differ in case alone, and some file systems hold them for one name: "
                "rename one"
            )


def _check(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: {name[:100]!r} cannot be a name: {NAME_RULE}")
    check_distinct(where, names)
