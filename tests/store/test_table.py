"""The table on disk, with shards of four rows."""

import itertools
import shutil

import numpy as np
import pyarrow as pa
import pytest

import leftover.store.table
from leftover.store.sealed import read_sealed, write_sealed
from leftover.store.table import Stored, Table, column, float_lists, shard_bounds

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(leftover.store.table, "SHARD_ROWS", 4)


def rows(count=10):
    return [{"number": i, "text": f"row {i}"} for i in range(count)]


def make_table(folder, count=10) -> Table:
    """A table whose block `rows` is written."""
    table = Table(folder)
    table.write_rows("rows", {"seed": 0}, lambda: rows(count), SCHEMA)
    return table


class Doubler:
    """Computes `doubled`, and remembers the rows of every call; fails before row `fail_at`."""

    def __init__(self, fail_at=None, factor=2):
        self.calls, self.fail_at, self.factor = [], fail_at, factor

    def __call__(self, shard, scratch=None, start=0):
        if self.fail_at in shard["number"][:]:
            raise RuntimeError("killed")
        self.calls.append(list(shard["number"][:]))
        return {"doubled": [self.factor * n for n in shard["number"][:]]}


def write_doubled(table, compute, key=None):
    return table.write_columns("doubled", key or {"factor": 2}, table.open("rows"), compute)


def test_rows_come_back_in_order_over_several_shards(tmp_path):
    table = make_table(tmp_path)
    assert table.open("rows").to_list() == rows()
    shards = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert shards == ["00000.arrow", "00001.arrow", "00002.arrow"]
    assert table.manifest.facts("rows") == {"num_rows": 10, "columns": ["number", "text"]}


@pytest.mark.parametrize("count", [1, 4, 8])
def test_full_and_single_shards_hold_every_row(tmp_path, count):
    table = make_table(tmp_path, count)
    compute = Doubler()
    write_doubled(table, compute)
    assert table.open("rows", "doubled")["doubled"][:] == [2 * i for i in range(count)]
    assert max(map(len, compute.calls)) <= 4


def test_blocks_stand_side_by_side(tmp_path):
    table = make_table(tmp_path)
    assert write_doubled(table, Doubler())
    table.write_whole("half", {}, lambda: {"half": np.arange(10) / 2})
    assert table.open("rows", "doubled", "half")[7] == {
        "number": 7,
        "text": "row 7",
        "doubled": 14,
        "half": 3.5,
    }


def test_a_finished_block_is_reused_without_computing(tmp_path):
    table = make_table(tmp_path)
    write_doubled(table, Doubler())
    table.write_whole("half", {}, lambda: {"half": np.arange(10) / 2})

    def not_again(*_):
        raise AssertionError("computed again")

    again = Table(tmp_path)
    assert again.write_rows("rows", {"seed": 0}, not_again, SCHEMA) is False
    assert write_doubled(again, not_again) is False
    assert again.write_whole("half", {}, not_again) is False


def test_a_changed_key_computes_anew_and_drops_the_old_shards(tmp_path):
    table = make_table(tmp_path)
    write_doubled(table, Doubler())
    assert table.write_rows("rows", {"seed": 1}, lambda: rows(3), SCHEMA)
    assert len(table.open("rows")) == 3
    assert write_doubled(table, Doubler(factor=5), {"factor": 5})
    assert table.open("doubled")["doubled"][:] == [0, 5, 10]
    assert table.write_whole("half", {}, lambda: {"half": [1]}) and table.write_whole(
        "half", {"new": 1}, lambda: {"half": [2]}
    )
    assert table.open("half")["half"][:] == [2]


