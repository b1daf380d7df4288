"""JSON has no NaN and no Infinity: what we write holds None in their place, and beside it what they were."""

import json
import math

from leftover.monitoring.finite import json_line, plain
from leftover.store.files import read_json, write_json


def test_what_json_cannot_hold_is_none_and_what_it_was_stands_beside_it():
    value = {"a": math.inf, "b": {"c": -math.inf, "d": 1.5}, "e": [1.0, math.nan], "f": [{"g": math.nan}], 3: "x"}
    assert plain(value) == {
        "a": None,
        "b": {"c": None, "d": 1.5, "not_finite": {"c": "-inf"}},
        "e": [1.0, None],
        "f": [{"g": None, "not_finite": {"g": "nan"}}],
        3: "x",
        "not_finite": {"a": "inf", "e": "nan"},
    }
    assert plain(plain(value)) == plain(value)


def test_finite_values_are_written_as_they_were(tmp_path):
    value = {"a": 0.1, "b": [1, None, True, "inf"], "c": {"0": 1e300}}
    assert plain(value) == value and json_line(value) == json.dumps(value)
    write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_text() == json.dumps(value, indent=2) and read_json(tmp_path / "x.json") == value
