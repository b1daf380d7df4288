"""What it takes to get the same numbers again: recipe, versions, hardware, hashes, and what every stage took."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from leftover.config import dump_recipe
from leftover.models import read_json

_PACKAGES = (
    "leftover", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "scikit-learn",
)  # fmt: skip
_FILES_SHOWN = 40


def reproduce_view(run: Any) -> dict[str, Any]:
    """The last section of the page. Versions and hardware are those of the process that writes it."""
    return {
        "recipe": dump_recipe(run.recipe),
        "versions": [("Python", platform.python_version()), *_versions()],
        "hardware": _hardware(),
        "seed": run.recipe.seed,
        "seeds": run.recipe.seeds,
        "stages": stages(run.manifest.entries),
        "files": _files(run.folder),
    }


def stages(entries: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Name, wall time and peak memory of every stage of a manifest that noted them."""
    from leftover.plan.sources import size_text

    found = []
    for name, entry in entries.items():
        if entry.get("seconds") is None and entry.get("peak_memory") is None:
            continue
        seconds = "–" if entry.get("seconds") is None else clock(entry["seconds"])
        since = f" since step {entry['resumed_at']}" if "resumed_at" in entry else ""
        memory = "–" if entry.get("peak_memory") is None else size_text(entry["peak_memory"])
        of = {"gpu": "GPU", "process": "process", "process_lifetime": "process"}.get(entry.get("peak_memory_of", ""))
        found.append([name, seconds + since, memory + (f" ({of})" if of and memory != "–" else "")])
    return found


def clock(seconds: float) -> str:
    """`1 h 02 min`, `8 min 36 s` or `7.5 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> str:
    parts = [platform.system(), platform.machine(), f"{os.cpu_count()} CPU cores"]
    import torch

    if torch.cuda.is_available():
        parts += [f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"]
    return ", ".join(parts)


def _files(folder: Path) -> list[tuple[str, str]]:
    """(file, start of its SHA-256) of data and models that were hashed; the last parts of a path tell it."""
    path = folder / "hashes.json"
    known = read_json(path) if path.is_file() else {}
    return [("/".join(Path(name).parts[-3:]), entry[2]) for name, entry in known.items()][:_FILES_SHOWN]
