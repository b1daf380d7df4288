"""Text rewards beyond counting words: patterns, answers of rows, numbers, TF-IDF diversity."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from leftover.data.formats import read_rows
from leftover.data.rows import ROWS_SCHEMA, Rejects, check_rows
from leftover.errors import UserError
from leftover.prepare import rows as stage
from leftover.prepare.scores import score
from leftover.recipe.data_section import ColumnsSection, DataSection
from leftover.recipe.files import make_recipe
from leftover.rewards import FittedReward, load_reward
from leftover.rewards.numbers import find_numbers
from leftover.runs.claim import open_run
from leftover.store.table import column
from tests.conftest import write_rows


def text_reward(function: str, **settings: Any) -> Any:
    return load_reward({"type": "text", "function": function, **settings})


def scores(function: str, completions: list[str], **settings: Any) -> list[float]:
    return text_reward(function, **settings)([""] * len(completions), completions)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Any]:
    """`table(rows)`: rows as the stages `rows` and `split` leave them; each is of the split it names, or of train."""

    def make(rows: list[dict[str, Any]]) -> Any:
        data = DataSection(path=write_rows(tmp_path / "rows.jsonl", rows), columns=ColumnsSection(answer="answer"))
        checked = check_rows(read_rows(data), data, Rejects(tmp_path / "rejected.jsonl"), {})
        whole = datasets.Dataset(pa.Table.from_pylist(list(checked), schema=ROWS_SCHEMA))
        return whole.add_column("split", [row.get("split", "train") for row in rows])

    return make


@pytest.fixture
def fitted(tmp_path: Path, table: Callable) -> Callable[..., Any]:
    """`fitted(rows, function, **settings)`: a reward that another one's fit on these rows has been loaded into."""

    def make(rows: list[dict[str, Any]], function: str, **settings: Any) -> Any:
        folder = tmp_path / "fit"
        folder.mkdir(exist_ok=True)
        text_reward(function, **settings).fit(folder, table(rows))
        reward = text_reward(function, **settings)
        reward.load(folder)
        return reward

    return make


def row(prompt: Any = "2 + 2 is", answer: Any = "4", completion: str = " 4", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "answer": answer, **more}


# regex


def test_match_finds_the_pattern_anywhere_and_fullmatch_takes_the_whole_completion():
    assert scores("regex", ["an apple", " apple ", "pear"], pattern="apple") == [1.0, 1.0, 0.0]
    assert scores("regex", ["an apple", " apple ", "pear"], pattern="apple", mode="fullmatch") == [0.0, 1.0, 0.0]


def test_count_is_the_number_of_matches_that_do_not_overlap():
    assert scores("regex", ["aaaa", "a aa", ""], pattern="aa", mode="count") == [2.0, 1.0, 0.0]


def test_negate_turns_a_match_round():
    assert scores("regex", ["an apple", "pear"], pattern="apple", negate=True) == [0.0, 1.0]
    assert scores("regex", ["apple", "an apple"], pattern="apple", mode="fullmatch", negate=True) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("flag", "pattern", "text"),
    [("ignore_case", "apple", "APPLE"), ("multiline", "^b$", "a\nb"), ("dot_all", "<t>.*</t>", "<t>a\nb</t>")],
)
def test_a_flag_changes_what_the_pattern_matches(flag, pattern, text):
    assert scores("regex", [text], pattern=pattern) == [0.0]
    assert scores("regex", [text], pattern=pattern, **{flag: True}) == [1.0]


def test_the_identity_of_a_pattern_holds_all_its_settings():
    one, other = (text_reward("regex", pattern="a", ignore_case=ignore).identity() for ignore in (False, True))
    assert one != other and one["pattern"] == "a"


# answer


@pytest.mark.parametrize(
    ("answer", "completion", "settings", "expected"),
    [
        ("Paris", "Paris", {}, 1.0),
        ("Paris", " paris.\n", {}, 1.0),
        ("Paris", "**Paris**", {}, 1.0),
        ("New York", "“New   york”", {}, 1.0),
        ("(B)", "B)", {}, 1.0),
        ("cafe\u0301", "café", {}, 1.0),  # composed or not, it is one text
        ("-5", "5", {}, 0.0),  # a sign is no punctuation around the answer
        (")", ")", {}, 1.0),  # nothing else is left
        (")", "(", {}, 0.0),
        ("Paris", "Paris, France", {}, 0.0),
        ("Paris", "", {}, 0.0),
        ("Paris", "paris", {"ignore_case": False}, 0.0),
        ("Paris", " Paris", {"strip": False}, 0.0),
        ("New York", "New  York", {"collapse_space": False}, 0.0),
        ("Paris", "Paris.", {"punctuation": "keep"}, 0.0),
        ("U.S.A.", "USA", {}, 0.0),
        ("U.S.A.", "USA", {"punctuation": "remove"}, 1.0),
        ("a - b", "a b", {"punctuation": "remove"}, 1.0),
        ("Paris", "I think. The answer is Paris.", {"pattern": "answer is (.+)"}, 1.0),
        ("Paris", "The answer is Rome.\nNo: the answer is Paris", {"pattern": "answer is (.+)"}, 1.0),
        ("Paris", "Paris", {"pattern": "answer is (.+)"}, 0.0),
        ("By rail it is near. #### Paris", "#### paris", {"pattern": "#### (.+)"}, 1.0),
    ],
)
def test_an_answer_is_right_where_both_are_equal_after_the_declared_normalisation(
    answer, completion, settings, expected, fitted
):
    assert fitted([row(answer=answer)], "answer", **settings)(["2 + 2 is"], [completion]) == [expected]


