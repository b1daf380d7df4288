"""Folders that commands write into: the lock of one writer, what may be removed, modes, refusals."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leftover.errors import UserError
from leftover.store.files import write_text
from leftover.store.folders import (
    LOCK,
    check_output,
    check_page,
    give_back,
    hold,
    make_folder,
    readable_weights,
    refuse_links,
    regular,
    remove,
)

_HOLDER = """
import sys, time
from pathlib import Path
from leftover.store.folders import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process_holds(target: Path, **environment: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", _HOLDER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["", "rows.jsonl"])
def test_a_second_writer_is_told_who_writes_and_a_killed_one_blocks_nobody(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    with another_process_holds(target) as other:
        with pytest.raises(UserError) as refused:
            hold(target)
        assert all(said in str(refused.value) for said in (str(target), str(other.pid), os.uname().nodename))
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        lock = hold(target)
    give_back(lock)
    assert not list(tmp_path.iterdir()), "no lock is left behind"


def test_one_process_may_hold_a_folder_twice(tmp_path: Path) -> None:
    first, second = hold(tmp_path), hold(tmp_path / "../" / tmp_path.name)
    give_back(first)
    assert (tmp_path / LOCK).is_file()
    give_back(second)
    assert not (tmp_path / LOCK).exists()


def test_the_ranks_of_one_launch_share_a_folder_and_those_of_another_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "a"}
    for name, value in (ours | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("leftover.store.folders._LAUNCH_SECONDS", 0.0)
    with another_process_holds(tmp_path, **ours, RANK="0"):
        assert hold(tmp_path) is None
        give_back(None)
    with another_process_holds(tmp_path, **ours | {"MASTER_PORT": "2"}, RANK="0"):
        with pytest.raises(UserError, match="is being written by process"):
            hold(tmp_path)
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="is being written by process"):
            hold(tmp_path)


def test_nothing_is_removed_outside_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inside", outside):
        folder.mkdir(parents=True)
        (folder / "work.txt").write_text("years")
    (root / "link").symlink_to(outside)
    for folder in (root / "link", root / "../outside", outside, root, tmp_path):
        with pytest.raises(UserError, match="lies outside"):
            remove(folder, root)
    assert (outside / "work.txt").is_file()
    remove(root / "inside", root)
    remove(root / "inside", root)  # gone already
    assert not (root / "inside").exists()


def test_weights_have_the_mode_of_new_files(tmp_path: Path) -> None:
    weights = tmp_path / "model/adapter.safetensors"
    weights.parent.mkdir()
    for umask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        weights.touch(0o600)
        before = os.umask(umask)
        try:
            readable_weights(weights.parent)
            assert os.umask(umask) == umask, "it stays as it is"
        finally:
            os.umask(before)
        assert weights.stat().st_mode & 0o777 == mode


def test_a_folder_that_cannot_be_made_is_refused_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    for folder in (tmp_path / "afile", tmp_path / "afile/x", Path("/proc/x"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"^output_dir .*cannot be made .*: name one"):
            make_folder(folder, "output_dir")
    assert make_folder(tmp_path / "a/b", "output_dir") == [tmp_path / "a", tmp_path / "a/b"]
    assert make_folder(tmp_path / "a/b", "output_dir") == []


def test_a_file_takes_the_place_of_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_device").symlink_to("/dev/null")
    (tmp_path / "afile").write_text("x")
    refused = ("fifo", "folder", "to_device", "/dev/null")
    for name in refused:
        for check in (regular, check_output, lambda path: write_text(path, "text")):
            with pytest.raises(UserError, match="name a file"):
                check(tmp_path / name)
    with pytest.raises(UserError, match=r"--output.*cannot be written"):
        check_output(tmp_path / "afile/page.html")
    check_output(tmp_path / "new/page.html")
    assert not (tmp_path / "new").exists() and (tmp_path / "afile").read_text() == "x", "nothing is left behind"
    assert (tmp_path / "fifo").is_fifo() and Path("/dev/null").is_char_device()


def test_a_link_to_a_file_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    for name in ("afile", "new"):
        link = tmp_path / f"to_{name}"
        link.symlink_to(tmp_path / name)
        check_output(link)
        write_text(link, "text")
        assert link.is_symlink() and (tmp_path / name).read_text() == "text"


def test_links_out_of_a_folder_are_refused_and_those_inside_are_not(tmp_path: Path) -> None:
    (tmp_path / "run/evaluation").mkdir(parents=True)
    (tmp_path / "precious.txt").write_text("years")
    (tmp_path / "run/page").symlink_to(tmp_path / "run/evaluation")
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    refuse_links(tmp_path / "linked")
    for link, target in (("report.html", "precious.txt"), ("evaluation/x", "."), ("evaluation/y", "not there")):
        (tmp_path / "run" / link).symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"{link} is a link that leads out of the run's folder"):
            refuse_links(tmp_path / "run")
        (tmp_path / "run" / link).unlink()


def test_a_page_takes_the_place_of_pages_alone(tmp_path: Path) -> None:
    for name, text in (("page.html", "\n<!DOCTYPE html><p>"), ("empty.html", "")):
        (tmp_path / name).write_text(text)
        check_page(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(UserError, match=r"--output .*rows\.jsonl is there, and is no page"):
        check_page(tmp_path / "rows.jsonl")
