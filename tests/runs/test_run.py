"""A run's folder: made without touching the disk, claimed, and read back when it is finished."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leftover.errors import UserError
from leftover.recipe.files import load_recipe, make_recipe
from leftover.recipe.sections import ModelSection
from leftover.runs.claim import claim, model_positions, open_run
from leftover.runs.finished import FinishedRun
from leftover.runs.names import completions_path, policy_artifact, policy_folder, policy_subject, slug
from leftover.runs.run import Run


def test_making_a_run_reads_and_writes_nothing(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = make_recipe(tiny_recipe(tmp_path))
    made = Run(recipe)
    assert made.reward.scores_new_completions and made.judges is None
    assert made.table.folder == tmp_path / "run/table" and made.manifest.entries == {}
    assert made.reference_path == str(tmp_path / "run/reference")
    assert not made.folder.exists()


def test_a_run_of_another_folder_keeps_its_recipe(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = make_recipe(tiny_recipe(tmp_path))
    made = Run(recipe, tmp_path / "copy")
    assert made.folder == tmp_path / "copy" and made.recipe.output_dir == str(tmp_path / "run")
    claim(made)
    assert load_recipe(tmp_path / "copy") == recipe and not (tmp_path / "run").exists()


def test_a_folder_is_claimed_by_one_recipe(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = tiny_recipe(tmp_path)
    open_run(make_recipe(content))
    open_run(make_recipe(content | {"seed": 7}))  # another version of the same recipe
    assert load_recipe(tmp_path / "run").seed == 7
    with pytest.raises(UserError, match=r"'tiny'.*output_dir"):
        open_run(make_recipe(content | {"name": "another"}))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no run.*output_dir"):
        open_run(make_recipe(content | {"output_dir": str(tmp_path / "notes")}))
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("folder", [".", ""])
def test_a_recipe_of_the_users_is_not_overwritten_by_its_run(
    folder: str, tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = "# my notes\n" + yaml.safe_dump(tiny_recipe(tmp_path) | {"output_dir": folder})
    Path("recipe.yaml").write_text(own)
    with pytest.raises(UserError, match=r"recipe\.yaml of your own.*output_dir"):
        open_run(load_recipe("recipe.yaml"))
    assert Path("recipe.yaml").read_text() == own


def test_a_run_that_was_refused_after_its_folder_was_made_goes_on_with_a_mended_recipe(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    content = tiny_recipe(tmp_path)
    with pytest.raises(UserError, match="positions"):
        open_run(make_recipe(content | {"data": content["data"] | {"max_prompt_tokens": 10_000}}))
    assert open_run(make_recipe(content)).folder == tmp_path / "run"


def test_only_what_lies_in_the_runs_folder_is_removed(tmp_path: Path, tiny_recipe: Callable) -> None:
    made = Run(make_recipe(tiny_recipe(tmp_path)))
    inside, precious = made.folder / "policies/p/seed-0", tmp_path / "precious/seed-0"
    for folder in (inside, precious):
        folder.mkdir(parents=True)
        (folder / "work.txt").write_text("years")
    (made.folder / "policies/linked").symlink_to(precious.parent)
    made.discard(inside)
    assert not inside.exists()
    links = (made.folder / "policies/linked/seed-0", made.folder / "policies/../../precious/seed-0")
    for folder in (*links, precious, made.folder, tmp_path):
        with pytest.raises(UserError, match="lies outside the run's folder"):
            made.discard(folder)
    assert (precious / "work.txt").read_text() == "years" and made.folder.is_dir()


def test_rewards_whose_names_make_one_file_name_are_refused(tmp_path: Path, tiny_recipe: Callable) -> None:
    length = {"type": "text", "function": "length"}
    functions = [length | {"name": name} for name in ("how long", "How_long")]
    for section in ({"reward": {"functions": functions}}, {"evaluate": {"judges": functions}}):
        with pytest.raises(UserError, match=r"'how long' and 'How_long'.*rename one"):
            open_run(make_recipe(tiny_recipe(tmp_path, **section), saved=True))


def test_faulty_judges_are_refused_when_a_run_is_opened(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = tiny_recipe(tmp_path, evaluate={"judges": [{"type": "text", "function": "vadr"}]})
    with pytest.raises(UserError, match="vadr"):
        open_run(make_recipe(content))


def test_a_finished_run_is_read_back_wherever_its_folder_lies(tmp_path: Path, tiny_run: Callable) -> None:
    tiny_run(tmp_path)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    finished = FinishedRun(moved)
    assert finished.prepared["rows"]["read"] == 60 and finished.table.has("value")
    assert finished.manifest.facts(policy_artifact("a_lol_seq", 0))["steps"] == 4
    found = finished.results()
    assert found is not None and found["main"] == "a_lol_seq" == finished.policy(None)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"no policy 'dpo'.*a_lol_seq"):
        finished.policy("dpo")
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        FinishedRun(tmp_path)


def test_names_of_files_and_artifacts_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """A renamed file or artifact would be computed again in every folder that exists."""
    assert policy_folder(tmp_path, "nll", 3) == tmp_path / "policies/nll/seed-3"
    assert policy_artifact("nll", 3) == "policy nll, seed 3"
    assert completions_path(tmp_path, policy_subject("nll", 3)) == tmp_path / "evaluation/nll-seed-3.jsonl"
    assert slug("my reward/2") == "my_reward_2"


def test_a_run_named_as_a_model_offers_the_models_in_it(tmp_path: Path) -> None:
    for folder in ("table", "reference", "policies/a_lol/seed-3"):
        (tmp_path / "done" / folder).mkdir(parents=True)
    for name in ("recipe.yaml", "policies/a_lol/seed-3/config.json"):
        (tmp_path / "done" / name).write_text("{}")
    for named in ("", "policies", "policies/a_lol"):
        with pytest.raises(UserError, match=r"/done/reference, .*/done/policies/a_lol/seed-3, or"):
            model_positions(ModelSection(path=str(tmp_path / "done" / named)))
