"""`reward.fitted_in`: another run's fitted rewards, normalisations and scores, in place of those of this run's rows."""

from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.runs.finished import FinishedRun
from leftover.runs.names import REWARD_STATE, score_block, slug
from leftover.runs.run import Run
from leftover.runs.spelling import rewritten
from leftover.store.manifest import Key, as_json, changes
from leftover.store.sealed import read_sealed


def reward_state(folder: Path) -> dict[str, Any]:
    """The normalisations, means and transform by which a run scores new completions."""
    found = read_sealed(folder / REWARD_STATE)
    if found is None:
        raise UserError(f"{folder / REWARD_STATE} is missing: remove {folder / 'table' / 'reward'}, and run again")
    return found


class FittedIn:
    """The run that `reward.fitted_in` names. Raises UserError unless it has fitted these functions as they are here."""

    def __init__(self, run: Run):
        self.where = f"{run.recipe.where}: reward.fitted_in"
        self.run = FinishedRun(str(run.recipe.reward.fitted_in))

    def fitted(self, artifact: str, identity: Key) -> tuple[Key, dict[str, Any], Path]:
        """A key, the facts and the folder of what a reward or judge learnt there."""
        manifest = self.run.manifest
        entry = manifest.entries.get(artifact, {}) if manifest.is_complete(artifact) else {}
        self._check(artifact, entry.get("key", {}).get("identity"), identity)
        kind, _, name = artifact.partition(" ")
        folder, source = self.run.folder, self.run.recipe
        while source.reward.fitted_in is not None:  # it took it from elsewhere itself
            folder = Path(source.reward.fitted_in)
            source = FinishedRun(folder).recipe
        key = {"identity": identity, "fitted_in": manifest.digest(artifact)}
        return key, manifest.facts(artifact)["facts"], folder / "rewards" / f"{kind}-{slug(name)}"

    def reward_state(self, settings: Key) -> tuple[str, dict[str, Any]]:
        """The digest of the reward of that run, and what `SumReward.state` was there; `settings` must be the same."""
        known = self.run.table.manifest.entries.get("reward", {})
        if not known.get("complete"):
            raise UserError(f"{self.where}: {self.run.folder} has scored no rows: run it first")
        self._check(
            "reward", {k: v for k, v in known["key"].items() if k not in ("from", "fitted_in", "unfinished")}, settings
        )
        return self.run.table.digest("reward"), reward_state(self.run.folder)

    def known_scores(self, name: str, identity: Key) -> dict[tuple[str, str], float]:
        """(prompt, completion) -> the score that a component of the reward gave it in that run."""
        block = score_block(name)
        entry = self.run.table.manifest.entries.get(block, {})
        if not entry.get("complete") or rewritten(entry["key"]["function"]) != rewritten(as_json(identity)):
            return {}
        rows = self.run.table.open("rows", block)
        return dict(zip(zip(rows["prompt"], rows["completion"], strict=True), rows[f"reward/{name}"], strict=True))

    def _check(self, what: str, theirs: Any, ours: Any) -> None:
        if rewritten(theirs) != rewritten(as_json(ours)):
            differ = "; ".join(changes(theirs or {}, as_json(ours))[:3]) if theirs else "it has none of this name"
            raise UserError(
                f"{self.where}: {self.run.folder} has another {what} ({differ}): give both runs the same functions, or "
                "leave fitted_in out"
            )
