"""Knowledge-grounded dialogue: knowledge and history ask for the reply, in every published form."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.adapters import SHARED, faults, messages, needs, read, texts

BEGIN_LABELS = {"Fully attributable": 1, "Generic": 0.5, "Not fully attributable": 0}


def turn(speaker: str, text: str, **checked: str) -> dict[str, Any]:
    if "Apprentice" in speaker:
        return {"speaker": speaker, "text": text, "retrieved_passages": [], "retrieved_topics": []}
    return {"speaker": speaker, "text": text, "checked_sentence": checked, "checked_passage": {"p": "Tea"}}


# ParlAI's train.json: the wizard may begin, and may use no passage, or have been shown none.
WIZARD = {
    "chosen_topic": "Tea",
    "persona": "I drink tea.",
    "wizard_eval": 5,
    "dialog": [
        turn("0_Wizard", "I like tea.", self_Tea_0="Tea is a drink."),
        turn("1_Apprentice", "Which?"),
        turn("0_Wizard", "Green. ", self_Tea_1="Green tea is from China."),
        turn("1_Apprentice", "And?"),
        turn("0_Wizard", "Nothing.", no_passages_used="no_passages_used"),
        turn("1_Apprentice", "Oh."),
        turn("0_Wizard", "Well."),
        turn("1_Apprentice", "Bye."),
        turn("0_Wizard", "Tea ho!", self_Tea_2="Tea was shipped."),
    ],
}
FAITHFUL = {
    "dialog_idx": 7,
    "response": "Green tea is from China.",
    "original_response": "I drink it daily.",
    "history": ["Hello", "Hi", "Which tea?"],
    "knowledge": "Green tea is from China.",
    "BEGIN": ["Hallucination"],
    "VRM": ["Disclosure"],
}


@pytest.fixture
def json_file(tmp_path: Path):
    """`json_file(content, name)` writes one JSON document and returns its path."""

    def write(content: Any, name: str = "train.json") -> str:
        (tmp_path / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return str(tmp_path / name)

    return write


def dialogue(path: Any, **settings: Any):
    return read(path, format="dialogue", dialogue=settings)


def test_the_wizards_turns_are_replies_to_all_turns_before_them(json_file):
    path = json_file([WIZARD])
    rows = dialogue(path)
    assert [row["completion"] for row in rows] == ["Green.", "Tea ho!"]
    assert messages(rows[0]) == [
        ("system", "Knowledge: Green tea is from China."),
        ("assistant", "I like tea."),
        ("user", "Which?"),
    ]
    # Turns without knowledge are history all the same.
    assert [content for _, content in messages(rows[1])] == [
        "Knowledge: Tea was shipped.",
        *(turn["text"].strip() for turn in WIZARD["dialog"][:-1]),
    ]
    assert [row["family"] for row in rows] == ["train#0"] * 2
    assert [row["where"] for row in rows] == [f"{path} record 1 reply 2", f"{path} record 1 reply 5"]
    assert rows.stats["left_out"] == {
        "without knowledge (data.dialogue.without_knowledge: drop)": 2,
        "that open a conversation (data.dialogue.without_history: drop)": 1,
    }


def test_replies_without_knowledge_or_history_may_be_kept(json_file):
    rows = dialogue(json_file([WIZARD]), without_knowledge="keep", without_history="keep")
    assert [row["completion"] for row in rows] == ["I like tea.", "Green.", "Nothing.", "Well.", "Tea ho!"]
    assert [messages(row)[0][0] for row in rows] == ["system", "system", "assistant", "assistant", "system"]


def test_as_text_every_part_ends_in_the_separator(json_file):
    path = json_file([WIZARD])
    rows = dialogue(path, style="text", max_history_turns=2)
    assert texts(rows) == [
        ("Knowledge: Green tea is from China.<|endoftext|>I like tea.<|endoftext|>Which?<|endoftext|>", "Green.", None),
        ("Knowledge: Tea was shipped.<|endoftext|>Well.<|endoftext|>Bye.<|endoftext|>", "Tea ho!", None),
    ]
    (row, _) = dialogue(path, style="text", separator="\n", knowledge="On {chosen_topic}: {knowledge}")
    assert row["prompt"] == "On Tea: Green tea is from China.\nI like tea.\nWhich?\n"


def test_sentences_that_share_one_type_are_told_apart(tmp_path):
    # In Arrow every turn has the keys of all the others, empty.
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([WIZARD]), tmp_path / "train.parquet")
    rows = dialogue(str(tmp_path / "train.parquet"))
    assert [messages(row)[0][1] for row in rows] == [
        "Knowledge: Green tea is from China.",
        "Knowledge: Tea was shipped.",
    ]


def test_wizard_of_wikipedia_as_parallel_lists_is_read(rows_file):
    row = {
        "post": ["Tea", "Which?", "And?"],
        "response": ["I like tea.", "Green.", "Nothing."],
        "knowledge": [
            ["no_passages_used __knowledge__ no_passages_used", "Tea __knowledge__ Tea is a drink."],
            ["Tea __knowledge__ Green tea is from China."],
            ["no_passages_used __knowledge__ no_passages_used"],
        ],
        "labels": [1, 0, 0],
    }
    rows = dialogue(rows_file([row]))
    assert [(row["completion"], messages(row)) for row in rows] == [
        ("I like tea.", [("system", "Knowledge: Tea is a drink."), ("user", "Tea")]),
        (
            "Green.",
            [
                ("system", "Knowledge: Green tea is from China."),
                ("user", "Tea"),
                ("assistant", "I like tea."),
                ("user", "Which?"),
            ],
        ),
    ]
    assert sum(rows.stats["left_out"].values()) == 1


def test_faithdial_is_read_from_its_files_and_from_its_flat_form(json_file, rows_file):
    utterance = {name: value for name, value in FAITHFUL.items() if name != "dialog_idx"}
    nested = dialogue(json_file([{"utterances": [utterance | {"speaker": "Wizard"}], "dialog_idx": 7}]))
    flat = dialogue(rows_file([FAITHFUL], "train.jsonl"))
    assert messages(flat[0]) == [
        ("system", "Knowledge: Green tea is from China."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Which tea?"),
    ]
    for name in ("prompt", "completion", "family", "recorded_reward"):
        assert [row[name] for row in nested] == [row[name] for row in flat]
    assert flat[0]["family"] == "train#7"
    assert flat[0]["completion"] == FAITHFUL["response"]


def test_the_turn_before_a_reply_is_the_users_whoever_began(rows_file):
    (row,) = dialogue(rows_file([FAITHFUL | {"history": ["Hello", "Which tea?"]}]))
    assert messages(row)[1:] == [("assistant", "Hello"), ("user", "Which tea?")]


def test_the_reply_before_it_was_edited_is_another_completion(rows_file):
    path = rows_file([FAITHFUL, FAITHFUL | {"original_response": None}])
    assert [row["completion"] for row in dialogue(path, response="original")] == [
        FAITHFUL["original_response"],
        FAITHFUL["response"],
    ]
    both = dialogue(path, response="both")
    assert [(row["completion"], row["is_chosen"]) for row in both] == [
        (FAITHFUL["response"], True),
        (FAITHFUL["original_response"], False),
        (FAITHFUL["response"], True),
    ]
    assert len({row["prompt"] for row in both}) == 1


def test_both_data_sets_are_read_in_one_run_and_kept_apart_by_source(json_file, rows_file):
    rows = dialogue([json_file([WIZARD], "wow.json"), rows_file([FAITHFUL], "faithdial.jsonl")])
    assert [(row["source"], row["family"]) for row in rows] == [
        ("wow", "wow#0"),
        ("wow", "wow#0"),
        ("faithdial", "faithdial#7"),
    ]


def test_topical_chat_is_read_with_the_ratings_of_its_turns(json_file):
    said = [("agent_1", "Tea?", "Good"), ("agent_2", ["Yes.", "You?"], "Poor"), ("agent_1", "Too.", "Excellent")]
    content = [{"agent": a, "message": m, "turn_rating": r, "knowledge_source": ["FS1"]} for a, m, r in said]
    rows = read(
        json_file({"t_1": {"article_url": "", "config": "C", "content": content}}, "valid_freq.json"),
        format="dialogue",
        dialogue={"without_knowledge": "keep"},
        columns={"reward": "turn_rating"},
        labels={"Poor": 0, "Good": 3, "Excellent": 4},
    )
    assert [(row["completion"], row["recorded_reward"]) for row in rows] == [("Yes. You?", 0.0), ("Too.", 4.0)]
    assert messages(rows[1]) == [("assistant", "Tea?"), ("user", "Yes. You?")]
    assert [row["family"] for row in rows] == ["valid_freq#t_1"] * 2


def test_a_flat_table_is_read_with_its_labels_and_its_passages_are_families(tmp_path):
    path = tmp_path / "begin.tsv"
    path.write_text(
        "model_name\tknowledge\tmessage\tresponse\tbegin_label\r\n"
        'gpt2\tTea "is" a drink.\t"Which?\tGreen.\tGeneric\r\n'
        "t5\ttea is a drink .\twhy?\tGreen.\tGeneric\r\n"
        "t5\tTea.\t\tGreen.\tGeneric\r\n"
    )
    rows = read(str(path), format="dialogue", columns={"reward": "begin_label"}, labels=BEGIN_LABELS)
    read_as = ("Green.", 0.5, "tea is a drink")
    assert [(row["completion"], row["recorded_reward"], row["family"]) for row in rows] == [read_as] * 2
    assert messages(rows[0]) == [("system", 'Knowledge: Tea "is" a drink.'), ("user", '"Which?')]
    assert rows.stats["left_out"] == {"that open a conversation (data.dialogue.without_history: drop)": 1}


def test_the_knowledge_can_be_what_rewards_compare_with(rows_file):
    (row,) = read(rows_file([FAITHFUL]), format="dialogue", columns={"answer": "knowledge"})
    assert row["answer"] == FAITHFUL["knowledge"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "dialog (Wizard of Wikipedia)"),
        ({"dialog": "Hi"}, "'dialog' is not a list of turns: 'Hi'"),
        ({"dialog": [{"speaker": "Wizard"}]}, "no column 'text' (found: speaker)"),
        ({"dialog": [turn("2_Judge", "Hm.")]}, "'2_Judge'"),
        ({"utterances": [3]}, "'utterances' is not a list of turns"),
        ({"content": [{"agent": "agent_1", "message": None}]}, "'message' is not a text: None"),
        ({"post": ["a"], "response": ["b"], "knowledge": [], "labels": [0]}, "lists of unequal length"),
        (FAITHFUL | {"history": [None]}, "'history' is not a list"),
        (FAITHFUL | {"response": " "}, "'completion' is empty"),
        ({"response": "a", "message": "b"}, "no column 'knowledge' (found: message, response)"),
        ({"response": "a", "knowledge": "b"}, "no column 'message' (found: knowledge, response)"),
    ],
)
def test_a_faulty_dialogue_says_why(row, reason, rows_file):
    (found,) = faults(rows_file([row]), format="dialogue")
    assert reason in found


def test_a_dialogue_with_one_faulty_turn_gives_no_rows(json_file):
    broken = WIZARD | {"dialog": [*WIZARD["dialog"], turn("1_Nobody", "x")]}
    rows = dialogue(json_file([broken, WIZARD]))
    assert {row["family"] for row in rows} == {"train#1"}
    assert len(rows.reasons) == 1


@needs("knowledge")
@pytest.mark.parametrize("style", ["chat", "text"])
def test_the_real_responses_are_read_with_their_labels(style):
    counts = {"begin_test_wow": 3607, "begin_dev_cmu": 416}
    rows = read(
        [str(SHARED / "knowledge" / f"{name}.tsv.gz") for name in counts],
        format="dialogue",
        dialogue={"style": style},
        columns={"reward": "begin_label"},
        labels=BEGIN_LABELS,
    )
    left_out = sum(rows.stats["left_out"].values())
    assert (rows.stats["read"] + left_out, rows.stats["rejected"]) == (sum(counts.values()), 0)
    assert left_out == 2, "two messages are empty"
    assert {row["recorded_reward"] for row in rows} == {0.0, 0.5, 1.0}
    assert sum(row["recorded_reward"] == 1 for row in rows) == 1392 + 59
    assert set(rows.stats["sources"]) == set(counts)
    assert 1000 < len({row["family"] for row in rows}) < 1489 + 180, "fewer than the passages' spellings"
    if style == "text":
        assert all(row["prompt"].count("<|endoftext|>") == 2 for row in rows)