CHAT = [{"role": "user", "content": 'Größe "x"?'}, {"role": "assistant", "content": "So?"}]


@pytest.mark.parametrize("function", ["answer", "numeric_answer"])
def test_prompts_of_every_split_and_form_are_looked_up(function, fitted):
    rows = [
        row(),
        row("3 + 3 is", "6", split="test"),
        row(CHAT, "7", split="validation"),
        row(json.dumps(CHAT, ensure_ascii=False), "8"),  # a text that reads like those messages is another prompt
        row("5 + 5 is", None),
        row("6 + 6 is", " "),
    ]
    reward = fitted(rows, function)
    turned = [dict(reversed(message.items())) for message in CHAT]
    prompts = [
        "2 + 2 is",
        "3 + 3 is",
        CHAT,
        turned,
        json.dumps(CHAT, ensure_ascii=False),
        "5 + 5 is",
        "6 + 6 is",
        "new",
    ]
    right = reward(prompts, ["4", "6", "7", "7", "8", "10", "12", "1"])
    assert right == [1.0, 1.0, 1.0, 1.0, 1.0, None, None, None]
    assert reward(prompts, ["9"] * 8) == [0.0] * 5 + [None] * 3


@pytest.mark.parametrize("function", ["answer", "numeric_answer"])
def test_rows_without_any_answer_are_refused_with_the_key_that_names_the_column(function, tmp_path, table):
    with pytest.raises(UserError, match=r"no row has an answer: name their column in data\.columns\.answer"):
        text_reward(function).fit(tmp_path, table([row(answer=None)]))