def test_finished_shards_are_kept_on_resume(tmp_path):
    table = make_table(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        write_doubled(table, Doubler(fail_at=9))
    assert not table.has("doubled")
    again, compute = Table(tmp_path), Doubler()
    assert write_doubled(again, compute)
    assert compute.calls == [[8, 9]], "only what was not finished"
    assert again.open("doubled")["doubled"][:] == [2 * i for i in range(10)] and again.has("doubled")


def test_a_half_written_shard_is_not_taken(tmp_path):
    table = make_table(tmp_path)
    with pytest.raises(RuntimeError):
        write_doubled(table, Doubler(fail_at=4))
    for number in (1, 7):
        (tmp_path / "doubled" / f"0000{number}.tmp").write_bytes(b"half a shard")
    again, compute = Table(tmp_path), Doubler()
    write_doubled(again, compute)
    assert compute.calls == [[4, 5, 6, 7], [8, 9]]
    assert again.open("doubled")["doubled"][:] == [2 * i for i in range(10)]


def test_a_shard_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    table = make_table(tmp_path)

    def killed(self, _):
        raise KeyboardInterrupt

    # `pa.ipc.new_stream` gives a C class whose methods cannot be replaced, so the stream is.
    class Stream:
        def __init__(self, sink, schema):
            sink.write(b"half")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        write_table = killed

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pa.ipc, "new_stream", Stream)
        write_doubled(table, Doubler())
    assert list((tmp_path / "doubled").glob("*.arrow")) == []
    again = Table(tmp_path)
    assert write_doubled(again, Doubler()) and len(again.open("doubled")) == 10


def test_shards_begun_under_another_key_are_not_resumed(tmp_path):
    table = make_table(tmp_path)
    with pytest.raises(RuntimeError):
        write_doubled(table, Doubler(fail_at=9))
    compute = Doubler(factor=5)
    write_doubled(Table(tmp_path), compute, {"factor": 5})
    assert compute.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_run_killed_while_it_drops_old_shards_does_not_take_them_later(tmp_path, monkeypatch):
    table = make_table(tmp_path)
    write_doubled(table, Doubler())

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        write_doubled(Table(tmp_path), Doubler(factor=5), {"factor": 5})
    again = Table(tmp_path)
    write_doubled(again, Doubler(factor=5), {"factor": 5})
    assert again.open("doubled")["doubled"][:] == [5 * i for i in range(10)]


def test_shards_without_a_manifest_are_not_taken(tmp_path):
    table = make_table(tmp_path)
    write_doubled(table, Doubler())
    table.manifest.path.unlink()
    again = make_table(tmp_path)
    write_doubled(again, Doubler(factor=5), {"factor": 5})
    assert again.open("doubled")["doubled"][:] == [5 * i for i in range(10)]


def test_a_stream_of_rows_that_broke_off_starts_again(tmp_path):
    def broken():
        yield from rows()[:6]
        raise RuntimeError("killed")

    table = Table(tmp_path)
    with pytest.raises(RuntimeError):
        table.write_rows("rows", {"seed": 0}, broken, SCHEMA)
    assert make_table(tmp_path).open("rows").to_list() == rows()


def test_a_whole_block_that_broke_off_is_not_complete(tmp_path):
    table = Table(tmp_path)
    with pytest.raises(ZeroDivisionError):
        table.write_whole("half", {}, lambda: {"half": [1 / 0]})
    assert not Table(tmp_path).has("half") and Table(tmp_path).write_whole("half", {}, lambda: {"half": [1]})


