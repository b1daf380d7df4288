"""Rows in the user's own columns: groups of completions, conversations, templates, in any kind of file."""

import json
import re
from typing import Any

import pytest
import yaml

from leftover.data.rows import ROWS_SCHEMA
from leftover.errors import UserError
from tests.data.adapters import faults, messages, read, texts

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]


def test_a_group_of_completions_becomes_one_row_each(rows_file):
    group = {"prompt": "Why?", "completions": ["So.", "No."], "rewards": [1, -1], "family": "f"}
    rows = read(rows_file([group]))
    assert texts(rows) == [("Why?", "So.", 1.0), ("Why?", "No.", -1.0)]
    assert [row["family"] for row in rows] == ["f", "f"]
    assert [row["where"].partition(" ")[2] for row in rows] == ["completion 0", "completion 1"]


def test_a_group_may_lack_scores_and_hold_messages(rows_file):
    completions = [[{"role": "assistant", "content": text}] for text in ("So.", "No.")]
    rows = read(rows_file([{"prompt": CHAT[:1], "completions": completions}]))
    assert [(row["completion"], row["recorded_reward"]) for row in rows] == [("So.", None), ("No.", None)]
    assert messages(rows[0]) == [("user", "Hi")]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"rewards": [1]}, "'rewards' is not a list of 2"),
        ({"rewards": 1.0}, "'rewards' is not a list of 2"),
        ({"completions": "So."}, "'completions' is not a list"),
        ({"completions": []}, "'completions' is not a list"),
        ({"reward": 1.0}, "give 'rewards'"),
        ({"rewards": [1, "x"]}, "'reward' is the text 'x', not a number"),
        ({"completions": ["a", " "]}, "'completion' is empty"),
    ],
)
def test_a_faulty_group_says_why(fault, reason, rows_file):
    (found,) = faults(rows_file([{"prompt": "Why?", "completions": ["So.", "No."]} | fault]))
    assert reason in found


def test_a_conversation_ends_in_the_completion(rows_file):
    (row,) = read(rows_file([{"messages": CHAT, "reward": 2}]))
    assert messages(row) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    assert (row["completion"], row["recorded_reward"]) == ("So.", 2.0)


def test_the_score_of_a_conversation_may_stand_on_its_last_turn(rows_file):
    first, second = ([*CHAT[:-1], CHAT[-1] | {"reward": reward}] for reward in (1, 0))
    first[1] = first[1] | {"reward": 5}
    rows = read(rows_file([{"messages": first}, {"messages": second}]))
    assert [row["recorded_reward"] for row in rows] == [1.0, 0.0]
    # The score of an earlier turn does not make another prompt of it.
    assert rows[0]["prompt"] == rows[1]["prompt"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (CHAT[:3], "the role 'user', not 'assistant'"),
        (CHAT[1:2], "not a list of at least two"),
        ("Hi", "not a list of at least two"),
        ([CHAT[0], {"role": "assistant"}], "'completion' must be a text or one assistant message"),
        ([{"role": "user"}, CHAT[1]], "'prompt' is neither a text nor a list"),
    ],
)
def test_a_faulty_conversation_says_why(turns, reason, rows_file):
    (found,) = faults(rows_file([{"messages": turns}]))
    assert reason in found


def test_a_prompt_of_the_users_own_goes_before_messages(rows_file):
    row: dict[str, Any] = {"prompt": "a", "completion": "b", "messages": CHAT, "completions": ["c"]}
    assert texts(read(rows_file([row]))) == [("a", "b", None)]


def test_a_column_with_braces_is_a_template(rows_file):
    row = {"title": "T", "body text": None, "n": 3, "answer": "A", "id": 7, "set": "s"}
    columns = {
        "prompt": "{{{n}}} {title}\n{body text}",
        "completion": " {answer}",
        "family": "{set}#{id}",
        "source": "from {set}",
    }
    (found,) = read(rows_file([row]), columns=columns)
    assert texts([found]) == [("{3} T\n", " A", None)]
    assert (found["family"], found["source"]) == ("s#7", "from s")


def test_a_template_makes_the_prompt_of_a_pair(rows_file):
    rows = read(rows_file([{"title": "T", "chosen": "a", "rejected": "b"}]), columns={"prompt": "Of {title}:"})
    assert texts(rows) == [("Of T:", "a", 1.0), ("Of T:", "b", 0.0)]


def test_a_pair_of_one_text_says_nothing_and_is_left_out(rows_file):
    same = {"prompt": "p", "chosen": "a", "rejected": "a"}
    rows = read(rows_file([same, same | {"rejected": "b"}, same | {"chosen_reward": 2.0, "rejected_reward": 2.0}]))
    assert texts(rows) == [("p", "a", 1.0), ("p", "b", 0.0), ("p", "a", 2.0), ("p", "a", 2.0)]
    assert dict(rows.stats["left_out"]) == {"whose chosen and rejected completion are the same": 1}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Human: Hi. Assistant: Hello!", "Human: Hi. Assistant: Go.", "Human: Hi. Assistant:"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # no word is cut
        ("Q: four?\nA:yes", "Q: four?\nA:no", "Q: four?\nA:"),
        ("Why?\nSo.", "Why?\nThus.", "Why?\n"),
        ("It is fine", "It is fine and good", "It is"),  # neither completion is empty
    ],
)
def test_a_pair_without_a_prompt_shares_its_beginning(chosen, rejected, prompt, rows_file):
    rows = read(rows_file([{"chosen": chosen, "rejected": rejected}]))
    completions = chosen.removeprefix(prompt), rejected.removeprefix(prompt)
    assert texts(rows) == [(prompt, completions[0], 1.0), (prompt, completions[1], 0.0)]
    assert len({row["family"] for row in rows}) == 1


