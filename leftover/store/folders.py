"""Folders that commands write into: one writer at a time, nothing removed outside them, files that others may read."""

import errno
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from leftover.errors import UserError
from leftover.monitoring.ranks import is_main_process

LOCK = "writer.lock"
# Errors for which the command line has its own words.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LAUNCH_SECONDS = 120.0  # within which rank 0 of a launch has taken the lock


def hold(target: Path) -> FileLock | None:
    """Take the lock of a folder that exists, or of a file, for this process alone.

    `give_back` or the end of the process releases it.

    The ranks of one launch share a folder: rank 0 holds it, the others wait until it does and get None. Raises
    UserError, at once, if another process holds it. The system releases the lock of a process that was killed.
    """
    path = target.resolve() / LOCK if target.is_dir() else target.resolve().with_name(f"{target.name}.lock")
    if not is_main_process():
        _wait_for_main_process(target, path)
        return None
    lock = FileLock(path, thread_local=False, is_singleton=True)  # in one process the holder may take it again
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise _refusal(target, _holder(path)) from None
    try:
        path.write_text(json.dumps(_ourselves()), encoding="utf-8")
    except OSError:
        lock.release()
        raise
    return lock


def give_back(lock: FileLock | None) -> None:
    """Release what `hold` returned; the last time, its file goes too, unless ranks of a launch may still read it."""
    if lock is None:
        return
    if lock.lock_counter == 1 and not _launch():
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


@contextmanager
def held(target: Path) -> Iterator[None]:
    """`hold`, given back at the end, also by an error."""
    lock = hold(target)
    try:
        yield
    finally:
        give_back(lock)


def is_held(folder: Path) -> bool:
    """Whether a process writes into a folder now, by what its lock says: nothing is written, nor locked, to find out.

    Of a process on another machine that was killed this is not known: it is taken to be there.
    """
    holder = _holder(folder.resolve() / LOCK)
    process = holder.get("process")
    if not isinstance(process, int) or process <= 0:
        return False
    if holder.get("host") != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # asks whether it is there
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _ourselves() -> dict[str, str | int]:
    """What the holder writes into the lock."""
    return {"process": os.getpid(), "host": socket.gethostname(), "launch": _launch()}


def _launch() -> str:
    """The same for all ranks of one launch by torchrun or accelerate, and empty without one."""
    return " ".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")).strip()


def _holder(path: Path) -> dict[str, str | int]:
    """What the last holder wrote; it may not have come to it yet."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # such as `null`
        return {}


def _refusal(target: Path, holder: dict[str, str | int]) -> UserError:
    who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}"
    return UserError(f"{target} is being written by {who}: wait until it is done, stop it, or name another")


def _wait_for_main_process(target: Path, path: Path) -> None:
    """Until rank 0 of this launch holds the lock. What an earlier launch left in it says nothing."""
    end = time.monotonic() + _LAUNCH_SECONDS
    while (holder := _holder(path)).get("launch") != _launch():
        if time.monotonic() > end:
            raise _refusal(target, holder)
        time.sleep(0.1)


def remove(folder: Path, root: Path) -> None:
    """Remove a folder with all that is in it, by the first of several processes.

    Raises UserError, and removes nothing, if it lies outside `root`.
    """
    if root.resolve() not in folder.resolve().parents:
        raise UserError(f"{folder} lies outside the run's folder {root} (through a link?): remove the link")
    if is_main_process():
        shutil.rmtree(folder, ignore_errors=True)


def readable_weights(folder: Path) -> None:
    """Give saved weights the mode of any new file: safetensors writes them for their owner alone."""
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o666 & ~umask)


def make_folder(folder: Path, key: str) -> list[Path]:
    """Make a folder that files can be written into; returns those that were missing, the outermost first.

    Raises UserError, which begins with `key`, the setting or option that names the folder.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # what may be made there, only the system knows
            pass
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            raise
        raise UserError(f"{key} {folder} cannot be made or written ({error.strerror}): name one of your own") from error
    return made


def regular(path: Path) -> Path:
    """The path that a file can be written to, which a link leads to. UserError for a folder, a device or a pipe."""
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is {'a folder' if target.is_dir() else 'no regular file'}: name a file")
    return target


def refuse_links(folder: Path) -> None:
    """Raises UserError if a link in the folder leads outside: whoever writes through it would change other files."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and root not in path.resolve().parents:
                raise UserError(
                    f"{path} is a link that leads out of the run's folder: put what it leads to in its place"
                )


def check_page(path: Path, option: str = "--output") -> None:
    """`check_output` for a page, which takes the place of a page or an empty file, and of nothing else."""
    check_output(path, option)
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(200).lstrip().lower()
        if beginning and not beginning.startswith(b"<!doctype html"):
            raise UserError(f"{option} {path} is there, and is no page: name another file")


def check_output(path: Path, option: str = "--output") -> None:
    """Refuse, before anything is computed for it, a path that no file can be written to. Nothing is left there."""
    try:
        target = regular(path)
        nearest = next(folder for folder in target.resolve().parents if folder.exists())
        with target.open("ab") if target.exists() else tempfile.TemporaryFile(dir=nearest):
            pass
    except UserError as error:
        raise UserError(f"{option} {error}") from error
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error.strerror}): name another file") from error
