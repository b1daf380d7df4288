"""Keys and states: what is reused, resumed or stale, and what the reason says."""

import json
import logging
import os
from pathlib import Path

import pytest

from leftover.store.files import write_json
from leftover.store.manifest import FileHashes, Manifest, changes, file_hash
from leftover.store.sealed import digest

KEY = {"from": {"rows": "aaaa", "split": "bbbb"}, "seed": 0, "settings": {"folds": 5, "bounds": [0.0, 1.0]}}


def key_with(**changed):
    return KEY | changed


def begun(folder, key=KEY, *, finish=True, **facts):
    """A manifest, read again from disk, in which `value` was begun and perhaps finished."""
    manifest = Manifest(folder)
    manifest.begin("value", key)
    if finish:
        manifest.finish("value", **facts)
    return Manifest(folder)


def test_what_was_never_begun_is_new(tmp_path):
    status = Manifest(tmp_path).status("value", KEY)
    assert status.action == "new" and not status.finished and status.discard


def test_what_was_finished_under_the_key_is_reused(tmp_path):
    status = begun(tmp_path).status("value", KEY)
    assert status.action == "reused" and status.finished and not status.discard
    assert status.reason == "nothing it depends on has changed"


def test_what_was_begun_under_the_key_is_resumed(tmp_path):
    status = begun(tmp_path, finish=False).status("value", KEY)
    assert status.action == "resumed" and not status.finished and not status.discard


@pytest.mark.parametrize("finish", [True, False])
def test_what_was_begun_under_another_key_is_stale(tmp_path, finish):
    status = begun(tmp_path, finish=finish).status("value", key_with(seed=1))
    assert status.action == "stale" and status.discard and not status.finished


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"settings": {"folds": 5, "bounds": None}}, "settings.bounds: [0.0, 1.0] -> None"),
        ({"settings": {"folds": 9, "bounds": [0.0, 1.0]}, "seed": 2}, "seed: 0 -> 2, settings.folds: 5 -> 9"),
        ({"from": {"rows": "cccc", "split": "bbbb"}}, "rows"),
        ({"from": {"rows": "cccc", "split": "dddd"}}, "rows, split"),
        ({"targets": "recorded"}, "targets: new"),
    ],
)
def test_the_reason_names_what_changed(tmp_path, changed, reason):
    # Of an input only the name: its digest says nothing to a reader.
    assert begun(tmp_path).status("value", key_with(**changed)).reason == reason


def test_a_key_that_gains_a_none_is_stale_and_has_a_reason(tmp_path):
    status = begun(tmp_path).status("value", key_with(extra=None))
    assert status.action == "stale" and status.reason


def test_reading_a_status_changes_nothing(tmp_path):
    begun(tmp_path).status("value", key_with(seed=1))
    assert Manifest(tmp_path).status("value", KEY).action == "reused"


def test_beginning_under_another_key_forgets_the_old_state_and_facts(tmp_path):
    manifest = begun(tmp_path, rows=3)
    assert manifest.begin("value", key_with(seed=1)).action == "stale"
    again = Manifest(tmp_path)
    assert again.status("value", key_with(seed=1)).action == "resumed"
    assert again.status("value", KEY).action == "stale"
    assert again.facts("value") == {} and not again.is_complete("value")


def test_beginning_what_is_finished_leaves_it_finished(tmp_path):
    manifest = begun(tmp_path, rows=3)
    assert manifest.begin("value", KEY).finished
    assert Manifest(tmp_path).is_complete("value") and Manifest(tmp_path).facts("value") == {"rows": 3}


def test_the_log_says_what_is_stale_and_why(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "leftover.store.manifest"):
        begun(tmp_path).begin("value", key_with(seed=1))
    assert "Value: made again, since something changed (seed: 0 -> 1)" in caplog.text


def test_artifacts_of_one_folder_do_not_touch_each_other(tmp_path):
    manifest = begun(tmp_path)
    manifest.begin("other", {"seed": 5})
    assert Manifest(tmp_path).status("value", KEY).action == "reused"
    assert Manifest(tmp_path).status("other", {"seed": 5}).action == "resumed"


@pytest.mark.parametrize("value", [(0.0, 1.0), {1: 2}], ids=["tuple", "integer keys"])
def test_a_key_is_the_same_after_it_was_written_and_read(tmp_path, value):
    # `value.bounds` of a recipe is a tuple.
    key = key_with(settings={"bounds": value})
    assert begun(tmp_path, key).status("value", key).action == "reused"


def test_facts_are_what_was_recorded_at_the_end(tmp_path):
    manifest = begun(tmp_path, rows=3, note="n")
    assert manifest.facts("value") == {"rows": 3, "note": "n"}
    assert manifest.facts("unknown") == {} and not manifest.is_complete("unknown")


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"}, {"a": None}, {}])
def test_the_digest_depends_on_names_values_and_types(other):
    assert digest({"a": 1}) != digest(other)


def test_the_digest_of_an_artifact_is_that_of_its_key(tmp_path):
    assert begun(tmp_path, rows=3).digest("value") == digest(KEY)


def test_changes_lists_every_leaf_and_only_those():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2]}, {"a": 1, "b": {"c": 9}, "e": [1, 3], "f": 4}
    assert changes(old, new) == ["b.c: 2 -> 9", "b.d: gone", "e: [1, 2] -> [1, 3]", "f: new"]
    assert changes(old, old) == []


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "value.json"
    write_json(path, {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_file_hash_follows_the_content(tmp_path):
    file, hashes = tmp_path / "rows.jsonl", FileHashes(tmp_path / "run")
    file.write_text("one")
    first = hashes.of(file)
    file.write_text("other")
    second = hashes.of(file)
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    assert first != second and hashes.of(file) == first


def test_a_file_of_the_same_length_and_a_later_time_is_hashed_again(tmp_path):
    file, hashes = tmp_path / "rows.jsonl", FileHashes(tmp_path / "run")
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    first = hashes.of(file)
    file.write_text("two")
    os.utime(file, ns=(2, 2))
    assert hashes.of(file) != first


def test_an_untouched_file_is_not_read_again(tmp_path, monkeypatch):
    import hashlib

    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    first = FileHashes(tmp_path / "run").of(file)

    def read_again(*_):
        raise AssertionError("the file was read again")

    monkeypatch.setattr(hashlib, "file_digest", read_again)
    assert FileHashes(tmp_path / "run").of(file) == first


def test_the_hash_of_a_folder_follows_names_and_contents(tmp_path):
    hashes, folder = FileHashes(tmp_path / "run"), tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("one")
    first = hashes.of(folder)
    assert hashes.of(folder) == first
    (folder / "sub" / "a.txt").rename(folder / "sub" / "b.txt")
    renamed = hashes.of(folder)
    (folder / "c.txt").write_text("")
    assert len({first, renamed, hashes.of(folder)}) == 3


@pytest.mark.parametrize("content", ["[]", "3", '{"a":', '{"%s": 3}', '{"%s": [1, 2]}', "changed"])
def test_damaged_hashes_are_computed_anew(content: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("a")
    kept = tmp_path / "hashes.json"
    known = FileHashes(tmp_path).of(data)
    changed = kept.read_text().replace(known, "0" * len(known))
    kept.write_text(changed if content == "changed" else content.replace("%s", str(data)))
    assert FileHashes(tmp_path).of(data) == known == file_hash(data)
    assert FileHashes(tmp_path).known.keys() == {str(data)}
