"""One run: a recipe, and the paths and data of its folder."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from leftover.data.rows import Rejects
from leftover.errors import UserError
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward
from leftover.runs.models import Models
from leftover.runs.names import PREPARED, reference_folder
from leftover.runs.spelling import same_meaning
from leftover.store.folders import give_back, remove
from leftover.store.manifest import FileHashes, Manifest
from leftover.store.sealed import read_sealed, write_sealed
from leftover.store.table import Table
from leftover.trust import check_code, functions_in_python


class Run:
    """The recipe and the folder of a run, and what its stages share. Making one does not touch the disk.

    `leftover.runs.claim.open_run` makes one for the stages: it claims the folder and checks the recipe first.

    Args:
        folder: default: the recipe's `output_dir`.
    """

    def __init__(self, recipe: Recipe, folder: str | Path | None = None):
        self.recipe = recipe
        self.folder = Path(recipe.output_dir if folder is None else folder)
        # Set by `claim`: the folder is ours to write, and these folders were made for it, the outermost first.
        self.lock: FileLock | None = None
        self.made: list[Path] = []

    def close(self) -> None:
        """Give the folder back; if nothing was computed in it, the folders that were made for it go again."""
        if self.lock is None:
            return
        give_back(self.lock)
        self.lock = None
        if self.made and self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == ["recipe.yaml"]:
            (self.folder / "recipe.yaml").unlink()
            for folder in reversed(self.made):
                if not any(folder.iterdir()):
                    folder.rmdir()

    @cached_property
    def table(self) -> Table:
        return Table(self.folder / "table", partial(same_meaning, self.recipe))

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest(self.folder, shared=True, meaning=partial(same_meaning, self.recipe))

    @cached_property
    def hashes(self) -> FileHashes:
        return FileHashes(self.folder)

    @cached_property
    def rejects(self) -> Rejects:
        return Rejects(self.folder / "rejected_rows.jsonl")

    @cached_property
    def reward(self) -> SumReward:
        section = self.recipe.reward
        where = f"{self.recipe.where}: reward.functions"
        self._check_code(section.functions, where)
        return SumReward(section.functions, section.transform, section.missing, where, section.length)

    @cached_property
    def judges(self) -> SumReward | None:
        """Held-out scorers: reported, never trained on."""
        judges, where = self.recipe.evaluate.judges, f"{self.recipe.where}: evaluate.judges"
        self._check_code(judges, where)
        return SumReward(judges, where=where) if judges else None

    def _check_code(self, functions: list[dict[str, Any]], where: str) -> None:
        for name in functions_in_python(functions):
            check_code(f"the function {name}", where, of_folder=self.recipe.is_of_folder)

    @cached_property
    def models(self) -> Models:
        """Loads the models of the recipe and their tokenizer."""
        return Models(self.recipe, self.folder)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def reference_path(self) -> str:
        return reference_folder(self.recipe, self.folder)

    def discard(self, folder: Path) -> None:
        """Remove a folder of the run with all that is in it. Raises UserError for one that lies elsewhere."""
        remove(folder, self.folder)

    def note(self, **facts: Any) -> None:
        """Add counts of the preparation to `prepare.json`, for the report."""
        write_sealed(self.folder / PREPARED, self.noted | facts)

    @property
    def noted(self) -> dict[str, Any]:
        """What stages have noted. UserError if it is gone: stages that are reused note nothing again."""
        found = read_sealed(self.folder / PREPARED)
        if found is None and self.table.has("tokens"):
            raise UserError(
                f"{self.folder / PREPARED} is missing, and so is its copy: put it back, or remove {self.table.folder}: "
                "the rows are prepared again, and policies are kept"
            )
        return found or {}
