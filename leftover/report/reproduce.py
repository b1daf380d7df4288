"""The last section of the page: what to run again, on what it ran, and what every stage took."""

from pathlib import Path
from typing import Any

from leftover.recipe.files import dump_recipe
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import Manifest, read_json

NOT_RECORDED = "not recorded"
_FILES_SHOWN = 40


def reproduce_view(run: FinishedRun) -> dict[str, Any]:
    """The last section of the page, from what the stages wrote down while they ran."""
    entries = all_entries(run.table.manifest, run.manifest)
    files, more = _files(run.folder)
    return {
        "recipe": dump_recipe(run.recipe),
        "machines": machines(entries),
        "seed": run.recipe.seed,
        "seeds": run.recipe.seeds,
        "stages": stages(entries),
        "files": files,
        "more_files": more,
    }


def all_entries(table_manifest: Manifest, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Entries of both manifests in the order of the stages: columns of the table, models, evaluations."""
    table = {f"column {name}": entry for name, entry in table_manifest.entries.items()}
    rest = manifest.entries

    def place(name: str) -> int:
        if name in table:
            return 0 if name.removeprefix("column ").startswith(_BEFORE_MODELS) else 2
        return 4 if name.startswith("evaluation of ") else 3 if name.startswith("policy ") else 1

    return dict(sorted((table | rest).items(), key=lambda item: place(item[0])))


_BEFORE_MODELS = ("rows", "split", "tokens", "score-", "reward")


def stages(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Header and cells: wall time and peak memory of every stage of manifests, and `not recorded` where that is so."""
    from leftover.monitoring.terminal import size_text

    costs = {name: _cost(entry) for name, entry in entries.items() if entry.get("complete", True)}
    on_gpu = any("peak_gpu_memory" in cost for cost in costs.values())
    keys = ["peak_memory", *(["peak_gpu_memory"] if on_gpu else [])]
    cells = [
        [name, _time(cost), *(NOT_RECORDED if cost.get(key) is None else size_text(cost[key]) for key in keys)]
        for name, cost in costs.items()
    ]
    known = [cost["seconds"] for cost in costs.values() if cost.get("seconds") is not None]
    if len(known) > 1:
        cells.append(["all that is recorded", clock(sum(known)), *(_most(costs, key, size_text) for key in keys)])
    return {"header": ["stage", "wall time", "peak memory", *(["peak GPU memory"] if on_gpu else [])], "cells": cells}


def _cost(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an entry; one from before costs were recorded may tell of its training alone."""
    if entry.get("cost"):
        return entry["cost"]
    memory = {"gpu": "peak_gpu_memory"}.get(entry.get("peak_memory_of", ""), "peak_memory")
    return {"seconds": entry.get("seconds"), memory: entry.get("peak_memory"), "since": entry.get("resumed_at")}


def _time(cost: dict[str, Any]) -> str:
    if cost.get("seconds") is None:
        return NOT_RECORDED
    sessions = f" in {cost['sessions']} sessions" if cost.get("sessions", 1) > 1 else ""
    return clock(cost["seconds"]) + sessions + (f" since step {cost['since']}" if cost.get("since") else "")


def _most(costs: dict[str, dict[str, Any]], key: str, text: Any) -> str:
    found = [cost[key] for cost in costs.values() if cost.get(key) is not None]
    return text(max(found)) if found else NOT_RECORDED


def machines(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every kind of machine and set of versions that stages ran with: `hardware`, `versions` and their `stages`."""
    found: list[dict[str, Any]] = []
    for name, entry in entries.items():
        for one in (entry.get("cost") or {}).get("machines", []):
            said = {"hardware": _hardware(one), "versions": _versions(one)}
            known = next((m for m in found if {k: m[k] for k in said} == said), None)
            if known is None:
                known = said | {"stages": []}
                found.append(known)
            known["stages"].append(name)
    return found


def _hardware(one: dict[str, Any]) -> str:
    from leftover.monitoring.terminal import size_text

    gpus = {name: one["gpus"].count(name) for name in one["gpus"]}
    parts = [one["system"], one["processor"], f"{one['cores']} core{'s' * (one['cores'] != 1)}"]
    parts += [f"{size_text(one['memory'])} of memory"] if "memory" in one else []
    return ", ".join(part for part in [*parts, *(f"{count} x {name}" for name, count in gpus.items())] if part)


def _versions(one: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in ({"Python": one["python"]} | one["packages"]).items())


def clock(seconds: float) -> str:
    """`1 h 02 min`, `8 min 36 s` or `7.5 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _files(folder: Path) -> tuple[list[tuple[str, str]], int]:
    """(file, start of its SHA-256) of data and models that were hashed, and how many more hashes.json has.

    The last parts of a path tell the file.
    """
    path = folder / "hashes.json"
    known = read_json(path) if path.is_file() else {}
    files = [("/".join(Path(name).parts[-3:]), entry[2]) for name, entry in known.items()]
    return files[:_FILES_SHOWN], max(0, len(files) - _FILES_SHOWN)
