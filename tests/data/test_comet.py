"""Commonsense triples: head and relation ask for the tail; what is no tail is left out by a declared rule."""

import gzip
from typing import Any

import pytest

from leftover.data.splits import assign_splits
from leftover.errors import UserError
from tests.data.adapters import SHARED, faults, needs, read, texts

# ATOMIC-2020: no header line.
ATOMIC = (
    "PersonX eats\txNeed\tto cook\r\nPersonX eats\txWant\tnone\nPersonX sings\toReact\t\nbread\tObjectUse\teat it\n"
)
# ATOMIC-10x: its critic's score, and whether that is above the cut of a recall.
ATOMIC_10X = {
    "head": "PersonX eats",
    "relation": "xNeed",
    "tail": " to cook",
    "split": "val",
    "rec_0.5": True,
    "rec_0.8": False,
    "p_valid_model": 0.75,
}


@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
def test_atomic_2020_is_read_without_a_header_line(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(ATOMIC.encode()) if name.endswith("gz") else ATOMIC.encode())
    rows = read(str(path), format="comet")
    assert texts(rows) == [
        ("PersonX eats xNeed [GEN]", " to cook", None),
        ("bread ObjectUse [GEN]", " eat it", None),
    ]
    assert [row["family"] for row in rows] == ["PersonX eats", "bread"]
    assert [row["where"] for row in rows] == [f"{path}:1", f"{path}:4"]
    assert rows.stats["left_out"] == {"with the tail 'none'": 1, "with an empty tail": 1}


def test_atomic_2020_with_a_header_line_is_read_as_well(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("tail\trelation\thead\nto cook\txNeed\tPersonX eats\n")
    assert texts(read(str(path), format="comet")) == [("PersonX eats xNeed [GEN]", " to cook", None)]


def test_atomic_10x_is_read_with_its_critics_score_and_splits(rows_file):
    (row,) = read(rows_file([ATOMIC_10X]), format="comet")
    assert texts([row]) == [("PersonX eats xNeed [GEN]", " to cook", 0.75)]
    assert row["user_split"] == "validation"


def test_the_words_around_a_triple_are_settings(rows_file):
    template = "<head> {head} </head> <relation> {relation} </relation> [GEN]"
    comet = {"prompt": template, "completion": " {tail} ({rec_0.5})"}
    (row,) = read(rows_file([ATOMIC_10X]), format="comet", comet=comet)
    assert row["prompt"] == "<head> PersonX eats </head> <relation> xNeed </relation> [GEN]"
    assert row["completion"] == " to cook (True)"


def test_another_column_may_hold_the_score(rows_file):
    path = rows_file([ATOMIC_10X | {"reward": 0.25, "mine": "0.5"}])
    assert [r["recorded_reward"] for r in read(path, format="comet")] == [0.25]
    assert [r["recorded_reward"] for r in read(path, format="comet", comet={"score": "mine"})] == [0.5]
    assert [r["recorded_reward"] for r in read(path, format="comet", columns={"reward": "rec_0.8"})] == [0.0]
    (found,) = faults(path, format="comet", comet={"score": "scores"})
    assert "no column 'scores'" in found


def test_relations_may_be_chosen(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(ATOMIC)
    rows = read(str(path), format="comet", comet={"relations": ["ObjectUse", "oReact"]})
    assert [row["family"] for row in rows] == ["bread"]
    assert rows.stats["left_out"] == {
        "of other relations than data.comet.relations": 2,
        "with an empty tail": 1,
    }


def test_tails_that_say_none_may_be_kept_and_empty_ones_be_faults(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(ATOMIC)
    rows = read(str(path), format="comet", comet={"none_tails": "keep", "empty_tails": "fault"})
    assert [row["completion"] for row in rows] == [" to cook", " none", " eat it"]
    assert rows.reasons == ["'tail' is empty"]
    assert rows.stats["left_out"] == {}


def test_a_file_of_which_every_row_is_left_out_says_by_which_rule(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("a\tb\tnone\n" * 3)
    with pytest.raises(UserError, match=r"holds no row .*: 3 with the tail 'none'"):
        read(str(path), format="comet")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"head": " "}, "'head' is empty"),
        ({"relation": None}, "'relation' is empty"),
        ({"tail": 3}, "'tail' is not a text: 3"),
        ({"p_valid_model": "high"}, "'p_valid_model' is 'high', not a number"),
        ({"p_valid_model": float("nan")}, "'reward' is nan, not a finite number"),
    ],
)
def test_a_faulty_triple_says_why(fault, reason, rows_file):
    (found,) = faults(rows_file([ATOMIC_10X | fault]), format="comet")
    assert reason in found


def test_a_triple_that_lacks_a_column_says_so(rows_file, tmp_path):
    (found,) = faults(rows_file([{"head": "a", "tail": "b"}]), format="comet")
    assert found == "no column 'relation' (found: head, tail)"
    path = tmp_path / "train.tsv"
    path.write_text("a\tb\nc\td\te\n")
    (found,) = faults(str(path), format="comet")
    assert found == "2 cells for the 3 columns head, relation, tail"


@needs("commonsense")
def test_the_real_triples_are_read_with_labels_heads_and_splits(tmp_path):
    path = str(SHARED / "commonsense/triples.csv.gz")
    rows = read(path, format="comet")
    assert (rows.stats["read"], rows.stats["rejected"], rows.stats["left_out"]) == (22039, 0, {})
    assert sum(row["recorded_reward"] for row in rows) == 11331
    assert {row["user_split"] for row in rows} == {"test", "validation"}
    assert len({row["family"] for row in rows}) == 13098
    assert all(row["prompt"].endswith(" [GEN]") and row["completion"][0] == " " for row in rows)


def test_triples_without_a_training_split_say_so_until_their_splits_are_not_looked_at(tmp_path):
    import datasets

    from leftover.recipe.data_section import DataSection

    path = tmp_path / "triples.csv"
    lines = [f"head {i},xNeed,tail,1,{'tst' if i % 4 else 'dev'}" for i in range(40)]
    path.write_text("\n".join(["head,relation,tail,label,split", *lines]) + "\n")

    def splits(**columns: Any) -> set[str]:
        rows = read(str(path), format="comet", columns=columns)
        table = {name: [row[name] for row in rows] for name in ("prompt", "family", "user_split")}
        data = DataSection(path=str(path), columns=columns)
        return set(assign_splits(datasets.Dataset.from_dict(table), data, seed=0)["split"])

    with pytest.raises(UserError, match=r"the train split has no row: .* set data\.columns\.split: null"):
        splits()
    assert splits(split=None) == {"train", "validation", "test"}
