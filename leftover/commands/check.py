"""`leftover check`: is the folder of a run as it was written, and what would a rerun do again? Writes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from leftover.errors import UserError
from leftover.report.frontier import FRONTIER
from leftover.runs.finished import FinishedRun
from leftover.runs.names import PREPARED, REWARD_STATE
from leftover.store.checkpoints import faults_of_checkpoint
from leftover.store.manifest import Manifest
from leftover.store.sealed import read_sealed

_NOTES = (PREPARED, REWARD_STATE)
_RESULTS = ("results.json", "comparison.json", FRONTIER)
_FOLDERS = ("table", "reference", "policies", "evaluation", "logs", "export", "judge", "damaged", "rounds")


@dataclass
class Checked:
    """What was found in the folder of a run."""

    files: int = 0
    bytes: int = 0
    unknown: list[str] = field(default_factory=list)  # parts of earlier versions, which noted no SHA-256
    faults: list[str] = field(default_factory=list)  # a line for every damaged file
    again: list[str] = field(default_factory=list)  # what a rerun computes again, since it is damaged
    unfinished: list[str] = field(default_factory=list)  # what a rerun goes on with


def check(folder: str | Path) -> list[tuple[Path, Checked]]:
    """What is found in a run's folder, and in that of each of its rounds. UserError for a folder without a run."""
    folders = [Path(folder), *sorted(Path(folder).glob("rounds/*"))]
    return [(path, _check(FinishedRun(path))) for path in folders if path == Path(folder) or path.is_dir()]


def _check(run: FinishedRun) -> Checked:
    found = Checked()
    for manifest in (run.table.manifest, run.manifest):
        _check_manifest(manifest, found)
    for name in (*_NOTES, *_RESULTS):
        try:
            whole = read_sealed(run.folder / name) is not None
        except UserError as error:
            found.faults.append(str(error))
            continue
        found.files += whole
        if name in _NOTES and not whole and run.table.has("reward"):
            found.faults.append(f"{run.folder / name} is missing")
    found.faults += _misplaced(run.folder)
    found.faults += _faults_of_checkpoints(run.folder)
    if not found.faults:
        found.unfinished = run.unfinished()
    return found


def _misplaced(folder: Path) -> Iterator[str]:
    """Files where folders belong, and the reverse."""
    for name in _FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            yield f"{folder / name} is no folder: move it away, and run the recipe again"
    for name in ("manifest.json", "hashes.json", *_NOTES, *_RESULTS):
        if (folder / name).exists() and not (folder / name).is_file():
            yield f"{folder / name} is no file: move it away, and run the recipe again"


def _check_manifest(manifest: Manifest, found: Checked) -> None:
    for name, entry in manifest.entries.items():
        files = entry.get("files")
        if files is None and entry["complete"] and name != "models":
            found.unknown.append(manifest.label + name)
        if damaged := manifest.faults(name):
            found.faults += [f"{manifest.folder / path} {what}" for path, what in damaged.items()]
            found.again.append(manifest.label + name)
        logs = manifest.faults(name, "logs")
        found.faults += [f"{manifest.folder / path} {what}; it is a log, and stays so" for path, what in logs.items()]
        whole = [manifest.folder / path for path in files or {} if path not in damaged]
        found.files, found.bytes = found.files + len(whole), found.bytes + sum(path.stat().st_size for path in whole)


def _faults_of_checkpoints(folder: Path) -> Iterator[str]:
    """Of trainings that are not finished; one goes on from the newest whole checkpoint."""
    for checkpoint in sorted(folder.glob("**/checkpoints/checkpoint-*")):
        yield from (f"{checkpoint}: {fault}" for fault in faults_of_checkpoint(checkpoint))


def lines(folder: Path, found: Checked) -> Iterator[str]:
    """What the command prints of a folder."""
    yield f"{folder}: {found.files:,} files are as they were written ({found.bytes / 2**20:,.1f} MiB)."
    yield from found.faults
    if found.unknown:
        yield f"Written by an earlier version, which noted no SHA-256: {', '.join(found.unknown)}."
    if found.again:
        yield f"A rerun would set aside what is damaged and compute again: {', '.join(found.again)}."
    if "reference" in found.again:
        yield "If the reference comes out otherwise, also what was computed from it."
    if found.unfinished:
        yield f"Not finished: {', '.join(found.unfinished)}."
    if not (found.faults or found.unfinished):
        yield "A rerun would compute nothing again."
