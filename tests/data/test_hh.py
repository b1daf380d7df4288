"""Helpful and Harmless: Anthropic's transcripts and PRO's form give the same kind of rows; the sets stay apart."""

import json
import logging

import pytest

from leftover.data.hh import parse_transcript
from leftover.errors import UserError
from tests.data.adapters import SHARED, faults, messages, needs, read

OPENING = "\n\nHuman: Hi\n\nAssistant: Hello there\n\nHuman: How?\n\nAssistant:"
PAIR = {"chosen": f"{OPENING} So.", "rejected": f"{OPENING} No. "}
PRO = {
    "prefix": [["<|prompter|>Hi", "<|assistant|>Hello there", "<|prompter|>How?", "<|assistant|>"]] * 2,
    "suffix": ["So.", "No."],
    "reward": [0.5, -1.25],
    "meta": {"path": "raw/harmless-base/dev.jsonl", "line_num": 3, "task": "dialogue"},
}


def test_a_pair_of_transcripts_becomes_two_rows_of_one_prompt(rows_file):
    path = rows_file([PAIR], "harmless.jsonl")
    rows = read(path, format="hh")
    assert [messages(row) for row in rows] == [
        [("user", "Hi"), ("assistant", "Hello there"), ("user", "How?")],
    ] * 2
    assert [(r["completion"], r["recorded_reward"], r["is_chosen"]) for r in rows] == [
        ("So.", 1.0, True),
        ("No.", 0.0, False),
    ]
    assert [row["family"] for row in rows] == ["Hi", "Hi"]
    assert [row["where"] for row in rows] == [f"{path}:1 chosen", f"{path}:1 rejected"]


def test_both_forms_give_the_same_prompt_and_family(rows_file):
    transcript, *_, pro = read([rows_file([PAIR], "a.jsonl"), rows_file([PRO], "b.jsonl")], format="hh")
    assert (transcript["prompt"], transcript["family"]) == (pro["prompt"], pro["family"])


def test_scores_beside_transcripts_are_taken(rows_file):
    rows = read(rows_file([PAIR | {"chosen_score": 3, "rejected_score": -2, "split": "test"}]), format="hh")
    assert [(row["recorded_reward"], row["user_split"]) for row in rows] == [(3.0, "test"), (-2.0, "test")]


def test_a_turn_may_hold_several_paragraphs_and_be_empty():
    assert parse_transcript("\n\nHuman: One.\n\nTwo: a\n\nAssistant:\n\nHuman: \n\nAssistant: Three") == [
        {"role": "user", "content": "One.\n\nTwo: a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "Three"},
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            {"rejected": "\n\nHuman: Hi\n\nAssistant: Hello you\n\nHuman: How?\n\nAssistant: No."},
            "from turn 2 on (of 4 and 4)",
        ),
        (
            {"rejected": "\n\nHuman: Hi\n\nAssistant: Hello there"},
            "from turn 3 on (of 4 and 2)",
        ),
        ({"chosen": "\n\nHuman: Hi"}, "'chosen' does not end in"),
        ({"rejected": "\n\nAssistant: Hi"}, "'rejected' has no turn before"),
        ({"chosen": "Hi"}, "neither Human: nor Assistant:"),
        ({"rejected": OPENING}, "'completion' is empty"),
        ({"chosen": 3}, "(prefix, suffix, reward)"),
    ],
)
def test_a_faulty_pair_of_transcripts_says_why(fault, reason, rows_file):
    (found,) = faults(rows_file([PAIR | fault]), format="hh")
    assert reason in found


def test_a_row_says_which_set_it_is_of(rows_file):
    alone = rows_file([PRO], "dev_sampled.jsonl")
    assert [row["source"] for row in read(alone, format="hh")] == ["harmless-base"] * 2
    several = read([alone, rows_file([PRO], "test_helpful_base.jsonl")], format="hh")
    assert [row["source"] for row in several[::2]] == ["dev_sampled", "test_helpful_base"]


