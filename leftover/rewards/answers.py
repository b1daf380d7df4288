"""Completions compared with the answer that their row holds: as texts, and as numbers."""

import math
import re
import unicodedata

from leftover.errors import UserError
from leftover.rewards.numbers import find_numbers
from leftover.rewards.regex import check_flag
from leftover.rewards.row_answers import RowAnswerReward

PUNCTUATION = ("ends", "remove", "keep")
PERCENT = ("number", "fraction")

_OPENING = "\"'`*_“‘„«([{"
_CLOSING = "\"'`*_”’“»)]}.,;:!?…。，、；：！？"


class AnswerReward(RowAnswerReward):
    """Exact match with the row's answer, after the same normalisation of both (and Unicode's NFC).

    Args:
        pattern: where given, its group where it matched last is the completion's answer, as in `The answer is (.+)`;
            a completion that it does not match is wrong. Where it matches the row's answer, that is read alike.
        strip: leave surrounding white space out.
        ignore_case: compare case-folded texts.
        collapse_space: take a run of white space for one space.
        punctuation: ends: leave out opening marks (quotes, brackets, emphasis) before the answer, and closing marks
            after it; remove: all punctuation (Unicode's category P); keep.
    """

    function = "answer"

    def __init__(
        self,
        pattern: str | None = None,
        strip: bool = True,
        ignore_case: bool = True,
        collapse_space: bool = True,
        punctuation: str = "ends",
    ):
        for name, value in (("strip", strip), ("ignore_case", ignore_case), ("collapse_space", collapse_space)):
            check_flag(self.function, name, value)
        if punctuation not in PUNCTUATION:
            raise UserError(
                f"text reward 'answer': punctuation is {punctuation!r}, not one of {', '.join(PUNCTUATION)}"
            )
        self.strip, self.ignore_case, self.collapse_space = strip, ignore_case, collapse_space
        self.punctuation = punctuation
        super().__init__(
            pattern, strip=strip, ignore_case=ignore_case, collapse_space=collapse_space, punctuation=punctuation
        )

    def given(self, completion: str) -> str | None:
        text = self.marked(completion) if self.expression else completion
        return None if text is None else self.normalise(text)

    def expected(self, text: str) -> str | None:
        marked = self.marked(text)
        return self.normalise(text if marked is None else marked) or None

    def normalise(self, text: str) -> str:
        """A text in the form that is compared."""
        text = unicodedata.normalize("NFC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.punctuation == "remove":
            text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        elif self.punctuation == "ends":
            text = self._trim(text) or text  # an answer that is a bracket stays one
        if self.collapse_space:
            text = re.sub(r"\s+", " ", text)
        return text.strip() if self.strip else text

    def _trim(self, text: str) -> str:
        before = None
        while text != before:
            before = text
            text = text.strip() if self.strip else text
            text = text.lstrip(_OPENING).rstrip(_CLOSING)
        return text


class NumericAnswerReward(RowAnswerReward):
    """Whether the last number of the completion is the row's answer. Numbers are read by `find_numbers`.

    A completion without a number is wrong. The row's answer may be a text: its last number counts, or the pattern's.

    Args:
        pattern: where given, the completion's answer is the first number in its group where it matched last, as in
            `#### (.+)`; a completion that it does not match is wrong.
        tolerance: the largest absolute difference that counts as equal, beside rounding (1e-9 of the larger one).
        decimal: the decimal mark, `.` or `,`.
        percent: what 50% is: `number` 50, or `fraction` 0.5.
    """

    function = "numeric_answer"

    def __init__(self, pattern: str | None = None, tolerance: float = 0.0, decimal: str = ".", percent: str = "number"):
        number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not number or not math.isfinite(tolerance) or tolerance < 0:
            raise UserError(f"text reward 'numeric_answer': tolerance is {tolerance!r}, not a number from 0")
        if decimal not in (".", ","):
            raise UserError(f"text reward 'numeric_answer': decimal is {decimal!r}, neither '.' nor ','")
        if percent not in PERCENT:
            raise UserError(f"text reward 'numeric_answer': percent is {percent!r}, not one of {', '.join(PERCENT)}")
        self.tolerance, self.decimal, self.percent = float(tolerance), decimal, percent
        super().__init__(pattern, tolerance=self.tolerance, decimal=decimal, percent=percent)

    def given(self, completion: str) -> float | None:
        return self._after_pattern(completion) if self.expression else self._last(completion)

    def expected(self, text: str) -> float | None:
        marked = self._after_pattern(text)
        number = self._last(text) if marked is None else marked
        return number if number is not None and math.isfinite(number) else None

    def same(self, one: float, other: float) -> bool:
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=self.tolerance)

    def _after_pattern(self, text: str) -> float | None:
        numbers = self._numbers(self.marked(text) or "")
        return numbers[0] if numbers else None

    def _last(self, text: str) -> float | None:
        numbers = self._numbers(text)
        return numbers[-1] if numbers else None

    def _numbers(self, text: str) -> list[float]:
        return find_numbers(text, self.decimal, self.percent)
