"""What a user gives as a data set in Python: every kind of it, what is skipped of it, rows that are tokens already."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from leftover import LoLConfig
from leftover.errors import UserError
from leftover.prepare.evaluation_rows import pairs
from leftover.prepare.own_rows import checked_rows, token_ids

ROWS = [
    {"prompt": "Why?", "completion": " So.", "reward": 0.5},
    {"prompt": "How?", "completion": " Thus.", "reward": None},
    {"prompt": [{"role": "user", "content": "When?"}], "completion": " Now.", "reward": 1.0},
]
PAIRS = [
    {"prompt": "Why?", "chosen": " So.", "rejected": " So."},  # says nothing
    {"prompt": "How?", "chosen": " Thus.", "rejected": " No."},
    {"prompt": "When?", "chosen": " Now.", "rejected": None},
    {"prompt": "Who?", "chosen": " You.", "rejected": " I."},
]


class Polars:
    """What is read of a data frame of polars."""

    def iter_rows(self, named: bool) -> Iterator[dict[str, Any]]:
        assert named
        return (dict(row) for row in ROWS[:2])


def data_frame(_: Path) -> pd.DataFrame:
    return pd.DataFrame([row | {"reward": np.float32(row["reward"])} if row["reward"] else row for row in ROWS])


def from_parquet(folder: Path) -> pd.DataFrame:
    """Whose lists of messages are arrays."""
    table = pa.Table.from_pylist([row | {"prompt": ROWS[2]["prompt"]} for row in ROWS])
    pa.parquet.write_table(table, folder / "rows.parquet")
    return pd.read_parquet(folder / "rows.parquet")


def lines(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "rows.jsonl"


def table(folder: Path) -> str:
    pd.DataFrame(ROWS[:2]).to_csv(folder / "rows.csv", index=False)
    return str(folder / "rows.csv")


@pytest.mark.parametrize(
    "made",
    [
        lambda _: ROWS,
        lambda _: tuple(ROWS),
        lambda _: (row for row in ROWS),
        lambda _: datasets.Dataset.from_list(ROWS[:2]),
        lambda _: datasets.Dataset.from_list(ROWS[:2]).with_format("torch"),
        lambda _: datasets.Dataset.from_list(ROWS[:2]).to_iterable_dataset(),
        lambda _: pa.Table.from_pylist(ROWS[:2]),
        lambda _: Polars(),
        data_frame,
        lambda folder: data_frame(folder).convert_dtypes(),  # whose gaps are pandas.NA
        from_parquet,
        lines,
        table,
    ],
)
def test_rows_are_read_from_whatever_holds_some(made: Callable, tmp_path: Path) -> None:
    rows = checked_rows(made(tmp_path))
    assert [row["completion"] for row in rows] == [row["completion"] for row in ROWS][: len(rows)]
    assert [row["recorded_reward"] for row in rows] == [0.5, None, 1.0][: len(rows)]
    assert len(rows) >= 2 and len({row["where"] for row in rows}) == len(rows)
    if len(rows) == 3:
        assert json.loads(rows[2]["prompt"]) == ROWS[2]["prompt"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows.jsonl", "train_dataset: no data file at"),
        (b"rows", "train_dataset is a bytes"),
        (7, "train_dataset is a int"),
        (["a text"], "train_dataset is a list of str"),
        ({"train": ROWS}, "dictionary of train: choose one"),
        ({"prompt": ["p"], "completion": ["c"]}, "dictionary of prompt, completion: give .*from_dict"),
        (pd.Series(["p"]), "train_dataset is a Series of str; give"),
        (pa.chunked_array([["p"]]), "train_dataset is a ChunkedArray; give"),
        (pd.DataFrame([]), "train_dataset holds no row"),
    ],
)
def test_what_holds_no_rows_is_named(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_rows(rows)


def test_a_folder_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_dataset: .*is a folder"):
        checked_rows(tmp_path)
    text = tmp_path / "rows.txt"
    text.write_text("One. Two. Three. Four.\n")
    with pytest.raises(UserError, match=r"train_dataset: .*rows\.txt.* set data_options\.format"):
        checked_rows(text)
    args = LoLConfig(output_dir=str(tmp_path), data_options={"format": "documents"})
    assert checked_rows(text, "train_dataset", args)[0]["prompt"] == "One. Two. Three."


def test_columns_labels_and_faulty_rows_are_the_users_to_name(tmp_path: Path, caplog: Any) -> None:
    args = LoLConfig(
        output_dir=str(tmp_path), columns={"prompt": "question", "reward": "mark"}, labels={"good": 1, "bad": 0.25},
        on_bad_row="skip",
    )  # fmt: skip
    given = [
        {"question": "Why?", "completion": " So.", "mark": "good"},
        {"question": "How?", "completion": "", "mark": "good"},
        {"question": "When?", "completion": " Now.", "mark": "bad"},
        {"question": "Who?", "completion": " You.", "mark": "fair"},
    ]
    rows = checked_rows(given, "train_dataset", args)
    assert [(row["where"], row["recorded_reward"]) for row in rows] == [
        ("train_dataset[0]", 1.0), ("train_dataset[2]", 0.25),
    ]  # fmt: skip
    assert "2 of 4 rows skipped" in caplog.text
    assert "train_dataset[1]: 'completion' is empty" in caplog.text and "train_dataset[3]: 'mark' is" in caplog.text
    with pytest.raises(UserError, match="all rejected"):
        checked_rows(given[1:2], "train_dataset", args)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"promt": "q"}}, r"columns\.promt"),
        ({"labels": {"good": "high"}}, r"labels\.good"),
        ({"on_bad_row": "drop"}, "on_bad_row: 'drop'"),
        ({"data_options": {"form": "csv"}}, "form: "),
        ({"data_options": {"labels": {}}}, "data_options: labels"),
    ],
)
def test_faulty_settings_of_rows_are_named_at_once(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        LoLConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize("kind", [list, iter, datasets.Dataset.from_list, pd.DataFrame])
def test_rows_that_are_left_out_leave_the_columns_of_the_others_in_place(
    kind: Callable, tmp_path: Path, caplog: Any
) -> None:
    options = [{"mood": name} for name in "abcd"]
    given = [pair | {"chat_template_kwargs": of, "tools": None} for pair, of in zip(PAIRS, options, strict=True)]
    rows = checked_rows(kind(given), "eval_dataset", LoLConfig(output_dir=str(tmp_path), on_bad_row="skip"))
    assert [(row["completion"], row["chat_template_kwargs"]["mood"]) for row in rows] == [
        (" Thus.", "b"), (" No.", "b"), (" Now.", "c"), (" You.", "d"), (" I.", "d"),
    ]  # fmt: skip
    assert pairs(rows) == [0, 0, None, 3, 3]
    assert "eval_dataset: 1 dropped whose chosen and rejected" in caplog.text
    assert "1 of 6 rows skipped" in caplog.text and "eval_dataset[2] rejected: 'completion' is missing" in caplog.text


def test_halves_of_two_pairs_are_no_pair(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
    halves = [pair | {"rejected": ""}, pair | {"chosen": ""}]
    rows = checked_rows(halves, "eval_dataset", LoLConfig(output_dir=str(tmp_path), on_bad_row="skip"))
    assert [row["is_chosen"] for row in rows] == [True, False] and pairs(rows) == [None, None]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_ids": [5, 6], "completion_ids": [7, 8, 2]},
        {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]},
        {"input_ids": [5, 6, 7, 8, 2, 0, 0], "labels": [-100, -100, 7, 8, 2, -100, -100]},
        {"input_ids": [5, 6, 7, 8, 2], "completion_mask": [0, 0, 1, 1, 1]},
    ],
)
def test_tokens_are_parted_where_the_completion_begins(row: dict) -> None:
    assert token_ids(row) == {"prompt_ids": [5, 6], "completion_ids": [7, 8, 2]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, "marks no completion behind a prompt"),
        ({"input_ids": [5, 6, 7], "labels": [-100] * 3}, "marks no completion behind a prompt"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 7]}, "2 entries for 3"),
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}, "more than one stretch"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 8]}, "other tokens"),
    ],
)
def test_tokens_that_mark_no_one_completion_are_a_fault(row: dict, message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=message) as refused:
        checked_rows([row], tokenizer=tokenizer)
    assert "train_dataset[0]: " in str(refused.value)


def test_rows_of_tokens_and_of_text_are_not_mixed(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="one form"):
        checked_rows([{"prompt_ids": [5], "completion_ids": [6]}, ROWS[0]], tokenizer=tokenizer)
