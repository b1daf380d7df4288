"""A regular expression as a reward."""

import re
from collections.abc import Sequence
from typing import Any

from leftover.errors import UserError

MODES = ("match", "count", "fullmatch")


class RegexReward:
    """Whether, or how often, a regular expression (Python's `re`) matches the completion.

    Args:
        pattern: the expression.
        mode: match: 1.0 where it matches anywhere, else 0.0 (anchors `^`, `$`, `\\A`, `\\Z` tie it down); fullmatch:
            1.0 where it matches the whole completion, surrounding white space left out; count: how many matches
            there are that do not overlap.
        ignore_case, multiline, dot_all: the flags of `re` of these names.
        negate: 1.0 where it does not match; for `count`, a negative weight does that.
    """

    def __init__(
        self,
        pattern: str,
        mode: str = "match",
        ignore_case: bool = False,
        multiline: bool = False,
        dot_all: bool = False,
        negate: bool = False,
    ):
        flags = {"ignore_case": ignore_case, "multiline": multiline, "dot_all": dot_all}
        for name, value in (flags | {"negate": negate}).items():
            check_flag("regex", name, value)
        if mode not in MODES:
            raise UserError(f"text reward 'regex': mode is {mode!r}, not one of {', '.join(MODES)}")
        if negate and mode == "count":
            raise UserError("text reward 'regex': negate turns a match round, not a count: use a negative weight")
        self.expression = compile_pattern("regex", pattern, sum(_FLAGS[name] for name, on in flags.items() if on))
        self.mode, self.negate = mode, negate
        self.settings = {"pattern": pattern, "mode": mode, **flags, "negate": negate}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [self._score(completion) for completion in completions]

    def _score(self, completion: str) -> float:
        if self.mode == "count":
            return float(sum(1 for _ in self.expression.finditer(completion)))
        if self.mode == "match":
            found = self.expression.search(completion)
        else:
            found = self.expression.fullmatch(completion.strip())
        return float((found is None) == self.negate)

    def identity(self) -> dict[str, Any]:
        return {"type": "text", "function": "regex", **self.settings}


def compile_pattern(function: str, pattern: Any, flags: int = 0, groups: int = 0) -> re.Pattern[str]:
    """The expression of a text reward's `pattern`. Raises UserError where it is none, or has fewer groups."""
    if not isinstance(pattern, str):
        raise UserError(f"text reward '{function}': pattern is {pattern!r}, not a text")
    try:
        expression = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"text reward '{function}': pattern {pattern!r} is no regular expression: {error}") from error
    if expression.groups < groups:
        raise UserError(
            f"text reward '{function}': pattern {pattern!r} has no group: put parentheses around the answer, as in "
            r"'#### (.+)'"
        )
    return expression


def check_flag(function: str, name: str, value: Any) -> None:
    """UserError for a setting of a text reward that is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"text reward '{function}': {name} is {value!r}; use true or false")


_FLAGS = {"ignore_case": re.IGNORECASE, "multiline": re.MULTILINE, "dot_all": re.DOTALL}