def test_answers_that_differ_are_reported_and_each_is_right(tmp_path, table, caplog):
    rows = table([row(answer="4"), row(answer=" 4.0 "), row("3 + 3 is", "6"), row(answer="five: 5"), row(answer=None)])
    reward = text_reward("numeric_answer")
    facts = reward.fit(tmp_path, rows)
    assert facts == {"prompts": 2, "rows_without_answer": 1, "conflicting_prompts": 1}
    assert "rows of 1 prompts have answers that differ" in caplog.text and "rows.jsonl:4" in caplog.text
    reward.load(tmp_path)
    assert reward(["2 + 2 is"] * 3, ["4", "5", "6"]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("text", ["four", "1e999"])
def test_a_row_whose_answer_holds_no_number_is_named(text, tmp_path, table):
    with pytest.raises(UserError, match=rf"cannot read 1 answers of the rows: .*\n.*rows\.jsonl:2: '{text}'"):
        text_reward("numeric_answer").fit(tmp_path, table([row(), row(answer=text)]))


# numeric_answer


@pytest.mark.parametrize(
    ("answer", "completion", "settings", "expected"),
    [
        ("4", "2 + 2 = 4.", {}, 1.0),
        ("4", "It is 4, not 5", {}, 0.0),  # the last number counts
        ("4", "four", {}, 0.0),
        (4, "4.0", {}, 1.0),
        ("1234.5", "$1,234.50", {}, 1.0),
        ("0.3", "3/10", {}, 1.0),
        ("-3", "minus 3", {}, 0.0),
        ("0.33", "1/3", {}, 0.0),
        ("0.33", "1/3", {"tolerance": 0.01}, 1.0),
        ("100", "101", {"tolerance": 1}, 1.0),
        ("100", "101.01", {"tolerance": 1}, 0.0),
        ("50", "50%", {}, 1.0),
        ("0.5", "50%", {"percent": "fraction"}, 1.0),
        ("1.234,5", "1234,5 Euro", {"decimal": ","}, 1.0),
        ("72", "6 * 12\n#### 72 apples, 6 each", {"pattern": "#### (.+)"}, 1.0),
        ("72", "#### 71\n#### 72", {"pattern": "#### (.+)"}, 1.0),
        ("72", "72", {"pattern": "#### (.+)"}, 0.0),
        ("72", "#### none, 72 is wrong\n#### ", {"pattern": "####(.*)"}, 0.0),
        ("48/2 = 24 and 48 more. #### 72", "#### 72", {"pattern": "#### (.+)"}, 1.0),
        ("4", "1" + "0" * 400, {}, 0.0),  # beyond the floats
    ],
)
def test_the_last_number_of_a_completion_is_compared_with_the_rows_answer(
    answer, completion, settings, expected, fitted
):
    assert fitted([row(answer=answer)], "numeric_answer", **settings)(["2 + 2 is"], [completion]) == [expected]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5-3, 3-5", [5, 3, 3, 5]),
        ("-5 and −5 and +5", [-5, -5, 5]),
        ("x = -5; (-5); a-5; (5)-3", [-5, -5, 5, 5, 3]),
        ("-$5, $-5, $-3$", [-5, -5, -3]),
        ("1,234,567.89", [1234567.89]),
        ("1,00,000", [100000]),
        ("1, 2,3 [4,56]", [1, 2, 3, 4, 56]),
        ("1\u202f234\u00a0567", [1234567]),
        ("1 234", [1, 234]),
        (".5, 5., 5.0", [0.5, 5, 5]),
        ("2e3 1.5E-1 5e", [2000, 0.15, 5]),
        ("3/4, -1/2, 1 1/2, 3 7/2", [0.75, -0.5, 1.5, 3, 3.5]),
        ("48/2=24", [24, 24]),
        ("5/0", [5, 0]),
        ("1/25/2020", [1, 25, 2020]),
        (r"\frac{3}{4}, -\dfrac{1}{2}, 1\frac{1}{2}", [0.75, -0.5, 1.5]),
        (r"1{,}234, 1,\!234, 50\%", [1234, 1234, 50]),
        ("H2O, GPT-4, x5, 3kg, 2nd", [4, 3, 2]),
        ("答案是42。", [42]),
        ("**42** _7_ `8`", [42, 7, 8]),
        ("none", []),
    ],
)
def test_numbers_are_read_as_they_are_written(text, numbers):
    assert find_numbers(text) == pytest.approx(numbers)


def test_a_decimal_comma_and_percentages_as_fractions_are_settings():
    assert find_numbers("1.234.567,5 und 50 %", decimal=",", percent="fraction") == [1234567.5, 0.5]
    assert find_numbers("-12.5%", percent="fraction") == [-0.125]


