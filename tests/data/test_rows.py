"""Readers give the user's rows with their place; splits keep a prompt family on one side."""

import csv
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from leftover.data.files import split_sentences
from leftover.data.formats import read_rows
from leftover.data.rows import Rejects, check_rows
from leftover.data.splits import assign_splits, count_near_duplicates, unique_ids, words_of
from leftover.errors import UserError
from leftover.prepare.rows import row_settings
from leftover.recipe.data_section import DataSection
from leftover.rewards.examples import data_identity

ROWS = [
    {"prompt": "What is 2 + 2?", "completion": " Four.", "reward": 1.0},
    {"prompt": "Who, me?", "completion": ' "Yes", he said.\nTwice.', "reward": -0.5},
]


def read(tmp_path: Path, path: str | list[str], **settings: Any) -> list[dict[str, Any]]:
    """Checked rows of files, as the table would hold them."""
    data = DataSection(path=path, **settings)
    return list(check_rows(read_rows(data), data, Rejects(tmp_path / "rejects"), {}))


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": r["prompt"], "completion": r["completion"], "reward": r["recorded_reward"]} for r in rows]


# Readers.


def test_jsonl_is_read_with_the_line_of_every_row(tmp_path, rows_file):
    path = rows_file([json.dumps(ROWS[0]), "", json.dumps(ROWS[1])])
    rows = read(tmp_path, path)
    assert short(rows) == ROWS
    assert [r["where"] for r in rows] == [f"{path}:1", f"{path}:3"]


def test_a_text_prompt_becomes_a_users_message_where_the_recipe_says_so(tmp_path, rows_file):
    ask = {"role": "user", "content": "Why?"}
    rows = [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "completions": ["So."]},
        {"prompt": [{"role": "system", "content": "Short."}, ask], "completion": "So."},
        {"prompt": " ", "completion": "So."},
    ]
    found = read(tmp_path, rows_file(rows), prompts="chat", on_bad_row="skip")
    assert [json.loads(row["prompt"]) for row in found] == [[ask]] * 4 + [rows[3]["prompt"]]
    assert all(row["conversational"] for row in found) and {row["completion"] for row in found} == {"So.", "No."}
    assert "'prompt' is empty" in (tmp_path / "rejects").read_text()
    (made,) = read(tmp_path, rows_file(rows[:1]), prompts="chat", columns={"prompt": "Q: {prompt}"})
    assert json.loads(made["prompt"]) == [{"role": "user", "content": "Q: Why?"}]


def test_tables_and_rewards_of_before_keep_their_keys_while_prompts_are_texts(rows_file):
    path = rows_file(ROWS)
    for settings in (row_settings, lambda data: data_identity(data)["settings"]):
        assert "prompts" not in settings(DataSection(path=path))
        assert settings(DataSection(path=path, prompts="chat"))["prompts"] == "chat"


def test_gzip_jsonl_is_read_like_the_plain_file(tmp_path, rows_file):
    plain = rows_file(ROWS)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert short(read(tmp_path, str(packed))) == short(read(tmp_path, plain)) == ROWS


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n")
    assert short(read(tmp_path, str(path))) == ROWS


