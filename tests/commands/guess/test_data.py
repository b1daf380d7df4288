"""`inspect` and `select` of columns with other names: taken and told where that is certain, refused elsewhere."""

import csv
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import leftover
from leftover.commands.guess.worth import spelt_number
from leftover.commands.inspect import inspect
from leftover.errors import UserError
from tests.conftest import scored_rows

_ROWS = scored_rows(40)
Row = dict[str, Any]


def question(row: Row, **more: Any) -> Row:
    return {"question": row["prompt"], "answer": row["completion"].strip()} | more


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Iterator[Callable[..., tuple[Any, str]]]:
    """`found(rows)`: the analysis of a table of these rows, and what is said of its columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("leftover.commands.inspect.write_inspection", lambda *_: None)

    def look(rows: list[Row], *options: str, delimiter: str = ",", encoding: str = "utf-8") -> tuple[Any, str]:
        with Path("rows.csv").open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        caplog.clear()
        analysis = inspect("rows.csv", overrides=options).analysis
        return analysis, "\n".join(line for line in caplog.messages if line.startswith("Read "))

    yield look


def test_columns_of_other_names_are_taken_and_told(found: Any) -> None:
    rows = [question(row, id=i, stars=i % 5 + 1) for i, row in enumerate(_ROWS)]
    analysis, said = found(rows, encoding="utf-8-sig")
    assert sorted(analysis["reward"]) == sorted(row["stars"] for row in rows)
    assert said == (
        "Read 'question' as the prompt, 'answer' as the completion, 'stars' (1 to 5) as the score; other columns "
        "ignored: 'id'"
    )


def test_nothing_is_guessed_where_columns_have_our_names_or_are_set(found: Any) -> None:
    _, said = found([row | {"score": 1} for row in _ROWS])
    assert not said
    rows = [question(row, stars=i % 5, grade=i % 3) for i, row in enumerate(_ROWS)]
    names = {"prompt": "question", "completion": "answer", "reward": "grade"}
    analysis, said = found(rows, *(f"data.columns.{key}={name}" for key, name in names.items()))
    assert set(analysis["reward"]) == {0, 1, 2} and not said


@pytest.mark.parametrize(
    ("thumb", "told"),
    [
        (("👎", "👍"), "'feedback' (👎: 0, 👍: 1) as the score"),
        (("no", "yes"), "'feedback' (no: 0, yes: 1) as the score"),
        (("2 stars", "5 stars"), "'feedback' (2 stars: 2, 5 stars: 5) as the score"),
        (("★☆☆", "★★★"), "'feedback' (★☆☆: 1, ★★★: 3) as the score"),
    ],
)
def test_words_for_scores_are_told_with_what_they_are_worth(thumb: tuple[str, str], told: str, found: Any) -> None:
    analysis, said = found([question(row, feedback=thumb[i % 2]) for i, row in enumerate(_ROWS)])
    assert told in said and len(set(analysis["reward"])) == 2


def test_a_spreadsheet_of_semicolons_decimal_commas_and_empty_columns(found: Any) -> None:
    rows = [question(row, score=f"{i % 3},5") | {"": ""} for i, row in enumerate(_ROWS)]
    analysis, said = found(rows, delimiter=";")
    assert set(analysis["reward"]) == {0.5, 1.5, 2.5}
    assert "columns parted by ';'" in said and "ignored: 'column 4'" in said


def test_a_label_that_is_no_truth_value_is_the_score(found: Any) -> None:
    analysis, said = found([question(row, label=i % 5) for i, row in enumerate(_ROWS)])
    assert set(analysis["reward"]) == set(range(5)) and "'label' (0 to 4) as the score" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda i, row: question(row, score=i % 5, rating=i % 2),
        lambda i, row: {"a: b": row["prompt"], "c": row["completion"], "no": i % 5},
        lambda i, row: question(row, score=1000 + i),  # which numbers the rows
        lambda i, row: question(row, feedback=("good", "bad", "weird")[i % 3]),
    ],
)
def test_what_is_not_certain_is_refused_with_what_to_type(change: Callable[[int, Row], Row], found: Any) -> None:
    rows = [change(i, row) for i, row in enumerate(_ROWS)]
    with pytest.raises(UserError, match=r"rows\.csv: it is not certain what the columns are for") as refused:
        found(rows)
    typed = shlex.split(str(refused.value).partition("add: ")[2])
    assert typed[::2] == ["--set"] * (len(typed) // 2)
    analysis, said = found(rows, *typed[1::2])
    assert analysis["rows"] == (27 if "feedback" in rows[0] else 40) and not said


def test_rows_whose_word_is_no_score_are_left_out_as_is_said(found: Any) -> None:
    analysis, said = found([question(row, feedback=("good", "bad", "n/a")[i % 3]) for i, row in enumerate(_ROWS)])
    assert analysis["rows"] == 27 and "(good: 1, bad: 0, rows of n/a are left out)" in said


@pytest.mark.parametrize("other", ["0.5", "4/5"])
def test_numbers_of_several_scales_are_not_taken(other: str, found: Any) -> None:
    with pytest.raises(UserError, match=r"nothing is known of what .* are worth"):
        found([question(row, score=("50%", "85 %", other)[i % 3]) for i, row in enumerate(_ROWS)])


def test_an_id_is_not_taken_where_something_else_is_called_a_score(found: Any) -> None:
    with pytest.raises(UserError, match="Which column is the score: stars, score"):
        found([question(row, score=1000 + i, stars=i % 5) for i, row in enumerate(_ROWS)])


def test_scores_that_tell_nothing_are_named(found: Any) -> None:
    with pytest.raises(UserError, match=r"the column 'score' is 3 in every row, and tells no row from another"):
        found([question(row, score=3) for row in _ROWS])
    with pytest.raises(UserError, match=r"'rating' holds texts such as 'grade 0': write them as numbers"):
        found([question(row, rating=f"grade {i}") for i, row in enumerate(scored_rows(40))])
    with pytest.raises(UserError, match=r"'reward' is the text '1,5', not a number; write it with a decimal point"):
        found([row | {"reward": "1,5"} for row in _ROWS])
    with pytest.raises(UserError, match=r"--set data\.on_bad_row=skip"):
        found([question(row, rating=i % 5 if i % 7 else "N/A") for i, row in enumerate(_ROWS)])


def test_functions_that_score_need_no_column_of_scores(found: Any, tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text("- {type: text, function: length}\n")
    rows = [question(row, score=1, rating=i % 5, grade=i % 2) for i, row in enumerate(_ROWS)]
    assert leftover.inspect(rows, reward=tmp_path / "reward.yaml").analysis["rows"] == 40


def test_rows_in_python_are_guessed_alike(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [question(row, stars=i % 5) for i, row in enumerate(_ROWS)]
    selected = leftover.select((row for row in rows), "kto.parquet", format="kto")  # which is read once
    assert selected.num_rows == 40 and "'stars' (0 to 4) as the score" in caplog.text
    with pytest.raises(UserError, match=r"add: overrides=\['data.columns.prompt=question', 'data") as refused:
        leftover.select([row | {"score": i % 2} for i, row in enumerate(rows)])
    assert re.search(r"reward=(stars|score)", str(refused.value))


@pytest.mark.parametrize(
    ("word", "number"),
    [("3,5", 3.5), ("4 out of 5", 0.8), ("4/5", 0.8), ("1 star", 1), ("85 %", 85), ("⭐⭐", 2), ("-1", -1)]
    + [(word, None) for word in ("1,234", "2024-01-02", "1/2/2024", "3/0", "good", "", "v2")],
)
def test_numbers_in_words(word: str, number: float | None) -> None:
    assert spelt_number(word) == number
