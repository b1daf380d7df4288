"""A file that is not as it was written is named, set aside and made again, and nothing else is; never used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover import cli, pipeline
from leftover.errors import UserError
from leftover.recipe.files import dump_recipe, dump_saved, make_recipe, without_sum
from leftover.runs.claim import open_run
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import Manifest
from leftover.store.sealed import copy_of, read_sealed, write_sealed

POLICY = "policies/a_lol_seq/seed-0/model.safetensors"


def flip(path: Path) -> None:
    """Change some bytes, not the size."""
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 5
    content[middle : middle + 8] = bytes(byte ^ 0x15 for byte in content[middle : middle + 8])
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: list[Callable[[Path], None]] = [flip, cut, Path.unlink]


def run_again(recipe: dict[str, Any], caplog: Any) -> list[str]:
    """What a rerun has computed, by the names in the log."""
    caplog.clear()
    with caplog.at_level("DEBUG", "leftover"):
        pipeline.run(make_recipe(recipe))
    return [record.artifact for record in caplog.records if getattr(record, "state", "") == "done"]


def contents(folder: Path) -> dict[str, bytes]:
    """What is computed from, not when."""
    kept = (".arrow", ".safetensors")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in kept and "damaged" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("path", "again"),
    [
        ("table/rows/00000.arrow", ["table/rows"]),
        ("table/split/00000.arrow", ["table/split"]),
        ("table/tokens/00000.arrow", ["table/tokens"]),
        ("table/reward/00000.arrow", ["table/reward"]),
        ("table/reference/00000.arrow", ["table/reference"]),
        ("table/value/00000.arrow", ["table/value"]),
        ("reference/model.safetensors", ["reference"]),
        (POLICY, ["policy a_lol_seq, seed 0"]),
        ("policies/a_lol_seq/seed-0/config.json", ["policy a_lol_seq, seed 0"]),
        ("evaluation/a_lol_seq-seed-0.jsonl", ["evaluation of a_lol_seq-seed-0"]),
        ("evaluation/reference.json", ["evaluation of reference"]),
    ],
)
def test_a_damaged_part_and_no_other_is_made_again(
    path: str, again: list[str], damage: Callable, tmp_path: Path, tiny_run: Callable, caplog: Any
) -> None:
    recipe, folder = tiny_run(tmp_path), tmp_path / "run"
    before = contents(folder)
    damage(folder / path)
    assert run_again(recipe, caplog) == again
    assert (
        str(folder / path) in caplog.text and ("is missing" if damage is Path.unlink else "is damaged") in caplog.text
    )
    assert contents(folder) == before
    kept = list(folder.rglob("*.damaged"))
    assert len(kept) == (damage is not Path.unlink), "what was there is kept"


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_damaged_log_is_told_and_no_policy_is_trained_for_it(
    name: str, tmp_path: Path, tiny_run: Callable, caplog: Any
) -> None:
    recipe, path = tiny_run(tmp_path), tmp_path / "run" / POLICY
    flip(path.with_name(name))
    assert run_again(recipe, caplog) == []
    assert f"{path.with_name(name)} is damaged" in caplog.text and "is not made again for a log" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["manifest.json", "table/manifest.json", "prepare.json"])
def test_of_a_damaged_manifest_the_copy_is_read(
    name: str, damage: Callable, tmp_path: Path, tiny_run: Callable, caplog: Any
) -> None:
    recipe, folder = tiny_run(tmp_path), tmp_path / "run"
    before = read_sealed(folder / name)
    damage(folder / name)
    assert run_again(recipe, caplog) == []
    assert "is made anew from the other of two" in caplog.text
    assert read_sealed(folder / name) == before
    copy_of(folder / name).unlink()
    assert read_sealed(folder / name) == before, "it was made anew"


def test_without_a_whole_copy_nothing_is_taken_for_new(tmp_path: Path, tiny_run: Callable) -> None:
    recipe, folder = tiny_run(tmp_path), tmp_path / "run"
    for path in (folder / "manifest.json", folder / "manifest.copy.json"):
        flip(path)
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*manifest\.copy\.json is damaged.*put back"):
        pipeline.run(make_recipe(recipe))


def test_an_edited_number_is_no_result(tmp_path: Path, tiny_run: Callable) -> None:
    tiny_run(tmp_path)
    path = tmp_path / "run/results.json"
    results = json.loads(path.read_text())
    results["name"] = "another"
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        FinishedRun(tmp_path / "run").results()


def test_what_an_earlier_version_wrote_is_believed(tmp_path: Path, tiny_run: Callable, caplog: Any) -> None:
    recipe, folder = tiny_run(tmp_path), tmp_path / "run"
    for path in [*folder.glob("*.copy.json"), *folder.glob("table/*.copy.json")]:
        original = path.with_name(path.name.replace(".copy", ""))
        entries = json.loads(original.read_text())
        entries.pop("checksum")
        for entry in entries.values():
            if isinstance(entry, dict):
                entry.pop("files", None)
        original.write_text(json.dumps(entries))
        path.unlink()
    assert run_again(recipe, caplog) == []


def test_a_manifest_that_names_files_elsewhere_moves_none(tmp_path: Path, tiny_run: Callable) -> None:
    recipe, folder = tiny_run(tmp_path), tmp_path / "run"
    outside = tmp_path / "thesis.txt"
    outside.write_text("years of work")
    entries = read_sealed(folder / "manifest.json")
    assert entries is not None
    entries["policy a_lol_seq, seed 0"]["files"]["../thesis.txt"] = "0" * 64
    write_sealed(folder / "manifest.json", entries)
    with pytest.raises(UserError, match="names a file that is not in it"):
        pipeline.run(make_recipe(recipe))
    assert outside.read_text() == "years of work"


def test_readers_refuse_what_is_damaged(tmp_path: Path, tiny_run: Callable) -> None:
    tiny_run(tmp_path)
    flip(tmp_path / "run" / POLICY)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged.*run the recipe again"):
        FinishedRun(tmp_path / "run").trained_policy()
    flip(tmp_path / "run/table/tokens/00000.arrow")
    with pytest.raises(UserError, match=r"00000\.arrow is damaged"):
        FinishedRun(tmp_path / "run").table.open("tokens")


def test_a_page_is_not_made_of_changed_completions(
    tmp_path: Path, tiny_run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path)
    path = tmp_path / "run/evaluation/a_lol_seq-seed-0.jsonl"
    path.write_text(path.read_text().replace('"reward": ', '"reward": 9'))
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path / "run")])
    assert f"{path} is damaged" in " ".join(capsys.readouterr().err.split())


def test_check_says_what_is_damaged_and_what_a_rerun_would_do(
    tmp_path: Path, tiny_run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path)
    folder = tmp_path / "run"
    cli.main(["check", str(folder)])
    said = capsys.readouterr().out
    assert "files are as they were written" in said and "A rerun would compute nothing again." in said
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    flip(folder / POLICY)
    shutil.rmtree(folder / "table/value")
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(folder)])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "00000.arrow is missing" in said and "model.safetensors is damaged" in said
    assert "compute again: table/value, policy a_lol_seq, seed 0." in said
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path for path in before if before[path] != after.get(path)} <= {
        folder / POLICY, folder / "table", folder / "table/value", folder / "table/value/00000.arrow",
    }, "nothing was written"  # fmt: skip


def test_an_unfinished_block_keeps_the_shards_that_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from leftover.store.table import Table

    monkeypatch.setattr("leftover.store.table.SHARD_ROWS", 2)
    source, calls = datasets.Dataset.from_dict({"n": list(range(8))}), list[int]()

    def compute(shard: Any, _: Path, start: int) -> dict[str, Any]:
        calls.append(start)
        return {"twice": [2 * n for n in shard["n"]]}

    Table(tmp_path).write_columns("twice", {}, source, compute)
    flip(tmp_path / "twice/00002.arrow")
    calls.clear()
    table = Table(tmp_path)
    table.write_columns("twice", {}, source, compute)
    assert calls == [4] and table.open("twice")["twice"][:] == [2 * n for n in range(8)]
    assert set(Manifest(tmp_path).entries["twice"]["files"]) == {f"twice/{n:05d}.arrow" for n in range(4)}


def test_a_changed_recipe_of_a_run_is_not_believed_and_the_users_own_writes_it_anew(tmp_path, tiny_run, caplog):
    content = tiny_run(tmp_path)
    saved = tmp_path / "run/recipe.yaml"
    before = saved.read_text("utf-8")
    changed = before.replace("max_new_tokens: 8", "max_new_tokens: 9")
    assert changed != before
    saved.write_text(changed, "utf-8")
    with pytest.raises(UserError, match=r"recipe\.yaml is not as the run wrote it"):
        FinishedRun(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert run_again(content, caplog) == []
    assert FinishedRun(tmp_path / "run").recipe.evaluate.max_new_tokens == 8
    saved.write_text(without_sum(changed), "utf-8")  # as that of an earlier version
    assert FinishedRun(tmp_path / "run").recipe.evaluate.max_new_tokens == 9


def test_a_folder_that_holds_nothing_but_its_recipe_is_still_a_runs(tmp_path, tiny_recipe):
    recipe = make_recipe(tiny_recipe(tmp_path))
    for text in (dump_saved(recipe), dump_recipe(recipe)):  # the second as earlier versions wrote it
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/recipe.yaml").write_text(text, "utf-8")
        open_run(recipe).close()


def test_a_file_in_the_place_of_a_folder_or_the_reverse_is_named(
    tmp_path: Path, tiny_run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path)
    run, folders, files = tmp_path / "run", ("table", "evaluation", "logs", "export"), ("results.json", "manifest.json")
    for name in folders:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("x")
        if name == "table":
            with pytest.raises(SystemExit) as ended:
                cli.main(["report", str(run)])
            assert ended.value.code == 2 and f"{run / name} is a file" in capsys.readouterr().err
    for name in files:
        (run / name).unlink()
        (run / name).mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(run)])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert [name for name in folders if f"{run / name} is no folder" not in said] == []
    assert [name for name in files if f"{run / name} is no file" not in said] == []