def test_csv_is_read_with_quotes_and_an_absent_score(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion", "reward"])
        writer.writeheader()
        writer.writerows([*ROWS, {"prompt": "No score?", "completion": "None."}])
    rows = read(tmp_path, str(path))
    assert short(rows) == [*ROWS, {"prompt": "No score?", "completion": "None.", "reward": None}]
    assert rows[1]["where"] == f"{path} row 2"


def test_parquet_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert short(read(tmp_path, str(path))) == ROWS


def test_several_files_are_read_in_order_and_max_rows_ends_it(tmp_path, rows_file):
    paths = [rows_file([ROWS[0]], "a.jsonl"), rows_file([ROWS[1]], "b.jsonl")]
    assert short(read(tmp_path, paths)) == ROWS
    assert short(read(tmp_path, paths, max_rows=1)) == ROWS[:1]


def test_columns_of_other_names_are_read(tmp_path, rows_file):
    path = rows_file([{"q": "a?", "a": "b", "thumb": True, "story": 7, "part": "dev"}])
    columns = {"prompt": "q", "completion": "a", "reward": "thumb", "family": "story", "split": "part"}
    (row,) = read(tmp_path, path, columns=columns)
    assert (row["prompt"], row["completion"], row["recorded_reward"]) == ("a?", "b", 1.0)
    assert (row["family"], row["user_split"]) == ("7", "validation")


QUESTIONS = [{"Question": "Why?", "answer": "So."}, {"Question": "How?", "answer": "Thus.", "reward": 1.0}] * 3


def test_a_column_that_every_row_lacks_is_reported_once_with_its_key_and_the_nearest(tmp_path, rows_file):
    path = rows_file(QUESTIONS)
    with pytest.raises(UserError) as refused:
        read(tmp_path, path, columns={"prompt": "question", "completion": "answer"})
    message = str(refused.value)
    assert message.count("no column 'question'") == 1
    assert "6 of 6 rows" in message and f"{path}:1: " in message
    assert "found: Question, answer" in message and "did you mean 'Question'?" in message
    assert "data.columns.prompt" in message


def test_a_prompt_column_that_pairs_lack_is_reported_with_the_columns_of_the_file(tmp_path, rows_file):
    path = rows_file([{"Question": "Why?", "chosen": "So.", "rejected": "No."}] * 3)
    with pytest.raises(UserError) as refused:
        read(tmp_path, path, columns={"prompt": "question"})
    message = str(refused.value)
    assert message.count("no column 'question'") == 1
    assert "found: Question, chosen, rejected" in message and "did you mean 'Question'?" in message
    assert "data.columns" in message


@pytest.mark.parametrize(("text", "number"), [("0.7", 0.7), (" -1e-3 ", -0.001), ("true", 1.0), ("5", 5.0)])
def test_a_score_that_json_holds_as_text_is_the_number_it_spells(text, number, tmp_path, rows_file):
    (row,) = read(tmp_path, rows_file([ROWS[0] | {"reward": text}]))
    assert row["recorded_reward"] == number


def test_a_pair_without_a_prompt_counts_as_two_faulty_rows(tmp_path, rows_file):
    """So that `max_rows`, which counts what was read, takes the same rows as ever."""
    lost, whole = ({name: "a text", "chosen": "So.", "rejected": "No."} for name in ("question", "prompt"))
    data, stats = DataSection(path=rows_file([lost, whole, whole]), on_bad_row="skip", max_rows=4), {}
    rows = list(check_rows(read_rows(data), data, Rejects(tmp_path / "rejects"), stats))
    assert [row["completion"] for row in rows] == ["So.", "No."]
    assert (stats["read"], stats["rejected"]) == (4, 2)
    assert [json.loads(line)["where"][-8:] for line in (tmp_path / "rejects").open()] == ["1 chosen", "rejected"]


def test_a_column_that_some_rows_lack_is_reported_with_their_places(tmp_path, rows_file):
    path = rows_file([*ROWS, {"prompt": "Hello"}, {"prompt": "Bye"}])
    with pytest.raises(UserError) as refused:
        read(tmp_path, path)
    message = str(refused.value)
    assert "2 of 4 rows" in message
    assert all(f"{path}:{line}: no column 'completion'" in message for line in (3, 4))
    assert "data.columns.completion" in message


def test_documents_are_cut_into_sentences_of_prompt_and_completion(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text(
        'One. Two! "Three?" Four. Five.\nSix. Seven.\n<|endoftext|>\nA. B. C.\n<|endoftext|>\nD. E. F. G.\n'
    )
    rows = read(tmp_path, str(path), format="documents", documents={"prompt_sentences": 3, "completion_sentences": 1})
    assert [(r["prompt"], r["completion"]) for r in rows] == [
        ('One. Two! "Three?"', " Four."),
        ("D. E. F.", " G."),
    ]
    assert [r["family"] for r in rows] == ["stories.txt#1", "stories.txt#3"]
    overlapping = read(tmp_path, str(path), format="documents", documents={"stride": 1})
    assert [r["completion"] for r in overlapping] == [" Four.", " Five.", " Six.", " Seven.", " G."]


def test_sentences_keep_the_quotes_that_close_them():
    assert split_sentences("“Go.” He went.\n\n(Away!) Then?") == ["“Go.”", "He went.", "(Away!)", "Then?"]


HH_ROW = {
    "prefix": [["<|prompter|>Hi", "<|assistant|>Hello", "<|prompter|>How?", "<|assistant|>"]] * 2,
    "suffix": ["So.", "No."],
    "reward": [0.5, -1.25],
}


def test_helpful_and_harmless_rows_become_two_rows_of_one_group(tmp_path, rows_file):
    rows = read(tmp_path, rows_file([HH_ROW], "test_helpful.jsonl"), format="hh")
    assert [json.loads(r["prompt"]) for r in rows] == [
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "How?"},
        ]
    ] * 2
    assert [r["completion"] for r in rows] == ["So.", "No."]
    assert [r["recorded_reward"] for r in rows] == [0.5, -1.25]
    assert [r["is_chosen"] for r in rows] == [True, False]
    assert [r["conversational"] for r in rows] == [True, True]
    assert unique_ids([r["prompt"] for r in rows]).tolist() == [0, 0]
    assert {r["family"] for r in rows} == {"Hi"}


