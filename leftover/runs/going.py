"""Whether a run is being written at the moment, and where it is; by its files alone, which are only read."""

import json
from typing import Any

from leftover.recipe.lol_config import LoLConfig
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_artifact, policy_folder
from leftover.store.folders import is_held
from leftover.store.spoken import spoken, whether_told

_TAIL_BYTES = 1 << 16  # of a log: its last line is in them


def at_work(run: FinishedRun) -> str | None:
    """`step 40 of 200, policy a_lol_seq, seed 0`, or what else is being made; None if no process writes the folder."""
    if not is_held(run.folder):
        return None
    begun = [
        manifest.label + name
        for manifest in (run.table.manifest, run.manifest)
        for name, entry in manifest.entries.items()
        if not entry["complete"] and whether_told(manifest.label + name)
    ]
    told = [_training(run, name) or _lowered(spoken(name).noun) for name in begun]
    return "; ".join(told) or "between two stages"


def _lowered(noun: str) -> str:
    return noun[:1].lower() + noun[1:]


def _training(run: FinishedRun, artifact: str) -> str | None:
    """Where a training is by the last line of its log; None of anything else, and before the first line."""
    recipe = run.recipe
    trained = {"reference": (run.folder / "reference", recipe.reference.train)}
    for policy, fields in recipe.policies.items():
        for seed in recipe.seeds:
            folder = policy_folder(run.folder, policy, seed)
            trained[policy_artifact(policy, seed)] = folder, recipe.train | fields
    if artifact not in trained:
        return None
    folder, fields = trained[artifact]
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            # The last line may be half written.
            line = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return f"step {line['step']}{_of(line, fields)}, {_lowered(spoken(artifact).noun)}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(line: dict[str, Any], fields: dict[str, Any]) -> str:
    """` of 200`, by the settings or by how far the epochs are; nothing where neither tells."""
    most = fields.get("max_steps") or 0
    if most <= 0 and line.get("epoch"):
        most = round(line["step"] / line["epoch"] * fields.get("num_train_epochs", LoLConfig.num_train_epochs))
    return f" of {most}" if most > 0 else ""