def test_resume_after_the_last_shard_only_finishes(tmp_path, monkeypatch):
    table = make_table(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(table.manifest, "finish", lambda *_, **__: None)
        write_doubled(table, Doubler())
    again, compute = Table(tmp_path), Doubler()
    assert write_doubled(again, compute) and compute.calls == []
    assert again.manifest.facts("doubled") == {"num_rows": 10, "columns": ["doubled"]}


def test_arrays_and_lists_of_unequal_length_keep_their_values_and_types(tmp_path):
    table = Table(tmp_path)
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    table.write_whole("block", {}, lambda: {"features": features, "logprobs": float_lists([[-1.5], [], [-2, -3]])})
    block = table.open("block").with_format("numpy")
    np.testing.assert_array_equal(block["features"][:], features)
    assert block["features"][:].dtype == np.float32
    assert table.open("block")["logprobs"][:] == [[-1.5], [], [-2.0, -3.0]]
    assert table.open("block").features["logprobs"].feature.dtype == "float32"


def test_shards_grow_with_the_table_and_smaller_ones_of_an_earlier_version_are_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(leftover.store.table, "_OF_A_SIZE", 2)
    assert list(itertools.islice(shard_bounds(), 5)) == [(0, 4), (4, 4), (8, 8), (16, 8), (24, 16)]
    table = Table(tmp_path)
    rows = [{"number": n} for n in range(21)]
    table.write_rows("rows", {}, lambda: rows, pa.schema([("number", pa.int64())]))
    assert [len(list(tmp_path.glob(f"rows/{n:05d}.arrow"))) for n in range(5)] == [1, 1, 1, 1, 0]
    with pytest.raises(RuntimeError, match="killed"):
        write_doubled(table, Doubler(fail_at=16))
    entries = read_sealed(tmp_path / "manifest.json")
    del entries["doubled"]["files"]  # which earlier versions did not note
    write_sealed(tmp_path / "manifest.json", entries)
    table = Table(tmp_path)
    third = tmp_path / "doubled" / "00002.arrow"
    third.write_bytes((tmp_path / "doubled" / "00001.arrow").read_bytes())  # 4 rows, where 8 are due
    compute = Doubler()
    write_doubled(table, compute)
    assert table.open("doubled")["doubled"][:] == [2 * n for n in range(21)]
    assert [len(call) for call in compute.calls] == [4, 4, 4, 4, 4, 1], "all anew, never more than four rows at once"


def test_a_shard_of_nothing_but_missing_values_joins_the_others(tmp_path):
    table = make_table(tmp_path)
    compute = lambda shard, *_: {"score": [None if n < 4 else float(n) for n in shard["number"][:]]}  # noqa: E731
    table.write_columns("scores", {}, table.open("rows"), compute)
    assert table.open("scores")["score"][:] == [None] * 4 + [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_parts_of_a_large_shard_keep_what_they_have_while_it_is_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr(leftover.store.table, "_OF_A_SIZE", 1)
    table, kept = make_table(tmp_path, 12), []  # shards of 4 and 8 rows

    def compute(part, scratch, start):
        kept.append((start, scratch.name, scratch.read_text() if scratch.is_file() else None))
        scratch.write_text(f"from {start}")
        if start == 8 and len(kept) < 4:
            raise RuntimeError("killed")
        return {"none_at_first": [None if start == 4 else float(n) for n in part["number"][:]]}

    write = lambda: table.write_columns("scores", {}, table.open("rows"), compute)  # noqa: E731
    with pytest.raises(RuntimeError, match="killed"):
        write()
    write()
    assert kept[:3] == [(0, "00000.scratch", None), (4, "00001.scratch", None), (8, "00001.1.scratch", None)]
    assert kept[3:] == [(4, "00001.scratch", "from 4"), (8, "00001.1.scratch", "from 8")]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["00000.arrow", "00001.arrow"]
    assert table.open("scores")["none_at_first"][:] == [0.0, 1, 2, 3, None, None, None, None, 8, 9, 10, 11]


def test_digests_follow_the_key(tmp_path):
    table = make_table(tmp_path)
    first = table.digest("rows")
    assert Table(tmp_path).digest("rows") == first
    table.write_rows("rows", {"seed": 1}, rows, SCHEMA)
    assert table.digest("rows") != first


def test_a_column_of_moved_rows_keeps_their_order_over_several_parts(tmp_path):
    table = make_table(tmp_path, 30)
    moved = np.random.default_rng(0).permutation(30)
    assert column(table.open("rows").select(moved), "number").tolist() == moved.tolist()
    assert column(table.open("rows"), "number").tolist() == list(range(30))
    assert column(table.open("rows").select([]), "number").tolist() == []


@pytest.mark.parametrize("chosen", [range(10), [7, 2, 5]])
def test_stored_rows_are_read_one_by_one_and_all_in_order(tmp_path, chosen):
    table = make_table(tmp_path).open("rows").select(chosen)
    texts = Stored(table, "text")
    assert len(texts) == len(chosen)
    assert list(texts) == [texts[np.int64(i)] for i in range(len(chosen))] == [f"row {i}" for i in chosen]
    assert list(texts) == list(texts), "read anew by every loop"
    both = Stored(table, "number", "text", of=lambda row: (row["text"], row["number"]))
    assert list(both) == [(f"row {i}", i) for i in chosen]
