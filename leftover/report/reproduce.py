"""The last section of the page: how to run it again, the machines it ran on, and the cost of every stage."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leftover.evaluation.tables import Grid
from leftover.monitoring.terminal import clock, size_text
from leftover.recipe.files import dump_recipe
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import FileHashes, Manifest

Entry = Mapping[str, Any]  # of a manifest, or the cost in it

NOT_RECORDED = "not recorded"
_BEFORE_MODELS = ("rows", "split", "tokens", "score-", "reward")
_FILES_SHOWN = 40


def reproduce_view(run: FinishedRun) -> dict[str, Any]:
    """The last section of the page, from what the stages recorded while they ran."""
    entries = all_entries(run.table.manifest, run.manifest)
    hashes = FileHashes(run.folder).known
    # The last parts of a path identify the file.
    files = [["/".join(Path(name).parts[-3:]), entry[2]] for name, entry in hashes.items()]
    return {
        "recipe": dump_recipe(run.recipe),
        "machines": machines(entries),
        "seed": run.recipe.seed,
        "seeds": run.recipe.seeds,
        "stages": stages(entries),
        "files": Grid(["file", "SHA-256 (start)"], files[:_FILES_SHOWN]),
        "more_files": max(0, len(files) - _FILES_SHOWN),
    }


def all_entries(table_manifest: Manifest, manifest: Manifest) -> dict[str, Entry]:
    """Entries of both manifests in the order of the stages: columns of the table, models, evaluations."""
    table = {f"column {name}": entry for name, entry in table_manifest.entries.items()}

    def place(name: str) -> int:
        if name in table:
            return 0 if name.removeprefix("column ").startswith(_BEFORE_MODELS) else 2
        return 4 if name.startswith(("evaluation of ", "checkpoints of ")) else 3 if name.startswith("policy ") else 1

    entries = table | manifest.entries
    return {name: entries[name] for name in sorted(entries, key=place)}


def stages(entries: Mapping[str, Entry]) -> Grid:
    """Wall time and peak memory of every stage, or `not recorded`."""
    costs = {name: _cost(entry) for name, entry in entries.items() if entry.get("complete", True)}
    memory = {"peak_memory": "peak memory"}
    if any("peak_gpu_memory" in cost for cost in costs.values()):
        memory["peak_gpu_memory"] = "peak GPU memory"
    cells = [[name, _time(cost), *(_size(cost.get(key)) for key in memory)] for name, cost in costs.items()]
    seconds = [cost["seconds"] for cost in costs.values() if cost.get("seconds") is not None]
    if len(seconds) > 1:
        peaks = [max(cost.get(key) or 0 for cost in costs.values()) for key in memory]
        cells.append(["all that is recorded", clock(sum(seconds)), *map(_size, peaks)])
    return Grid(["stage", "wall time", *memory.values()], cells)


def _size(size: float | None) -> str:
    return size_text(size) if size else NOT_RECORDED


def _cost(entry: Entry) -> Entry:
    """The cost of a stage; an entry from before costs were recorded may hold only that of its training."""
    if entry.get("cost"):
        return entry["cost"]
    memory = "peak_gpu_memory" if entry.get("peak_memory_of") == "gpu" else "peak_memory"
    return {"seconds": entry.get("seconds"), memory: entry.get("peak_memory"), "since": entry.get("resumed_at")}


def _time(cost: Entry) -> str:
    if cost.get("seconds") is None:
        return NOT_RECORDED
    sessions = f" in {cost['sessions']} sessions" if cost.get("sessions", 1) > 1 else ""
    return clock(cost["seconds"]) + sessions + (f" since step {cost['since']}" if cost.get("since") else "")


def machines(entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Every machine and set of versions that stages ran with, each with its `stages`."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, entry in entries.items():
        for machine in (entry.get("cost") or {}).get("machines", []):
            packages = [f"{package} {version}" for package, version in machine["packages"].items()]
            versions = ", ".join([f"Python {machine['python']}", *packages])
            found.setdefault((_hardware(machine), versions), []).append(name)
    return [{"hardware": kind[0], "versions": kind[1], "stages": names} for kind, names in found.items()]


def _hardware(machine: Entry) -> str:
    parts = [machine["system"], machine["processor"], f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"]
    parts += [f"{size_text(machine['memory'])} of memory"] if "memory" in machine else []
    parts += [f"{count} x {name}" for name, count in Counter(map(str, machine["gpus"])).items()]
    return ", ".join(part for part in parts if part)
