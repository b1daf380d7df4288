"""Whether files are still as they were written: JSON with a checksum and a copy, the SHA-256 of all others."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.monitoring.finite import json_line
from leftover.monitoring.ranks import is_main_process
from leftover.store.files import read_json, write_text

log = logging.getLogger(__name__)

CHECKSUM = "checksum"  # the last key of a sealed file; earlier versions wrote none
DAMAGED = "damaged"  # the folder, and the end of the name, of files that are set aside
_seen: dict[str, tuple[tuple[int, int, int], str]] = {}  # path -> size, time and inode, and the hash they had then


def digest(key: Any) -> str:
    """A short hash of anything that JSON can hold, whatever the order of dictionary keys."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def copy_of(path: Path) -> Path:
    """Where the copy of a sealed file stands: manifest.json has manifest.copy.json."""
    return path.with_suffix(f".copy{path.suffix}")


def write_sealed(path: Path, content: Mapping[str, Any], *, copied: bool = True) -> None:
    """Write a dictionary as JSON with its checksum, and once more as a copy, each as `write_text` does."""
    as_read = json.loads(json_line(dict(content), default=str))
    text = json.dumps(as_read | {CHECKSUM: digest(as_read)}, indent=2, ensure_ascii=False)
    for target in (path, copy_of(path)) if copied else (path,):
        write_text(target, text)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, from the copy if the file itself is damaged or gone; None if there is neither.

    Raises UserError if no whole one is left.
    """
    faults = []
    for candidate in (path, copy_of(path)):
        if not candidate.is_file():
            continue
        try:
            content = _opened(candidate, path)
        except UserError as error:
            faults.append(str(error))
            continue
        if candidate != path:
            log.warning("%s: its copy %s is read", faults[0] if faults else f"{path} is missing", candidate.name)
        content.pop(CHECKSUM, None)
        return content
    if faults:
        raise UserError(
            f"{'; '.join(faults)}: put back a whole one, or remove both to have made anew what they tell of"
        )
    return None


def _opened(candidate: Path, path: Path) -> dict[str, Any]:
    """The content of a sealed file or of its copy, with the checksum. UserError if it is damaged."""
    content = read_json(candidate)
    if not isinstance(content, dict):
        raise UserError(f"{candidate} is damaged (it holds no mapping)")
    of_before = CHECKSUM not in content and not copy_of(path).is_file()  # earlier versions wrote neither
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if not of_before and content.get(CHECKSUM) != digest(rest):
        raise UserError(f"{candidate} is damaged (its checksum is of another content)")
    return content


def mend_sealed(path: Path) -> None:
    """Make a sealed file and its copy whole again, from the one that is. The damaged one is set aside."""
    if not is_main_process() or not copy_of(path).is_file():
        return
    content, damaged = None, list[Path]()
    for candidate in (path, copy_of(path)):
        try:
            found = _opened(candidate, path)
            content = found if content is None else content
        except (UserError, OSError):
            damaged.append(candidate)
    if content is not None and damaged:
        log.warning("%s is made anew from the other of two", ", ".join(map(str, damaged)))
        set_aside(path.parent, [candidate.name for candidate in damaged])
        write_sealed(path, {name: value for name, value in content.items() if name != CHECKSUM})


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; of a file of the same size, time and inode it is known in this process."""
    stat = path.stat()
    now = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    known = _seen.get(str(path))
    if known is None or known[0] != now:
        with path.open("rb") as file:
            known = _seen[str(path)] = (now, hashlib.file_digest(file, "sha256").hexdigest())
    return known[1]


def sums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Path within `folder` -> SHA-256, of these files and of all files in these folders."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file()]
    with ThreadPoolExecutor() as pool:
        return dict(zip([str(file.relative_to(folder)) for file in files], pool.map(sha256, files), strict=True))


def faults(folder: Path, written: Mapping[str, str]) -> dict[str, str]:
    """Path -> what is wrong with it, of the files that had these sums when they were written."""

    def fault(item: tuple[str, str]) -> str:
        path = folder / item[0]
        if Path(item[0]).is_absolute() or ".." in Path(item[0]).parts:
            raise UserError(f"{folder}: its manifest names a file that is not in it, {item[0]}: do not use this folder")
        if not path.is_file():
            return "is missing"
        return "" if sha256(path) == item[1] else "is damaged (its SHA-256 is not that of what was written)"

    with ThreadPoolExecutor() as pool:
        found = zip(written, pool.map(fault, written.items()), strict=True)
        return {path: wrong for path, wrong in found if wrong}


def set_aside(folder: Path, paths: Iterable[str]) -> None:
    """Move damaged files to the folder `damaged` beside what they belonged to; a later one takes an earlier's place."""
    for path in paths:
        if (folder / path).is_file():
            if folder.resolve() not in (folder / path).resolve().parents:
                raise UserError(f"{folder / path} lies outside {folder} (through a link?): remove the link")
            target = folder / DAMAGED / f"{path}.{DAMAGED}"
            if folder.resolve() not in target.resolve().parents:
                raise UserError(f"{folder / DAMAGED} leads outside {folder} (through a link?): remove the link")
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / path).replace(target)
            log.warning("%s is set aside as %s", folder / path, target)
