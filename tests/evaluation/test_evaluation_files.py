"""Files of lines that a run reads back hold any text."""

from leftover.data.rows import Rejects
from leftover.runs.names import read_completions
from leftover.store.files import write_lines

ODD = "one\u2028two\x85three\rfour\x0cfive"


def test_completions_with_any_line_separator_are_read_back(tmp_path):
    records = [{"text": ODD, "group": 0}, {"text": "plain", "group": 1}]
    write_lines(tmp_path / "evaluation" / "reference.jsonl", records)
    assert read_completions(tmp_path, "reference") == records


def test_rejected_rows_with_any_line_separator_are_kept(tmp_path):
    rejects = Rejects(tmp_path / "rejected.jsonl")
    rejects.start("rows")
    rejects.add("rows", "a:1", "odd", {"prompt": ODD})
    before = (tmp_path / "rejected.jsonl").read_bytes() if (tmp_path / "rejected.jsonl").is_file() else b""
    rejects.start("tokens")
    assert (tmp_path / "rejected.jsonl").read_bytes() == before