def test_helpful_and_harmless_rows_on_the_authors_list_are_left_out(tmp_path, rows_file):
    listing = tmp_path / "bad.json"
    listing.write_text(json.dumps({"helpful.json": [0, 2]}))
    path = rows_file([HH_ROW] * 4, "test_helpful.jsonl")
    rows = read(tmp_path, path, format="hh", drop_listed=str(listing))
    assert [r["where"] for r in rows] == [f"{path}:{line} completion {i}" for line in (2, 4) for i in (0, 1)]


@pytest.mark.parametrize("content", [None, "{"])
def test_a_faulty_list_of_bad_rows_is_named(content, tmp_path, rows_file):
    listing = tmp_path / "bad.json"
    if content:
        listing.write_text(content)
    with pytest.raises(UserError, match=r"bad\.json' \(key data\.drop_listed\)"):
        read(tmp_path, rows_file([HH_ROW]), format="hh", drop_listed=str(listing))


@pytest.mark.parametrize(
    "fault",
    [
        {"suffix": ["one"]},
        {"prefix": [["Hi"]] * 2},
        {"prefix": [[1, 2]] * 2},
        {"reward": [1.0]},
        {"prefix": 3},
    ],
)
def test_a_row_that_is_not_of_the_helpful_and_harmless_form_is_named(fault, tmp_path, rows_file):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*\(prefix, suffix, reward\)"):
        read(tmp_path, rows_file([HH_ROW | fault]), format="hh")


def test_a_chosen_and_rejected_pair_becomes_two_rows_of_one_group(tmp_path, rows_file):
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_score": 2, "rejected_reward": -1}
    rows = read(tmp_path, rows_file([pair]))
    assert short(rows) == [
        {"prompt": "Why?", "completion": "So.", "reward": 2.0},
        {"prompt": "Why?", "completion": "No.", "reward": -1.0},
    ]
    assert [r["is_chosen"] for r in rows] == [True, False]
    assert [r["where"].rpartition(" ")[2] for r in rows] == ["chosen", "rejected"]
    assert unique_ids([r["prompt"] for r in rows]).tolist() == [0, 0]


