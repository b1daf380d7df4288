"""The verb `fit-reward`: what it writes, says, reuses and refuses."""

from pathlib import Path
from typing import Any

import pytest

from leftover.cli import main
from leftover.commands.fit_reward import fit_reward, read_spec
from leftover.errors import UserError
from leftover.rewards import load_reward
from tests.rewards.reward_rows import planted_rows, write


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", planted_rows("label"))


def test_the_verb_prints_counts_quality_and_how_a_recipe_names_the_reward(rows, tmp_path, capsys):
    folder = tmp_path / "critic"
    main(["fit-reward", rows, "--output", f"{folder}/", "--set", "features=pair", "--set", "fit.max_rows=140"])
    out = capsys.readouterr().out
    for said in ("held out auc", "(95 %)", "held out families 14", "rows fitted 112", "words: splendid"):
        assert said in " ".join(out.replace("│", " ").split())
    assert f"- {{type: linear, path: {folder}}}" in out
    reward = load_reward({"type": "linear", "path": str(folder)})
    good, bad = reward(["?", "?"], ["a splendid lamp", "a lamp"])
    assert good > bad


def test_a_yaml_holds_the_keys_of_the_reward(rows, tmp_path):
    path = tmp_path / "critic.yaml"
    path.write_text(f"features: both\nfit:\n  path: {rows}\n  part: [0, 0.7]\n")
    spec = read_spec(str(path), None, ["held_out=0.3", "fit.columns.reward=reward"])
    assert spec == {
        "type": "linear",
        "features": "both",
        "held_out": 0.3,
        "fit": {"path": rows, "part": [0, 0.7], "columns": {"reward": "reward"}},
    }
    _, facts = fit_reward(str(path), str(tmp_path / "critic"))
    assert 0 < facts["rows_other_parts"] < facts["rows_read"] == 160


def test_the_kind_and_its_keys_can_be_given_beside_a_file_of_rows(rows):
    assert read_spec(rows, "fine-tuned", ["model=some/encoder", "train.learning_rate=2e-5"]) == {
        "type": "fine_tuned",
        "fit": {"path": rows},
        "model": "some/encoder",
        "train": {"learning_rate": 2e-5},
    }


def test_the_same_command_finds_it_fitted_and_another_one_is_refused(rows, tmp_path):
    folder = tmp_path / "critic"
    _, facts = fit_reward(rows, str(folder))
    before = (folder / "reward.json").stat().st_mtime_ns
    assert fit_reward(rows, str(folder))[1] == facts
    assert (folder / "reward.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds something else \(identity.settings.features: completion -> pair\)"):
        fit_reward(rows, str(folder), overrides=["features=pair"])


def test_a_fit_that_failed_leaves_its_folder_free(rows, tmp_path):
    folder = tmp_path / "critic"
    with pytest.raises(UserError, match="too few"):
        fit_reward(rows, str(folder), overrides=["fit.max_rows=8"])
    assert fit_reward(rows, str(folder))[1]["rows"] == 160
    manifest = {"manifest.json", "manifest.copy.json"}
    assert {file.name for file in folder.iterdir()} == manifest | {"reward.json", "vocabulary.json", "arrays.npz"}


def test_a_folder_of_something_else_is_left_alone(rows, tmp_path, tiny_recipe: Any):
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"empty folder.*--output"):
        fit_reward(rows, str(other))
    (other / "manifest.json").write_text('{"reference": {"key": {}, "complete": true}}')
    with pytest.raises(UserError, match=r"something else.*--output"):
        fit_reward(rows, str(other))
    assert (other / "letter.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is not an empty folder"):
        fit_reward(rows, rows)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("type: fine_tuned\nfit: {path: x}", "linear", "fine_tuned.*--kind"),
        ("type: text\nfit: {path: x}", None, "type 'text' is not fitted on rows.*linear, fine_tuned"),
        ("fit: rows", None, "under `fit`"),
        ("path: x", None, "under `fit`"),
        ("- 1", None, "a reward is a mapping of keys .* found list"),
        ("a: [", None, "not valid YAML"),
    ],
)
def test_a_yaml_that_says_nothing_to_fit_is_refused(text, kind, expected, tmp_path):
    path = tmp_path / "reward.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_spec(str(path), kind)


def test_bad_input_of_the_verb_exits_with_2_and_one_message(rows, tmp_path, capsys):
    for arguments in ([str(tmp_path / "none.jsonl")], [str(tmp_path / "none.yaml")], [rows, "--set", "featurs=pair"]):
        with pytest.raises(SystemExit) as stopped:
            main(["fit-reward", *arguments, "--output", str(tmp_path / "out")])
        assert stopped.value.code == 2
    said = capsys.readouterr().err
    for message in ("no data file at", "no file at", "unknown key 'featurs'; did you mean 'features'"):
        assert message in said


def test_damaged_files_of_a_fitted_reward_are_named_with_the_remedy(rows, tmp_path):
    folder = tmp_path / "fitted"
    fit_reward(rows, str(folder))
    described, again = (
        folder / "reward.json",
        rf": fit it again \(`leftover fit-reward ROWS --output {folder}`\), which",
    )
    whole = described.read_text()
    for content in ("[]", "{}", "3", '{"type": "linear"}', "{"):
        described.write_text(content)
        with pytest.raises(UserError, match=rf"^{described} is damaged .+{again}"):
            load_reward({"type": "linear", "path": str(folder)}).identity()
    described.write_text(whole)
    (folder / "vocabulary.json").write_text("{}")
    with pytest.raises(UserError, match=rf"vocabulary\.json is damaged .+{again}"):
        load_reward({"type": "linear", "path": str(folder)})(["a"], ["b"])
    fit_reward(rows, str(folder))
    assert load_reward({"type": "linear", "path": str(folder)})(["a"], ["b"])
