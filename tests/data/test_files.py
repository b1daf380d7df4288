"""Readers of files: cells as they stand, places that can be found again, sources and splits told apart."""

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from leftover.data.formats import list_sources, read_rows
from leftover.data.missing import no_column
from leftover.data.records import FAULT
from leftover.errors import UserError
from leftover.prepare.rows import row_settings
from leftover.recipe.data_section import DataSection
from tests.data.adapters import SHARED, needs, read, texts

COLA = {
    "table": {"names": ["from", "label", "mark", "sentence"]},
    "columns": {"prompt": "{from}:", "completion": "sentence", "reward": "label"},
}


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# Tables.


def test_tsv_with_windows_line_ends_keeps_quotes_that_enclose_nothing(tmp_path):
    path = write(tmp_path / "a.tsv", 'prompt\tcompletion\treward\r\n"Why?\tso" he said\t1\r\nWho?\tAn "I"\t\r\n')
    rows = read(path)
    assert texts(rows) == [('"Why?', 'so" he said', 1.0), ("Who?", 'An "I"', None)]
    assert [row["where"] for row in rows] == [f"{path}:2", f"{path}:3"]


def test_tsv_whose_quotes_enclose_cells_is_told_of_and_read_by_a_setting(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", 'prompt\tcompletion\nWhy?\t"a ""b""\nc"\n')
    rows = read(path, table={"quotes": True})
    assert texts(rows) == [("Why?", 'a "b"\nc', None)]
    assert not caplog.records
    path = write(tmp_path / "b.tsv", 'prompt\tcompletion\nWhy?\t"a"\n')
    with caplog.at_level(logging.WARNING, "leftover"):
        assert texts(read(path)) == [("Why?", '"a"', None)]
    assert f"{path}: 1 rows have cells" in caplog.text
    assert "data.table.quotes: true" in caplog.text


@pytest.mark.parametrize("name", ["cola.tsv", "cola.tsv.gz"])
def test_a_file_without_a_header_line_is_read_under_given_names(name, tmp_path):
    content = b"gj04\t1\t\tOne.\nbc01\t0\t*\tTwo one.\n"
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    rows = read(path, **COLA)
    assert texts(rows) == [("gj04:", "One.", 1.0), ("bc01:", "Two one.", 0.0)]
    assert [row["where"] for row in rows] == [f"{path}:1", f"{path}:2"]


def test_names_for_a_file_that_has_a_header_line_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,completion\na,b\n")
    with pytest.raises(UserError, match=r"a\.csv: .* data\.table\.names: leave the key out"):
        read(path, table={"names": ["prompt", "completion"]})


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"names '1' twice: rename one; if it is a row, .*data\.table\.names"):
        read(write(tmp_path / "a.tsv", "1\t1\tx\n2\t2\ty\n"))


