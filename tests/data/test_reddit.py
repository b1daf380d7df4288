"""Reddit: a reply to its parent, a body to its title, the rest of a title to its first words; votes are the reward."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from tests.data.adapters import SHARED, faults, messages, needs, read, texts

# The columns of Kaggle's comments_positive.csv and comments_negative.csv.
COMMENT = {
    "id": "c1",
    "parent_id": "t1_p1",
    "subreddit_id": "t5_x",
    "link_id": "t3_y",
    "text": 'Because, "so".\nTwice.',
    "score": "-12",
    "ups": "-12",
    "author": "a",
    "controversiality": "0",
    "parent_link_id": "t3_y",
    "parent_text": "Why? ",
    "parent_score": "3",
    "parent_ups": "3",
    "parent_author": "b",
    "parent_controversiality": "0",
}
POST = {"score": "99", "ups": "150", "downs": "50", "id": "p", "title": "One two three four", "selftext": "Five."}


@pytest.fixture
def table(tmp_path: Path):
    """`table(rows, name)` writes a CSV file and returns its path."""

    def write(rows: list[dict[str, Any]], name: str = "comments_positive.csv") -> str:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / name)

    return write


def test_a_comment_answers_its_parent_and_its_thread_is_the_family(table):
    paths = [table([COMMENT]), table([COMMENT | {"score": "5"}], "comments_negative.csv")]
    rows = read(paths, format="reddit")
    assert texts(rows) == [("Why?\n", 'Because, "so".\nTwice.', -12.0), ("Why?\n", 'Because, "so".\nTwice.', 5.0)]
    assert [(row["family"], row["source"]) for row in rows] == [
        ("t3_y", "comments_positive"),
        ("t3_y", "comments_negative"),
    ]


def test_the_prompt_of_a_comment_is_a_setting(table):
    path = table([COMMENT])
    (row,) = read(path, format="reddit", reddit={"prompt": "{parent_text}<|endoftext|>"})
    assert row["prompt"] == "Why?<|endoftext|>"
    (row,) = read(path, format="reddit", reddit={"style": "chat"})
    assert messages(row) == [("user", "Why?")]


def test_comments_without_text_or_with_a_deleted_one_are_left_out_and_counted(table):
    rows = [COMMENT, COMMENT | {"parent_text": ""}, COMMENT | {"text": "[removed]"}]
    rows.append(COMMENT | {"parent_text": "[deleted]"})
    path = table(rows)
    found = read(path, format="reddit")
    assert len(found) == 1
    assert found.stats["left_out"] == {"without parent_text or text": 1, "whose text was deleted": 2}
    assert len(read(path, format="reddit", reddit={"deleted": "keep"})) == 3


def test_a_post_is_named_by_its_subreddit(table):
    path = table([POST], "Jokes.csv")
    body = read(path, format="reddit", reddit={"completion": "body"})
    assert texts(body) == [("r/Jokes: One two three four\n\n", "Five.", 99.0)]
    title = read(path, format="reddit", reddit={"completion": "title", "split_words": 3})
    assert texts(title) == [("r/Jokes: One two three", " four", 99.0)]
    named = table([POST | {"subreddit": "funny"}], "b.csv")
    (row,) = read(named, format="reddit", reddit={"completion": "title", "split_words": 1})
    assert row["prompt"] == "r/funny: One"


def test_a_title_without_a_rest_is_left_out(table):
    found = read(
        table([POST, POST | {"title": "One two"}], "Jokes.csv"),
        format="reddit",
        reddit={"completion": "title", "split_words": 2},
    )
    assert [row["completion"] for row in found] == [" three four"]
    assert found.stats["left_out"] == {"with a title of at most 2 words": 1}


@pytest.mark.parametrize(
    ("reward", "post", "expected"),
    [
        ("score", {}, 99.0),
        ("ratio", {}, 0.75),
        ("ratio", {"ups": "0", "downs": "0"}, None),
        ("log_score", {}, math.log(100)),
        ("log_score", {"score": "-99"}, -math.log(100)),
        ("log_score", {"score": "0"}, 0.0),
        ("log_score", {"score": ""}, None),
        ("score", {"score": ""}, None),
    ],
)
def test_the_reward_is_made_of_votes(reward, post, expected, table):
    (row,) = read(table([POST | post], "a.csv"), format="reddit", reddit={"completion": "body", "reward": reward})
    assert row["recorded_reward"] == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        ([POST], {}, "no column 'parent_text' for data.reddit.completion: reply (found: downs, id, score"),
        ([COMMENT], {"reward": "ratio"}, "no column 'downs'"),
        ([COMMENT | {"score": "many"}], {}, "'score' is 'many', not a number"),
        ([COMMENT], {"prompt": "{subredit}"}, "no column 'subredit' for the template '{subredit}'"),
    ],
)
def test_a_faulty_comment_says_why(rows, settings, reason, table):
    (found,) = faults(table(rows, "a.csv"), format="reddit", reddit=settings)
    assert reason in found


@needs("reddit")
@pytest.mark.parametrize(("completion", "reward"), [("title", "log_score"), ("body", "ratio")])
def test_the_real_posts_are_read_of_five_subreddits(completion, reward):
    paths = sorted(str(path) for path in (SHARED / "reddit").glob("*.csv.gz"))
    rows = read(paths, format="reddit", reddit={"completion": completion, "reward": reward})
    assert rows.stats["read"] + sum(rows.stats["left_out"].values()) == 5000
    assert (rows.stats["rejected"], rows.stats["without_reward"]) == (0, 0)
    assert rows.stats["read"] > 3000
    assert set(rows.stats["sources"]) == {Path(path).name.removesuffix(".csv.gz") for path in paths}
    assert all(row["prompt"].startswith(f"r/{row['source']}: ") for row in rows)
    rewards = [row["recorded_reward"] for row in rows]
    assert (min(rewards) > 0) and (max(rewards) <= 1 if reward == "ratio" else max(rewards) > math.log(1000))