def test_a_pair_without_scores_says_which_is_better_and_no_more(tmp_path, rows_file):
    rows = read(tmp_path, rows_file([{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]))
    assert [r["recorded_reward"] for r in rows] == [1.0, 0.0]


def test_a_pair_with_a_score_for_one_side_gives_the_other_none(tmp_path, rows_file):
    rows = read(tmp_path, rows_file([{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_score": 3}]))
    assert [r["recorded_reward"] for r in rows] == [3.0, None]


def test_an_empty_text_is_no_score(tmp_path, rows_file):
    """As Python's own CSV reader gives an empty cell."""
    rows = [{"prompt": "Why?", "completion": "So.", "reward": value} for value in ("", " ", "0.5")]
    assert [row["recorded_reward"] for row in read(tmp_path, rows_file(rows))] == [None, None, 0.5]


def test_a_pair_with_one_score_for_both_is_refused(tmp_path, rows_file):
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "reward": 1.0}
    with pytest.raises(UserError, match="give chosen_reward and rejected_reward"):
        read(tmp_path, rows_file([pair]))


def test_a_pair_with_columns_of_other_names_is_read(tmp_path, rows_file):
    pair = {"question": "Why?", "chosen": "So.", "rejected": "No.", "chosen_score": 2, "rejected_score": 1}
    columns = {"prompt": "question", "completion": "answer", "reward": "score"}
    rows = read(tmp_path, rows_file([pair]), columns=columns)
    assert [(r["prompt"], r["completion"], r["recorded_reward"]) for r in rows] == [
        ("Why?", "So.", 2.0),
        ("Why?", "No.", 1.0),
    ]


def test_a_pair_of_conversations_parts_its_last_turn_from_the_shared_prompt(tmp_path, rows_file):
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]

    names = {"prompt": "question", "completion": "answer"}
    rows = read(tmp_path, rows_file([{"chosen": turns("So."), "rejected": turns("No.")}]), columns=names)
    assert [json.loads(r["prompt"]) for r in rows] == [turns("So.")[:1]] * 2
    assert [r["completion"] for r in rows] == ["So.", "No."]


def test_conversational_prompts_and_completions_are_read_beside_plain_ones(tmp_path, rows_file):
    chat = [{"role": "user", "content": "Hé?"}]
    answer = [{"role": "assistant", "content": "Oui."}]
    rows = read(tmp_path, rows_file([{"prompt": chat, "completion": answer}, ROWS[0]]))
    assert [r["conversational"] for r in rows] == [True, False]
    assert json.loads(rows[0]["prompt"]) == chat
    assert rows[0]["completion"] == "Oui."
    assert rows[0]["recorded_reward"] is None


# Splits.


def columns(families: list[str], prompts: list[str] | None = None, splits: list[str | None] | None = None) -> Any:
    import datasets

    return datasets.Dataset.from_dict(
        {
            "prompt": prompts or families,
            "family": families,
            "user_split": splits or [None] * len(families),
        }
    )


DATA = DataSection(path="rows.jsonl")


def test_a_family_stays_on_one_side_of_every_split():
    families = [f"story {i // 8}" for i in range(400)]
    out = assign_splits(columns(families, [f"prompt {i}" for i in range(400)]), DATA, seed=0)
    sides: dict[str, set[str]] = {}
    for family, split in zip(families, out["split"], strict=True):
        sides.setdefault(family, set()).add(str(split))
    assert all(len(found) == 1 for found in sides.values())
    # A tenth of 50 families each: 5, of 8 rows.
    assert {name: int((out["split"] == name).sum()) for name in ("train", "validation", "test")} == {
        "train": 320,
        "validation": 40,
        "test": 40,
    }
    assert len(np.unique(out["group"])) == 400
    assert len(np.unique(out["family_id"])) == 50


def test_another_seed_splits_otherwise_and_the_same_seed_alike():
    rows = columns([f"story {i}" for i in range(100)])
    first, again, other = (assign_splits(rows, DATA, seed)["split"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_most_families_keep_their_split_when_rows_are_added():
    few = assign_splits(columns([f"story {i}" for i in range(1000)]), DATA, seed=0)["split"]
    # Added in front, so that a split by position would move.
    more = assign_splits(columns([f"new {i}" for i in range(100)] + [f"story {i}" for i in range(1000)]), DATA, 0)
    kept = (few == more["split"][100:]).mean()
    # Only families near one of the two borders move; drawn anew, 0.8^2 + 2 * 0.1^2 = 66 % would agree.
    assert kept > 0.95


def test_the_order_of_rows_does_not_change_the_split():
    families = [f"story {i}" for i in range(100)]
    forward = assign_splits(columns(families), DATA, seed=0)["split"]
    backward = assign_splits(columns(families[::-1]), DATA, seed=0)["split"]
    assert (forward == backward[::-1]).all()


def test_splits_of_the_user_are_taken_and_a_family_across_them_is_said(caplog):
    splits = ["train", "train", "validation", "test", "test"]
    with caplog.at_level(logging.WARNING, "leftover"):
        out = assign_splits(columns(["a", "b", "c", "d", "e"], splits=splits), DATA, seed=0)
        assert out["split"].tolist() == splits
        assert not caplog.records
        assign_splits(columns(["a", "b", "b", "d", "a"], splits=splits), DATA, seed=0)
    assert "2 prompt families" in caplog.text


def test_splits_given_for_some_rows_only_are_refused():
    with pytest.raises(UserError, match=r"1 of 3 rows have no 'split': .* --no-splits.*columns\.split: null"):
        assign_splits(columns(["a", "b", "c"], splits=["train", None, "test"]), DATA, seed=0)


def test_a_split_without_rows_is_refused():
    with pytest.raises(UserError, match="the test split has no row"):
        assign_splits(columns(["a", "b"], splits=["train", "validation"]), DATA, seed=0)


def test_held_out_prompts_that_nearly_repeat_a_training_prompt_are_counted():
    # Shingles of 3 words; 20 words have 18 of them. One other word at the end: 17 shared of 19, 0.89.
    words = [f"w{i}" for i in range(20)]
    prompts = [
        " ".join(words),
        " ".join([*words[:-1], "other"]),
        " ".join(words).upper() + "!",
        "quite another prompt",
    ]
    splits = np.array(["train", "test", "validation", "test"])
    assert count_near_duplicates(prompts, splits) == 2
    # One other word in the middle breaks three shingles: 15 shared of 21, 0.71.
    middle = " ".join([*words[:9], "other", *words[10:]])
    assert count_near_duplicates([prompts[0], middle], np.array(["train", "test"])) == 0


def test_a_greeting_before_a_conversation_is_a_near_repeat_as_before_a_text():
    asked = ["why does my orchid have drooping stems?", "Hello! why does my orchid have drooping stems?"]
    said = [json.dumps([{"role": "user", "content": text}]) for text in asked]
    for prompts, conversational in ((asked, False), (said, True)):
        rows = Dataset.from_dict({"prompt": prompts, "conversational": [conversational] * 2})
        assert words_of(rows) == asked
        assert count_near_duplicates(words_of(rows), np.array(["train", "test"])) == 1


def test_ids_count_texts_in_the_order_of_their_first_appearance():
    assert unique_ids(["z", "a", "z", "m", "a", ""]).tolist() == [0, 1, 0, 2, 1, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "completion": "b", "reward": ' + "9" * 5000 + "}", "a number has too many digits"),
        ('{"prompt": "a", "completion": "b", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "it is nested too deeply"),
    ],
)
def test_a_line_beyond_what_json_readers_take_is_a_faulty_row(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), line, json.dumps(ROWS[1])]) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl:2.*malformed JSON: {reason}"):
        read(tmp_path, str(path))
    assert len(read(tmp_path, str(path), on_bad_row="skip")) == 2
    whole = tmp_path / "rows.json"
    whole.write_text(f"[{line}]")
    with pytest.raises(UserError, match=rf"rows\.json: malformed JSON: {reason}"):
        read(tmp_path, str(whole))


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_longer_than_any_row_is_refused_before_it_is_held(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftover.data.files.LONGEST_LINE", 2**20)
    content = json.dumps(ROWS[0]).encode() + b"\n" + b" " * 2**24
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=r"rows\.jsonl.*:2: a line of more than 1 MiB"):
        read(tmp_path, str(path))


def test_half_a_line_of_rejected_rows_is_forgotten(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejected_rows.jsonl")
    rejects.add("rows", "a:1", "empty", {"prompt": "x"})
    rejects.add("tokens", "a:2", "too long", {"prompt": "y"})
    with rejects.path.open("a") as file:
        file.write('{"stage": "rows", "where": "a:3", "rea')
    rejects.start("rows")
    [kept] = rejects.path.read_text().splitlines()
    assert json.loads(kept)["where"] == "a:2"
