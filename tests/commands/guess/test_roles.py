"""Which column is what: by name, by content, by what the user says; and what no recipe can read."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from leftover.commands.guess.ask import Questions
from leftover.commands.guess.columns import count_columns
from leftover.commands.guess.roles import Roles, find_roles
from leftover.commands.guess.worth import known_worths
from leftover.errors import UserError
from tests.conftest import scored_rows

Row = dict[str, Any]
_ROWS = scored_rows(60)
_TWO = [
    {"Question": r["prompt"], "Answer": r["completion"], "Stars": r["reward"], "rating": i % 5}
    for i, r in enumerate(_ROWS)
]


def found(rows: list[Row], *, assume: bool = True, **given: Any) -> tuple[Roles, list[str]]:
    """What the columns are taken for, and what was taken without asking."""
    questions = Questions(assume)
    return find_roles(count_columns(rows)[0], given, questions), questions.assumed


def answer(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize(
    "names",
    [
        ("prompt", "completion", "reward"),
        ("Question", "Answer", "Stars"),
        ("instruction", "output", "label"),
        ("userMessage", "Assistant Message", "user-rating"),
        ("meta.query", "meta.reply", "meta.score"),
        ("promt", "completoin", "rewardd"),
    ],
)
def test_columns_are_told_by_their_names(names: tuple[str, str, str]) -> None:
    def row(source: Row) -> Row:
        flat = dict(zip(names, (source["prompt"], source["completion"], source["reward"]), strict=True))
        return {"meta": {key.removeprefix("meta."): v for key, v in flat.items()}} if "." in names[0] else flat

    roles, assumed = found([row(source) for source in _ROWS])
    assert tuple(roles.columns[role] for role in ("prompt", "completion", "reward")) == names
    assert not assumed


def test_columns_without_telling_names_are_told_by_their_content() -> None:
    rows = [{"a": i, "b": row["prompt"], "c": row["completion"], "d": row["reward"] > 1} for i, row in enumerate(_ROWS)]
    roles, assumed = found(rows)
    assert roles.columns == {"prompt": "b", "completion": "c", "reward": "d"}
    said = "\n".join(assumed)
    assert "Which column is the prompt? Took b" in said and "Which column is the score? Took d" in said


def test_numbers_about_a_row_are_no_score() -> None:
    rows = [{"question": r["prompt"], "answer": r["completion"], "latency_ms": i, "id": i} for i, r in enumerate(_ROWS)]
    assert "reward" not in found(rows)[0].columns


def test_a_score_that_never_differs_is_none() -> None:
    rows = [{"question": r["prompt"], "answer": r["completion"], "score": 1} for r in _ROWS]
    assert "reward" not in found(rows)[0].columns


def test_an_instruction_and_its_input_are_one_prompt() -> None:
    rows = [{"instruction": r["prompt"], "input": "x", "output": r["completion"], "score": r["reward"]} for r in _ROWS]
    assert found(rows)[0].columns["prompt"] == "{instruction}\n{input}"


def test_of_two_scores_it_asks_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer(monkeypatch, "2")
    assert found(_TWO, assume=False)[0].columns["reward"] == "Stars"
    out = capsys.readouterr().out
    assert "Which column is the score?" in out and "1  rating" in out and "2  Stars" in out


def test_where_nobody_is_asked_the_likeliest_is_taken_and_told() -> None:
    roles, (said,) = found(_TWO)
    assert roles.columns["reward"] == "rating"
    assert "Took rating (not Stars)" in said and "--set data.columns.reward" in said


def test_what_is_set_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    assert found(_TWO, assume=False, columns={"reward": "Stars"})[0].columns["reward"] == "Stars"


def test_nobody_to_answer_is_told_how_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    with pytest.raises(UserError, match=r"Which column is the score\?.*--set data\.columns\.reward.*--yes"):
        found(_TWO, assume=False)


def with_words(words: str) -> list[Row]:
    listed = words.split(",")
    return [
        {"prompt": r["prompt"], "completion": r["completion"], "feedback": listed[i % len(listed)]}
        for i, r in enumerate(_ROWS)
    ]


@pytest.mark.parametrize(
    ("words", "labels", "unscored"),
    [
        ("up,down", {"up": 1, "down": 0}, []),
        ("👍,👎,", {"👍": 1, "👎": 0}, []),
        ("Thumbs Up,thumbs-down,n/a", {"Thumbs Up": 1, "thumbs-down": 0}, ["n/a"]),
        ("good,neutral,bad", {"good": 1, "neutral": 0.5, "bad": 0}, []),
        ("good,bad,spam", {"good": 1, "bad": 0}, ["spam"]),
    ],
)
def test_words_are_worth_what_they_mean(words: str, labels: dict[str, float], unscored: list[str]) -> None:
    roles, assumed = found(with_words(words))
    assert (roles.labels, roles.unscored) == (labels, unscored)
    assert bool(assumed) == ("spam" in unscored), "a guess is told"


def test_words_that_are_not_known_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "1", "0.5", "-1")
    roles, _ = found(with_words("A,B,C"), assume=False)
    assert roles.labels == {"A": 1.0, "B": 0.5} and roles.unscored == ["C"]
    with pytest.raises(UserError, match=r"nothing is known of what 'A', 'B', 'C' are worth.*data\.labels"):
        found(with_words("A,B,C"))
    assert not found(with_words("A,B,C"), labels={"A": 1, "B": 0, "C": 0})[0].labels, "they are the user's"


def test_the_worst_known_word_is_0_and_the_best_1() -> None:
    assert known_worths(["Excellent", "fair", "poor", "terrible"]) == {
        "Excellent": 1.0, "fair": 0.5, "poor": 0.1, "terrible": 0.0,
    }  # fmt: skip
    assert known_worths(["good", "other"]) == {"good": 0.0}


def messages(row: Row) -> list[Row]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {"prompt": r["prompt"], "n": 1}, r"no column of completions.*leftover generate"),
        (lambda r: {"completion": r["completion"]}, r"no column of prompts.*data\.columns\.prompt=\{text"),
        (lambda r: {"prompt": "x", "preferred": "yes it is", "worse": "no"}, r"call 'preferred' 'chosen' and 'worse'"),
        (lambda r: {"prompt": "x", "responses": ["a", "b"], "scores": [1, 0]}, r"'responses' 'completions' and 'sco"),
        (lambda r: {"conversation": messages(r), "score": 1}, r"call 'conversation' 'messages'"),
        (lambda r: {"conversations": [{"from": "human", "value": "x"}]}, r"write each as \{role, content\}"),
    ],
)
def test_what_no_recipe_can_read_is_refused(change: Callable[[Row], Row], said: str) -> None:
    with pytest.raises(UserError, match=said):
        found([change(row) for row in _ROWS])
