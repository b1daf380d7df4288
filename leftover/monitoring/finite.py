"""Numbers that are not finite: JSON has none, and a training stops at the first."""

import json
import math
from typing import Any

NOT_FINITE = "not_finite"  # the key of a dictionary that says which of its numbers were nan, inf or -inf


def plain(value: Any) -> Any:
    """`value` with None for every number that JSON does not have; beside them stands what they were.

    >>> plain({"nll": 900.0, "perplexity": float("inf")})
    {'nll': 900.0, 'perplexity': None, 'not_finite': {'perplexity': 'inf'}}
    """
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        lost = {str(name): text for name, one in value.items() if (text := _not_finite(one))}
        found = {name: plain(one) for name, one in value.items()}
        return found | {NOT_FINITE: value.get(NOT_FINITE, {}) | lost} if lost else found
    return None if _not_finite(value) else value


def _not_finite(value: Any) -> str:
    """What a number is, or the first in a list of numbers, if it is not finite; else an empty text."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_not_finite, value)), "")
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else ""


def json_line(value: Any, **options: Any) -> str:
    """`value` as one line of JSON, its numbers as in `plain`."""
    return json.dumps(plain(value), allow_nan=False, **options)