def test_another_delimiter_is_read(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt;completion;reward\n"a;b";c;-1e-2\n')
    assert texts(read(path, table={"delimiter": ";"})) == [("a;b", "c", -0.01)]


def test_cells_of_other_columns_than_scores_stay_text(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,completion,reward,is_chosen\n7,007,true,False\nx,y,1_0,\n")
    rows = read(path)
    assert texts(rows) == [("7", "007", 1.0)]
    assert rows[0]["is_chosen"] is False
    assert [reason.split(";")[0] for reason in rows.reasons] == ["'reward' is the text '1_0', not a number"]


def test_faulty_rows_of_a_table_are_named_with_their_lines_and_the_others_read(tmp_path):
    lines = ["prompt,completion", "a,b", '"c"x,d', 'e,"f', 'ff"', "g,h,i", "j,k", 'l,"m', "n,o"]
    rows = read(write(tmp_path / "a.csv", "\n".join(lines) + "\n"))
    assert texts(rows) == [("a", "b", None), ("e", "f\nff", None), ("j", "k", None)]
    assert [row["where"].rpartition(" ")[2] for row in rows] == ["1", "3", "5"]
    assert [reason.partition(":")[0] for reason in rows.reasons] == [
        "lines 3 to 3 are not a row of CSV",
        "3 cells for the 2 columns prompt, completion",
        "lines 8 to 9 are not a row of CSV",
    ]


def test_a_header_line_that_is_no_row_is_refused(tmp_path):
    with pytest.raises(UserError, match="the header line cannot be read"):
        read(write(tmp_path / "a.csv", '"prompt"x,completion\na,b\n'))


def test_a_cell_of_more_than_a_hundred_thousand_characters_is_read(tmp_path):
    path = write(tmp_path / "a.csv", f"prompt,completion\na,{'b' * 200_000}\n")
    assert len(read(path)[0]["completion"]) == 200_000


@needs("fluency")
def test_the_real_acceptability_files_are_read_whole(caplog):
    files = {"in_domain_train.tsv.gz": 8551, "in_domain_dev.tsv": 527, "out_of_domain_dev.tsv": 516}
    for name, count in files.items():
        rows = read(str(SHARED / "fluency" / name), **COLA)
        assert (len(rows), rows.stats["rejected"], rows.stats["without_reward"]) == (count, 0, 0)
        assert {row["recorded_reward"] for row in rows} == {0.0, 1.0}
        assert rows[-1]["where"].endswith(f"{name}:{count}")
    assert not caplog.records


# JSON.


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_of_records_is_read(indent, tmp_path):
    content = [{"prompt": "a", "completion": "b"}, 3, {"prompt": "c", "completion": "d", "reward": 1}]
    path = write(tmp_path / "a.json", json.dumps(content, indent=indent))
    rows = read(path)
    assert texts(rows) == [("a", "b", None), ("c", "d", 1.0)]
    assert [row["where"] for row in rows] == [f"{path} record 1", f"{path} record 3"]
    assert rows.reasons == ["expected a JSON object, found a int"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_mapping_from_ids_to_records_is_read_with_its_ids(indent, tmp_path):
    content = {"x": {"prompt": "a", "completion": "b"}, "y": {"prompt": "c", "completion": "d"}}
    path = write(tmp_path / "a.json", json.dumps(content, indent=indent))
    rows = read(path, columns={"family": "id"})
    assert [(row["prompt"], row["family"]) for row in rows] == [("a", "x"), ("c", "y")]


def test_json_lines_in_a_file_named_json_are_read(tmp_path):
    path = write(tmp_path / "a.json", '{"prompt": "a", "completion": "b"}\n{"prompt": "c"\n')
    rows = read(path)
    assert [row["where"] for row in rows] == [f"{path}:1"]
    assert rows.reasons == ["malformed JSON: Expecting ',' delimiter at column 1"]


def test_a_json_file_that_is_cut_off_is_named_with_the_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json:3: malformed JSON"):
        read(write(tmp_path / "a.json", '[{"prompt": "a",\n"completion": "b"},\n'))


def test_a_json_file_of_one_pretty_record_says_what_it_may_hold(tmp_path):
    with pytest.raises(UserError, match="a list of records or a mapping"):
        read(write(tmp_path / "a.json", '{\n"prompt": "a",\n"completion": "b"}\n'))


# Sources, splits and labels.


def test_rows_of_several_files_say_which_they_are_of(rows_file):
    row = {"prompt": "a", "completion": "b"}
    paths = [rows_file([row], "test_x.jsonl"), rows_file([row, row | {"source": "mine"}], "v2.1.jsonl")]
    rows = read(paths)
    assert [r["source"] for r in rows] == ["test_x", "v2.1", "mine"]
    assert rows.stats["sources"] == {"test_x": 1, "v2.1": 1, "mine": 1}
    assert [r["source"] for r in read(paths[0])] == [None]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    line = '{"prompt": "a", "completion": "b"}\n'
    names = ["harmless-base/test.jsonl.gz", "helpful-base/test.jsonl.gz", "helpful-base/train.jsonl.gz"]
    paths = [write(tmp_path / name, gzip.compress(line.encode())) for name in names]
    assert [row["source"] for row in read(paths)] == [name.removesuffix(".jsonl.gz") for name in names]


def test_files_may_be_splits(rows_file):
    row = {"prompt": "a", "completion": "b", "split": "nonsense"}
    paths = [rows_file([row], f"{name}.jsonl") for name in ("train", "valid_random_split", "extra")]
    rows = read(paths, source_splits={"train": "train", "valid_random_split": "validation"})
    assert [r["user_split"] for r in rows] == ["train", "validation"]
    assert rows.reasons == ["the source 'extra' is not one of data.source_splits: train, valid_random_split"]


def test_splits_of_other_names_are_mapped_and_null_looks_at_none(rows_file):
    splits = ["trn", "tst", "holdout", 0]
    path = rows_file([{"prompt": "a", "completion": "b", "split": split} for split in splits])
    rows = read(path, split_names={"holdout": "test", 0: "train"})
    assert [row["user_split"] for row in rows] == ["train", "test", "test", "train"]
    for reason, name in zip(read(path).reasons, ("'holdout'", "0"), strict=True):
        assert reason.startswith(f"'split' is {name}; use one of train, validation, test")
        assert "data.split_names" in reason
    assert [row["user_split"] for row in read(path, columns={"split": None})] == [None] * 4


def test_labels_are_numbers_by_a_table_and_an_unknown_one_names_the_known(rows_file):
    path = rows_file([{"prompt": "a", "completion": "b", "grade": grade} for grade in ("good", "bad", None, "so-so")])
    rows = read(path, columns={"reward": "grade"}, labels={"good": 1, "bad": -1})
    assert [row["recorded_reward"] for row in rows] == [1.0, -1.0, None]
    assert rows.reasons == ["'grade' is 'so-so', not one of data.labels: good, bad"]


def test_scores_that_labels_give_are_read_beside_them_and_truth_values_are_explained(rows_file):
    path = rows_file([{"prompt": "a", "completion": "b", "reward": score} for score in (-1.0, "good", 0.5)])
    rows = read(path, labels={"good": 1, "bad": -1})
    assert [row["recorded_reward"] for row in rows] == [-1.0, 1.0]
    assert rows.reasons == ["'reward' is 0.5, not one of data.labels: good, bad"]
    path = rows_file([{"prompt": "a", "completion": "b", "reward": "yes"}])
    with pytest.raises(UserError, match="quote them"):
        read(path, labels={True: 1, False: 0})
    with pytest.raises(UserError, match=r"not a number; .* data\.labels"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_labels_may_be_numbers_themselves(name, tmp_path):
    lines = (
        ['{"prompt": "a", "completion": "b", "reward": 2}'] if "json" in name else ["prompt,completion,reward", "a,b,2"]
    )
    path = write(tmp_path / name, "\n".join(lines) + "\n")
    assert [row["recorded_reward"] for row in read(path, labels={2: 0.5})] == [0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_listed": "bad.json"}, "goes with data.format: hh"),
        ({"format": "comet", "columns": {"prompt": "{head}"}}, "makes prompt and completion itself"),
        ({"format": "documents", "columns": {"completion": "{x}"}}, "makes prompt and completion itself"),
    ],
)
def test_settings_that_contradict_the_format_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DataSection(path="a.jsonl", **settings)


def test_a_layout_over_a_file_of_unknown_kind_asks_for_an_ending(tmp_path):
    with pytest.raises(UserError, match=r"data\.format: comet .* one of \.jsonl"):
        read(write(tmp_path / "train.txt", "a\tb\tc\n"), format="comet")


# The Hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict[str, Any]]]:
    """Stands in for the Hub: one row a call, and the list of the calls."""
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        calls.append((args, kwargs))
        pair = {name: f"\n\nHuman: {len(calls)}\n\nAssistant: {name}" for name in ("chosen", "rejected")}
        return [pair | {"prompt": "a", "completion": "b"} if args[0] == "org/plain" else pair]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls


def test_a_hub_id_is_streamed_with_configuration_folder_and_split(hub):
    (row,) = read("org/plain", hub_config="en", hub_data_dir="part", hub_split="test")
    assert hub == [(("org/plain", "en"), {"data_dir": "part", "split": "test", "streaming": True})]
    assert row["where"] == "org/plain en part test row 1"
    assert row["source"] is None


def test_subsets_and_splits_of_a_hub_id_are_sources_of_their_own(hub):
    rows = read(
        "Anthropic/hh-rlhf",
        format="hh",
        hub_data_dir=["harmless-base", "helpful-base"],
        hub_split=["train", "test"],
        source_splits={
            "harmless-base/train": "train",
            "harmless-base/test": "test",
            "helpful-base/train": "train",
            "helpful-base/test": "test",
        },
    )
    assert [(args, kwargs["data_dir"], kwargs["split"]) for args, kwargs in hub] == [
        (("Anthropic/hh-rlhf", None), folder, split)
        for folder in ("harmless-base", "helpful-base")
        for split in ("train", "test")
    ]
    assert [(row["source"], row["user_split"]) for row in rows[::2]] == [
        ("harmless-base/train", "train"),
        ("harmless-base/test", "test"),
        ("helpful-base/train", "train"),
        ("helpful-base/test", "test"),
    ]


def test_a_hub_id_stands_beside_files(hub, rows_file):
    path = rows_file([{"prompt": "a", "completion": "b"}], "mine.jsonl")
    assert [row["source"] for row in read([path, "org/plain"])] == ["mine", "org/plain"]
    sources = list_sources(DataSection(path=[path, "org/plain", "org/other"]))
    assert [(source.kind, source.name) for source in sources] == [
        ("jsonl", "mine"),
        ("hub", "org/plain"),
        ("hub", "org/other"),
    ]


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"org/plain train: cannot be read as hub: no route to host"):
        read("org/plain")


# What rows depend on.


@pytest.mark.parametrize("name", DataSection.model_fields)
def test_a_setting_is_part_of_the_key_of_rows_unless_it_is_of_later_stages_or_other_layouts(name):
    later = {
        "max_prompt_tokens",
        "max_completion_tokens",
        "long_completions",
        "train_on",
        "validation_size",
        "test_size",
    }
    layouts = {"documents", "comet", "reddit", "dialogue"}
    newer = {"prompts"}  # in the key where it is not the default, so that earlier tables are kept
    assert (name in row_settings(DataSection(path="a.jsonl"))) == (name not in later | layouts | newer)
    assert "prompts" in row_settings(DataSection(path="a.jsonl", prompts="chat"))
    if name in layouts:
        assert name in row_settings(DataSection(path="a.jsonl", format=name))


def test_a_change_of_such_a_setting_computes_the_rows_anew(tmp_path, tiny_recipe):
    from leftover.prepare.rows import read as read_stage
    from leftover.recipe.files import make_recipe
    from leftover.runs.claim import open_run

    def digest(**data: Any) -> str:
        run = open_run(make_recipe(tiny_recipe(tmp_path, data=data)))
        read_stage(run)
        return run.table.digest("rows")

    before = digest()
    assert digest(comet={"prompt": "{head}"}, max_completion_tokens=32) == before
    assert digest(split_names={"holdout": "test"}) != before


# Parquet that Python has no values for


def parquet(path, **columns):
    pq.write_table(pa.table(list(columns.values()), names=list(columns)), path)
    return str(path)


def strings(*values):
    """A column of texts that may be faulty UTF-8."""
    return pa.array(values, pa.binary()).view(pa.string())


def read_all(path, **settings):
    return [row for _, row in read_rows(DataSection(path=path, **settings))]


@pytest.mark.parametrize("column", ["completion", "other"])
def test_faulty_utf8_in_parquet_is_a_faulty_row(column, tmp_path):
    columns = {"prompt": strings(b"a", b"b"), "completion": strings(b"c", b"d")} | {
        column: strings(b"fine", b"\xff\xfe")
    }
    _, faulty = read_all(parquet(tmp_path / "x.parquet", **columns))
    assert f"its column '{column}' (string) cannot be read: " in faulty[FAULT] and "utf-8" in faulty[FAULT]
    assert faulty["prompt"] == "b"


TIMES = {
    "a long duration": pa.array([2**62], pa.duration("s")),
    "no zone": pa.array([0], pa.timestamp("s", "No/Where")),
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_times_that_python_has_no_values_for_are_left_out(times, tmp_path, caplog):
    path = parquet(tmp_path / "x.parquet", prompt=strings(b"a"), completion=strings(b"b"), when=times)
    (row,) = read_all(path)
    assert row["completion"] == "b" and "when" not in row
    assert f"{path}: the column 'when' ({str(times.type)[:8]}" in caplog.text and "is left out" in caplog.text


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table([strings(b"a"), strings(b"b"), strings(b"c")], names=["prompt", "completion", "prompt"]), path
    )
    with pytest.raises(UserError, match=f"^{path}: it has two columns named 'prompt': rename one"):
        read_all(str(path))


# What stands in the place of a data file


PLACES = {
    "pipe": (os.mkfifo, "is a pipe, which can be read only once"),
    "folder": (Path.mkdir, "is a folder"),
    "loop": (lambda path: path.symlink_to(path), r"cannot be read \(Too many levels of symbolic links\)"),
    "link to nothing": (lambda path: path.symlink_to(path.with_name("gone")), "is a link to what is not there"),
}


@pytest.mark.parametrize(("make", "what"), PLACES.values(), ids=PLACES)
def test_what_is_no_data_file_is_called_what_it_is(make, what, tmp_path):
    path = tmp_path / "f.jsonl"
    make(path)
    with pytest.raises(UserError, match=rf"^'{path}' \(key data\.path\) {what}: name a data file$"):
        read_all(str(path))


@pytest.mark.parametrize("ending", [".jsonl", ""])
def test_a_name_that_is_too_long_is_cut_and_no_matter_of_output_dir(ending):
    with pytest.raises(UserError, match=r"\(key data\.path\) cannot be read \(File name too long\)") as refused:
        read_all("x" * 5000 + ending)
    assert len(str(refused.value)) < 300


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read")
def test_a_file_that_the_system_cannot_read_is_named():
    with pytest.raises(UserError, match=r"^'/proc/self/mem' \(key data\.path\) cannot be read \(Input/output error\)"):
        read_all("/proc/self/mem", format="jsonl")


def test_a_header_of_any_length_is_cut(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"{'x' * 100_000},completion\na,b\na\n")
    row, faulty = read_all(str(path))
    assert "(100,012 characters)" in faulty[FAULT] and len(faulty[FAULT]) < 1000
    assert len(no_column(["prompt"], row)) < 1000
