"""Columns that are not there: one message with what was meant; constants and paths into nested records."""

import numpy as np
import pytest

from leftover import LoLConfig, LoLTrainer
from leftover.data.splits import assign_splits
from leftover.errors import UserError, looked_for
from leftover.prepare.rows import row_settings
from leftover.recipe.data_section import ColumnsSection, DataSection
from tests.conftest import scored_rows
from tests.data.adapters import faults, read, texts

ROW = {"prompt": "Why?", "completion": " So.", "reward": 1.0}


def renamed(**names):
    return {names.get(name, name): value for name, value in ROW.items()}


@pytest.mark.parametrize(
    ("row", "meant"),
    [
        (renamed(prompt="Prompt"), "'Prompt'"),
        (renamed(prompt="user_prompt"), "'user_prompt'"),
        (renamed(prompt="question"), "'question'"),
        (renamed(completion="Completions_1"), "'Completions_1'"),
        (renamed(completion="response"), "'response'"),
        ({"meta": {"prompt": "Why?"}, "completion": "So."}, "'meta.prompt'"),
        ({"a": {"b": {"Question": "Why?"}}, "completion": "So."}, "'a.b.Question'"),
    ],
)
def test_a_missing_column_is_told_with_the_one_that_was_meant(row, meant, rows_file):
    with pytest.raises(UserError) as refused:
        list(read(rows_file([row] * 3), on_bad_row="error"))
    message = str(refused.value)
    assert f"did you mean {meant}?" in message and "data.columns." in message
    assert message.count("no column") == 1, "a fault of the file is told once"


def test_two_missing_columns_are_one_message(rows_file):
    [fault] = faults(rows_file([{"Question": "Why?", "Answer": "So."}]))
    assert "no column 'prompt'" in fault and "no column 'completion'" in fault
    assert "did you mean 'Question' and 'Answer'?" in fault


@pytest.mark.parametrize(("sign", "name"), [(";", "a.csv"), ("\t", "a.csv"), ("|", "a.csv"), (",", "a.tsv")])
def test_a_table_of_another_separator_is_told_so(sign, name, tmp_path):
    (tmp_path / name).write_text(sign.join(["prompt", "completion", "reward"]) + "\n" + sign.join(["a", "b", "1"]))
    with pytest.raises(UserError, match=r"data\.table\.delimiter"):
        read(str(tmp_path / name))
    assert texts(read(str(tmp_path / name), table={"delimiter": sign})) == [("a", "b", 1.0)]


def test_a_dotted_name_reaches_into_nested_records_and_lists(rows_file):
    row = {"request": {"text": "Why?"}, "choices": [{"message": {"content": " So."}}], "feedback": {"stars": 4}}
    columns = {"prompt": "Q: {request.text}", "completion": "choices.0.message.content", "reward": "feedback.stars"}
    rows = read(rows_file([row, row | {"feedback": None}]), columns=columns)
    assert texts(rows) == [("Q: Why?", " So.", 4.0), ("Q: Why?", " So.", None)]
    assert texts(read(rows_file([ROW | {"a.b": "x"}]), columns={"prompt": "a.b"})) == [("x", " So.", 1.0)]


def test_one_prompt_for_all_rows(rows_file):
    columns = {"prompt": {"text": "Title: {x}"}}
    rows = read(rows_file([ROW, renamed(prompt="body") | {"completion": " Then."}]), columns=columns)
    assert texts(rows) == [("Title: {x}", " So.", 1.0), ("Title: {x}", " Then.", 1.0)]
    assert [row["family"] for row in rows] == [" So.", " Then."], "else all would be on one side of the split"


def test_a_constant_survives_saving_and_leaves_other_keys_as_they_are():
    columns = ColumnsSection(prompt={"text": "Title: "})
    for mode in ("python", "json"):
        again = ColumnsSection.model_validate(columns.model_dump(mode=mode))
        assert again.prompt.text == "Title: " and again == columns
    assert row_settings(DataSection(path="a"))["columns"]["prompt"] == "prompt"


def test_what_could_be_a_constant_is_told_how_one_is_said(rows_file):
    [fault] = faults(rows_file([ROW]), columns={"prompt": "Title: "})
    assert "{text: 'Title: '}" in fault


def test_documents_without_the_separator_are_told_of_its_key(tmp_path, rows_file):
    import datasets

    text = "One is here. Two is here. Three is here. Four is here. "
    (tmp_path / "a.txt").write_text("\n\n".join([text * 5] * 9))
    data = DataSection(path=str(tmp_path / "a.txt"), format="documents")
    with pytest.raises(UserError, match=r"data\.documents\.separator"):
        assign_splits(datasets.Dataset.from_list(read(data.path, format="documents")), data, 0)
    (tmp_path / "b.txt").write_text("Too short.")
    with pytest.raises(UserError, match=r"data\.documents\.separator"):
        read(str(tmp_path / "b.txt"), format="documents")
    rows = read(data.path, format="documents", documents={"separator": ""})
    assert len({row["family"] for row in rows}) == 9


def test_a_file_that_is_not_there_is_told_with_the_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError) as refused:
        read("row.jsonl")
    assert f"looked for in {tmp_path}" in str(refused.value) and "did you mean 'rows.jsonl'?" in str(refused.value)
    assert f"looked for in {tmp_path / 'data'}" in looked_for("data/rows.jsonl")
    assert "there is no folder" in looked_for(tmp_path / "nowhere" / "rows.jsonl")


def test_a_trainer_takes_one_prompt_for_all_rows_too(tmp_path, tiny_llama_path):
    rows = [{"completion": row["completion"], "reward": row["reward"]} for row in scored_rows(12)]
    config = LoLConfig(output_dir=str(tmp_path), columns={"prompt": {"text": "Title: "}}, max_steps=1)
    found = LoLTrainer(tiny_llama_path, config, train_dataset=rows).train_dataset
    assert set(found["prompt"]) == {"Title: "} and len(found) == 12
    rewards = np.array(found["reward"])
    np.testing.assert_allclose(found["value"], (rewards.sum() - rewards) / 11)  # the mean of the others
