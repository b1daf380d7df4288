"""A finished run, read back from its folder. Nothing is computed, claimed or written."""

import json
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from leftover.errors import UserError, looked_for
from leftover.recipe.files import load_recipe
from leftover.recipe.sections import Recipe
from leftover.runs.names import (
    PREPARED,
    evaluation_artifact,
    policy_artifact,
    policy_folder,
    policy_subject,
    round_folder,
    trained_policies,
)
from leftover.store.folders import refuse_links
from leftover.store.manifest import Manifest
from leftover.store.sealed import digest, read_sealed
from leftover.store.table import Table


class FinishedRun:
    """The folder of a run as report, model card, judge, export and inspect read it.

    The folder may have been moved or copied since; `recipe.output_dir` is not used. Of a run with rounds it is the last
    round, whose folder this one's is. Raises UserError for a folder without a run.

    Args:
        recipe: default: the `recipe.yaml` of the folder.
    """

    def __init__(self, folder: str | Path, recipe: Recipe | None = None):
        self.folder = Path(folder)
        if not (self.folder / "recipe.yaml").is_file():
            there = "no recipe.yaml in it" if self.folder.is_dir() else f"there is none{looked_for(folder)}"
            there += "; a run that has just been started makes it within half a minute"
            raise UserError(f"'{folder}' is not the folder of a run ({there})")
        refuse_links(self.folder)
        self.recipe = recipe or load_recipe(self.folder)
        if self.recipe.rounds is not None:
            begun = [round_folder(self.folder, number) for number in range(1, self.recipe.rounds.number + 1)]
            begun = [path for path in begun if (path / "recipe.yaml").is_file()]
            if not begun:
                raise UserError(f"no round of '{folder}' has begun: `leftover run {folder}`")
            self.folder = begun[-1]
            self.recipe = load_recipe(self.folder)
        self.table = Table(self.folder / "table")
        self.manifest = Manifest(self.folder)

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """The counts in `prepare.json`; empty if nothing was prepared."""
        return read_sealed(self.folder / PREPARED) or {}

    @cached_property
    def rounds(self) -> dict[str, Any] | None:
        """The content of rounds.json, if this is the last of several rounds."""
        path = self.folder.parent.parent / "rounds.json"
        found = read_sealed(path) if self.folder.parent.name == "rounds" else None
        return found if found and self.folder == round_folder(path.parent, found["number"]) else None

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
        self.manifest.check(policy_artifact(name, seed))
        return name, seed

    def results(self) -> dict[str, Any] | None:
        """The content of results.json, or of comparison.json if the folder's last run was a comparison.

        None if neither is about the policies of the recipe.
        """
        for name in ("comparison.json", "results.json"):
            found = read_sealed(self.folder / name)
            if found is not None:
                if "training" not in found:
                    raise UserError(f"{self.folder / name} is damaged: remove it, and run the recipe again")
                if set(found["training"]) <= set(self.recipe.policies) and found["training"]:
                    return found
        return None

    def scored_by(self) -> str:
        """A digest of what scores completions here: rows and rewards, judges, what one without an end counts."""
        reward = self.table.digest("reward") if self.table.has("reward") else None
        section = self.recipe.evaluate.model_dump(include={"judges"})
        return digest({"reward": reward, **section, **self.recipe.unfinished_key})

    def has_current(self, block: str) -> bool:
        """Whether a block of the table is whole, and of the blocks as they are now: a run replaces one by one."""
        known = self.table.manifest.entries
        return self.table.has(block) and self._are_current(known[block]["key"].get("from", {}))

    def is_evaluated(self, subject: str, policy: str | None = None) -> bool:
        """Whether a subject's evaluation is whole, and of the rows (and of the model of `policy`) as they are now."""
        artifact = evaluation_artifact(subject)
        if not self.manifest.is_complete(artifact):
            return False
        key = self.manifest.entries[artifact]["key"]
        of_this_model = policy is None or (
            self.manifest.is_complete(policy) and key.get("model") in (None, self.manifest.digest(policy))
        )
        return of_this_model and self._are_current(key.get("from", {}))

    def unfinished(self) -> list[str]:
        """What a run of the recipe still has to do, by the manifest's names; `results` if only that is missing.

        Runs that failed in a comparison are not among them: its results say so.
        """
        results = self.results()
        failed = (results or {}).get("failed", {})
        found = [] if self.is_evaluated("reference") else [evaluation_artifact("reference")]
        for name, seed in product(self.recipe.policies, self.recipe.seeds):
            artifact, subject = policy_artifact(name, seed), policy_subject(name, seed)
            if subject not in failed and not self.is_evaluated(subject, artifact):
                found.append(evaluation_artifact(subject) if self.manifest.is_complete(artifact) else artifact)
        if not found and (results is None or not self._are_of_these_policies(results)):
            found.append("results")
        return found

    def _are_current(self, inputs: dict[str, str]) -> bool:
        known = self.table.manifest.entries
        return all(
            self.has_current(name) and self.table.digest(name) == of for name, of in inputs.items() if name in known
        )

    def _are_of_these_policies(self, results: dict[str, Any]) -> bool:
        now = {
            p: {s: self.manifest.facts(policy_artifact(p, int(s))) for s in of} for p, of in results["training"].items()
        }
        return json.dumps(now, sort_keys=True) == json.dumps(results["training"], sort_keys=True)
