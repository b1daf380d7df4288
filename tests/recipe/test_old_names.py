"""Keys that were renamed: the old name is still read, with one line that names the new one."""

import logging
from pathlib import Path
from typing import Any

import pytest

from leftover.errors import UserError
from leftover.recipe import files
from leftover.recipe.files import dump_recipe, load_recipe, load_yaml, make_recipe


def content(**data: Any) -> dict[str, Any]:
    return {"name": "t", "output_dir": "run", "model": {"path": "m"}, "data": {"path": "d.jsonl"} | data}


@pytest.fixture(autouse=True)
def _nothing_said_before() -> None:
    files._warn_of_old_name.cache_clear()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_data_rows_is_read_as_data_train_on_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    given = content(rows="chosen")
    recipe = make_recipe(given, where="r.yaml")
    assert recipe.data.train_on == "chosen"
    (line,) = lines(caplog)
    assert "r.yaml" in line and "'data.rows'" in line and "'data.train_on'" in line
    assert given == content(rows="chosen"), "the caller's dictionary stays as it is"
    written = load_yaml(dump_recipe(recipe))["data"]
    assert written["train_on"] == "chosen" and "rows" not in written


def test_the_new_name_is_read_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert make_recipe(content(train_on="chosen")).data.train_on == "chosen"
    assert make_recipe(content()).data.train_on == "all"
    assert not lines(caplog)


def test_the_saved_recipe_of_a_run_may_have_the_old_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = dump_recipe(make_recipe(content(train_on="chosen"))).replace("train_on: chosen", "rows: chosen")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path).data.train_on == "chosen"
    assert load_recipe(tmp_path).data.train_on == "chosen"
    (line,) = lines(caplog)  # once, however often a command reads the file
    assert str(tmp_path / "recipe.yaml") in line and "'data.train_on'" in line


@pytest.mark.parametrize("given", [{}, {"rows": "all"}, {"train_on": "all"}])
@pytest.mark.parametrize("key", ["data.rows", "data.train_on"])
def test_an_override_by_either_name_holds(given: dict, key: str, caplog: pytest.LogCaptureFixture) -> None:
    assert make_recipe(content(**given), overrides=[f"{key}=chosen"]).data.train_on == "chosen"
    assert len(lines(caplog)) == ("rows" in given) + (key == "data.rows")


def test_a_wrong_value_under_the_old_name_is_refused_by_the_new_one() -> None:
    with pytest.raises(UserError, match=r"data\.train_on: Input should be 'all' or 'chosen'"):
        make_recipe(content(rows="best"))


def test_both_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"r\.yaml: 'data\.rows' .* 'data\.train_on'"):
        make_recipe(content(rows="all", train_on="chosen"), where="r.yaml")
