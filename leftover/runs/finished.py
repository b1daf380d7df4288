"""A finished run, read back from its folder. Nothing is computed, claimed or written."""

from functools import cached_property
from pathlib import Path
from typing import Any

from leftover.errors import UserError, looked_for
from leftover.recipe.files import load_recipe
from leftover.recipe.sections import Recipe
from leftover.runs.names import policy_folder, trained_policies
from leftover.store.manifest import Manifest, read_json
from leftover.store.table import Table


class FinishedRun:
    """The folder of a run as report, model card, judge, export and inspect read it.

    The folder may have been moved or copied since; `recipe.output_dir` is not used. Raises UserError for a folder
    without a run.

    Args:
        recipe: default: the `recipe.yaml` of the folder.
    """

    def __init__(self, folder: str | Path, recipe: Recipe | None = None):
        self.folder = Path(folder)
        if not (self.folder / "recipe.yaml").is_file():
            there = "no recipe.yaml in it" if self.folder.is_dir() else f"there is none{looked_for(folder)}"
            raise UserError(f"'{folder}' is not the folder of a run ({there})")
        self.recipe = recipe or load_recipe(self.folder)
        self.table = Table(self.folder / "table")
        self.manifest = Manifest(self.folder)

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The counts in `prepare.json`; empty if nothing was prepared."""
        path = self.folder / "prepare.json"
        return read_json(path) if path.is_file() else {}

    def policy(self, name: str | None) -> str:
        """The name of a policy; default: the recipe's first. UserError if the recipe has no such policy."""
        policy = name or self.recipe.main_policy
        if policy not in self.recipe.policies:
            raise UserError(f"no policy '{policy}' in '{self.folder}' (it has: {', '.join(self.recipe.policies)})")
        return policy

    def trained_policy(self, name: str | None = None, seed: int | None = None) -> tuple[str, int]:
        """The name and seed of a trained policy; default: the recipe's first. UserError if it is not trained."""
        name, seed = name or self.recipe.main_policy, self.recipe.seeds[0] if seed is None else seed
        trained = trained_policies(self.folder)
        if policy_folder(self.folder, name, seed) not in trained:
            listed = ", ".join(str(path.relative_to(self.folder)) for path in trained) or "none"
            raise UserError(f"no trained policy '{name}' with seed {seed} in '{self.folder}' (trained: {listed})")
        return name, seed

    def results(self) -> dict[str, Any] | None:
        """The content of results.json, or of comparison.json if the folder's last run was a comparison.

        None if neither is about the policies of the recipe.
        """
        for name in ("comparison.json", "results.json"):
            path = self.folder / name
            if path.is_file():
                found = read_json(path)
                if set(found["training"]) <= set(self.recipe.policies) and found["training"]:
                    return found
        return None