def test_a_conversation_that_holds_its_prompt_needs_no_other(rows_file):
    pair = {"chosen": CHAT, "rejected": [*CHAT[:-1], {"role": "assistant", "content": "No."}]}
    for more in ({}, {"prompt": None}, {"prompt": CHAT[0]["content"]}):  # UltraFeedback repeats the prompt as text
        rows = read(rows_file([pair | more]))
        assert [json.loads(row["prompt"]) for row in rows] == [CHAT[:-1]] * 2
        assert [row["completion"] for row in rows] == ["So.", "No."]


def test_columns_that_other_rows_fill_are_empty_and_no_fault(rows_file):
    """A data set of pairs, groups and conversations gives every row the columns of all."""
    empty = dict.fromkeys(("prompt", "completion", "reward", "chosen", "rejected", "completions", "messages"))
    kinds = [
        {"prompt": "p", "completion": "c", "reward": 1.0}, {"prompt": "p", "chosen": "c", "rejected": "d"},
        {"prompt": "p", "completions": ["c", "d"]}, {"messages": CHAT},
    ]  # fmt: skip
    rows = read(rows_file([empty | kind for kind in kinds]))
    assert [row["completion"] for row in rows] == ["c", "c", "d", "c", "d", "So."]


def test_a_pair_of_which_no_beginning_can_be_the_prompt_is_a_fault(rows_file):
    pair = {"question": "Why?", "chosen": " So.", "rejected": " No."}
    fault, other = faults(rows_file([pair]))
    assert fault == other and "no column 'prompt', and" in fault and "found: chosen, question, rejected" in fault
    assert "no column 'Question'" in faults(rows_file([pair]), columns={"prompt": "Question"})[0]
    assert "no turn before" in faults(rows_file([{"chosen": CHAT[-1:], "rejected": CHAT[-1:] * 2}]))[0]


def test_a_template_over_a_column_that_is_not_there_or_no_text_is_a_fault(rows_file):
    path = rows_file([{"titel": "T", "completion": "c"}, {"title": ["T"], "completion": "c"}])
    assert faults(path, columns={"prompt": "{title}!"}) == [
        "no column 'title' for the template '{title}!' (found: completion, titel); did you mean 'titel'?",
        "'title', of the template '{title}!', is not a text: ['T']",
    ]


@pytest.mark.parametrize(
    ("record", "meant"),
    [
        ({"prompt_id": 3, "Question": "q", "completion_id": 4, "Answer": "a"}, "'Question' and 'Answer'"),
        ({"prompt_id": "x3", "question": "q", "completion": "c"}, "'question'"),
        ({"promt": "q", "question": "q", "completion": "c"}, "'promt'"),
        ({"prompt_id": 3, "text": "t", "Answer": "a"}, "'Answer'"),
        (
            {"request": {"messages": CHAT[:1]}, "response": {"choices": [{"message": {"content": "a"}}]}},
            "'request.messages' and 'response.choices.0.message.content'",
        ),
    ],
)
def test_a_column_that_is_meant_can_hold_what_is_sought(record, meant, rows_file):
    (fault,) = faults(rows_file([record]))
    assert fault.endswith(f"did you mean {meant}?"), fault


def test_a_whole_conversation_is_not_offered_as_a_prompt(rows_file):
    (fault,) = faults(rows_file([{"log": {"conversation": CHAT}}]))
    assert "no column 'prompt'" in fault and "did you mean" not in fault


def test_the_remedy_of_another_separator_can_be_written_as_it_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("prompt\tcompletion\nq\ta\n")
    with pytest.raises(UserError) as error:
        read(str(tmp_path / "t.csv"))
    said = re.search(r"data\.table\.delimiter to (\S+) if", str(error.value))[1]
    assert read(str(tmp_path / "t.csv"), table={"delimiter": yaml.safe_load(said)})[0]["completion"] == "a"


def test_groups_and_conversations_are_read_from_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "Why?", "completions": ["a", "b"], "rewards": [0.5, 1.0]}]), path)
    assert texts(read(str(path))) == [("Why?", "a", 0.5), ("Why?", "b", 1.0)]
    pq.write_table(pa.Table.from_pylist([{"messages": CHAT, "reward": 1.0}]), path)
    (row,) = read(str(path))
    assert row["completion"] == "So."
    assert row["where"] == f"{path} row 1"


def test_rows_hold_the_columns_of_the_table(rows_file):
    (row,) = read(rows_file([{"prompt": "a", "completion": "b"}]))
    assert set(row) == set(ROWS_SCHEMA.names)