def test_rows_on_the_list_are_counted(rows_file, tmp_path):
    listing = tmp_path / "bad.json"
    listing.write_text(json.dumps({"helpful.json": [0, 2, 9]}))
    paths = [rows_file([PRO] * 4, "test_helpful.jsonl"), rows_file([PRO], "dev.jsonl")]
    rows = read(paths, format="hh", drop_listed=str(listing))
    assert rows.stats["left_out"] == {"on the list of data.drop_listed": 2}
    assert rows.stats["sources"] == {"test_helpful": 4, "dev": 2}
    assert rows.stats["read"] == 6


def test_a_list_that_names_none_of_the_files_is_refused(rows_file, tmp_path):
    listing = tmp_path / "bad.json"
    listing.write_text(json.dumps({"helpful.json": [0]}))
    with pytest.raises(UserError, match=r"data\.drop_listed\) names none of the files .*helpful\.json"):
        read(rows_file([PRO], "mine.jsonl"), format="hh", drop_listed=str(listing))


def test_a_run_says_how_many_rows_the_list_drops(tmp_path, tiny_recipe, rows_file, caplog):
    from leftover.prepare.rows import read as read_stage
    from leftover.recipe.files import make_recipe
    from leftover.runs.claim import open_run

    listing = tmp_path / "bad.json"
    listing.write_text(json.dumps({"helpful.json": [1]}))
    data = {"path": rows_file([PRO] * 2, "helpful.jsonl"), "format": "hh", "drop_listed": str(listing)}
    run = open_run(make_recipe(tiny_recipe(tmp_path, data=data)))
    with caplog.at_level(logging.INFO, "leftover"):
        read_stage(run)
    assert "rows: 1 dropped" in caplog.text
    assert json.loads((run.folder / "prepare.json").read_text())["rows"]["left_out"] == {
        "on the list of data.drop_listed": 1
    }
    assert run.table.open("rows")["source"][:] == ["harmless-base"] * 2


@needs("hh")
def test_the_real_files_give_two_rows_a_comparison_less_the_listed_and_empty_ones():
    folder = SHARED / "hh"
    counts = {"helpful_base": 2354, "harmless_base": 2312}
    paths = [str(folder / f"test_{name}.jsonl.gz") for name in counts]
    rows = read(paths, format="hh", drop_listed=str(folder / "bad_test_indices.json"))
    listed = {name: len(json.loads((folder / "bad_test_indices.json").read_text())[f"{name}.json"]) for name in counts}
    assert rows.stats["left_out"] == {"on the list of data.drop_listed": sum(listed.values())}
    assert rows.stats["read"] == sum(2 * (counts[name] - listed[name]) for name in counts)
    assert set(rows.reasons) == {"'completion' is empty"}
    assert set(rows.stats["sources"]) == {f"test_{name}" for name in counts}
    assert sum(row["is_chosen"] for row in rows) == pytest.approx(len(rows) / 2, abs=rows.stats["rejected"])
    assert len({row["family"] for row in rows}) < len({row["prompt"] for row in rows})
    # The reward agrees with people in 56 to 66 % of rows.
    by_prompt: dict[str, dict[bool, float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], {})[row["is_chosen"]] = row["recorded_reward"]
    agrees = [pair[True] > pair[False] for pair in by_prompt.values() if len(pair) == 2]
    assert 0.56 < sum(agrees) / len(agrees) < 0.66


@needs("hh")
def test_the_real_development_rows_name_the_set_they_were_drawn_from():
    rows = read(str(SHARED / "hh/dev_sampled.jsonl.gz"), format="hh")
    assert rows.stats["read"] == 560
    assert set(rows.stats["sources"]) == {
        "harmless-base",
        "helpful-base",
        "helpful-online",
        "helpful-rejection-sampled",
    }