@pytest.mark.parametrize("unit", ["1", "1 ", "1,111", "11,11,", "1/", "1 1/", "1e", "\\", "\\frac{1", "$-"])
def test_long_texts_of_half_numbers_are_read_in_linear_time(unit):
    start = time.perf_counter()
    find_numbers(unit * (50_000 // len(unit)))
    assert time.perf_counter() - start < 2, "a quadratic pattern takes minutes"


# tfidf_diversity

CORPUS = ["red fox", "red hen", "one two three four five"]


def corpus(texts: list[str], **more: Any) -> list[dict[str, Any]]:
    return [row(f"{i}?", None, text, **more) for i, text in enumerate(texts)]


def test_tfidf_diversity_is_the_mean_weight_and_a_tenth_a_term_of_it_below_five(fitted):
    reward = fitted(corpus(CORPUS), "tfidf_diversity")
    # Smoothed IDF over three documents: ln(4 / (1 + df)) + 1.
    red, fox = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    two_terms = (red + fox) / 2 / math.hypot(red, fox)
    assert reward([""] * 5, ["Red fox", "fox unknown", "two five one three four", "one two three four", ""]) == (
        pytest.approx(
            [
                two_terms * 2 / 10,
                1 / 10,  # one known term has the weight 1
                1 / math.sqrt(5),  # five equal weights of a vector of length 1, no factor
                1 / math.sqrt(4) * 4 / 10,
                0.0,
            ]
        )
    )


def test_a_repeated_term_weighs_by_its_count(fitted):
    # "fox fox hen": 2 and 1 times the same IDF: (2 + 1) / 2 / sqrt(5), of two distinct terms.
    (score,) = fitted(corpus(CORPUS), "tfidf_diversity")([""], ["fox fox hen"])
    assert score == pytest.approx(3 / 2 / math.sqrt(5) * 2 / 10)


def test_only_training_completions_teach_the_terms(fitted):
    rows = corpus(CORPUS) + corpus(["zebra", "red red"], split="test") + corpus(["yak"], split="validation")
    alone, among = fitted(corpus(CORPUS), "tfidf_diversity"), fitted(rows, "tfidf_diversity")
    assert among([""] * 2, ["zebra", "yak!"]) == [0.0, 0.0]
    assert among([""], ["red fox"]) == alone([""], ["red fox"])


def test_what_tfidf_learnt_is_kept_without_pickle(tmp_path, table, monkeypatch):
    reward = text_reward("tfidf_diversity")
    (tmp_path / "fit").mkdir()
    assert reward.fit(tmp_path / "fit", table(corpus(CORPUS))) == {"terms": 8}
    assert {path.suffix for path in (tmp_path / "fit").iterdir()} == {".json", ".npy"}
    np.save(tmp_path / "fit/idf.npy", np.array([{}] * 8, object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        reward.load(tmp_path / "fit")


def test_training_completions_without_a_word_are_refused(tmp_path, table):
    with pytest.raises(UserError, match="the training completions hold no word of two letters or more"):
        text_reward("tfidf_diversity").fit(tmp_path, table(corpus(["!", "a"])))


# What they have in common.


@pytest.mark.parametrize("function", ["answer", "numeric_answer", "tfidf_diversity"])
def test_a_reward_that_reads_rows_says_so_and_refuses_to_score_before(function):
    reward = text_reward(function)
    assert isinstance(reward, FittedReward) and reward.reads_rows
    with pytest.raises(UserError, match="use it in a recipe, or call fit and load"):
        reward(["a"], ["b"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"function": "regx", "pattern": "a"}, "unknown text reward 'regx'; did you mean 'regex'?"),
        ({"function": "regex"}, "missing key 'pattern'"),
        ({"function": "regex", "pattern": "(a"}, "pattern '(a' is not a regular expression: missing )"),
        ({"function": "regex", "pattern": 7}, "pattern: Input should be a valid string: put it in quotes (got 7)"),
        (
            {"function": "regex", "pattern": "a", "mode": "find"},
            "mode: Input should be 'match', 'count' or 'fullmatch'",
        ),
        ({"function": "regex", "pattern": "a", "ignore_case": "yes"}, "ignore_case: Input should be a valid boolean"),
        ({"function": "regex", "pattern": "a", "mode": "count", "negate": True}, "use a negative weight"),
        ({"function": "regex", "pattern": "a", "flags": "i"}, "unknown key 'flags'"),
        ({"function": "answer", "pattern": "####"}, "pattern '####' has no group"),
        ({"function": "answer", "punctuation": True}, "punctuation: Input should be 'ends', 'remove' or 'keep'"),
        ({"function": "answer", "strip": 1}, "strip: Input should be a valid boolean"),
        ({"function": "numeric_answer", "pattern": "####"}, "pattern '####' has no group"),
        ({"function": "numeric_answer", "tolerance": -1}, "tolerance: Input should be greater than or equal to 0"),
        ({"function": "numeric_answer", "tolerance": float("nan")}, "tolerance: Input should be a finite number"),
        ({"function": "numeric_answer", "decimal": ";"}, "decimal: Input should be '.' or ','"),
        ({"function": "numeric_answer", "percent": 1}, "percent: Input should be 'number' or 'fraction'"),
        ({"function": "tfidf_diversity", "n": 2}, "unknown key 'n'"),
    ],
)
def test_a_setting_that_a_text_reward_cannot_serve_is_refused(settings, expected):
    with pytest.raises(UserError) as error:
        load_reward({"type": "text"} | settings)
    assert expected in str(error.value)


def test_a_run_scores_conversations_by_their_answers_and_their_diversity(tmp_path, tiny_recipe):
    rows = [
        row([{"role": "user", "content": f"{i} + {i} is"}], 2 * i, f"It is {2 * i + i % 2}, my good old friend")
        for i in range(40)
    ]
    rows[7]["answer"] = None
    functions = [{"type": "text", "function": name} for name in ("numeric_answer", "tfidf_diversity")]
    recipe = tiny_recipe(
        tmp_path, rows, reward={"functions": functions}, policies={"nll": {"objective": "nll", "rows": "all"}}
    )
    recipe["data"] |= {"columns": {"answer": "answer"}, "max_prompt_tokens": 64}
    recipe["model"] |= {"chat_template": "plain"}
    run = open_run(make_recipe(recipe))
    for do in (stage.read, stage.split, stage.tokens, score):
        do(run)
    blocks = run.table.open("score-numeric_answer", "score-tfidf_diversity")
    right = column(blocks, "reward/numeric_answer")
    assert np.isnan(right[7]) and np.delete(right, 7).tolist() == [float(i % 2 == 0) for i in range(40) if i != 7]
    assert (column(blocks, "reward/tfidf_diversity") > 0).all()
    assert run.manifest.facts("reward numeric_answer")["facts"]["rows_without_answer"] == 1
