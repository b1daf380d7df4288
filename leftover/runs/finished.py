"""A finished run as its folder tells it: nothing is computed, claimed or loaded but what was written there."""

from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.recipe.files import load_recipe
from leftover.store.manifest import Manifest, read_json
from leftover.store.table import Table


class FinishedRun:
    """What a report reads of a run: `folder`, `recipe`, `table`, `manifest`, `seed`, as `leftover.runs.run.Run` has.

    The folder may have been moved or copied since; `recipe.output_dir` is not looked at. Raises UserError for a
    folder that holds no run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "recipe.yaml").is_file():
            raise UserError(f"'{folder}' is not the folder of a run (no recipe.yaml in it)")
        self.recipe = load_recipe(self.folder)
        self.table = Table(self.folder / "table")
        self.manifest = Manifest(self.folder)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def about_value(self) -> dict[str, Any] | None:
        """What the run noted of its value estimate."""
        path = self.folder / "prepare.json"
        return read_json(path).get("value") if path.is_file() else None

    def results(self) -> dict[str, Any] | None:
        """The content of results.json, or of comparison.json where the folder's last run was a comparison.

        None where neither is of the policies that the recipe names.
        """
        for name in ("comparison.json", "results.json"):
            path = self.folder / name
            if path.is_file():
                found = read_json(path)
                if set(found["training"]) <= set(self.recipe.policies) and found["training"]:
                    return found
        return None
