"""Rewards computed from the text alone, or from it and the rows: `type: text`, by `function`.

length            white-space tokens
ngram_diversity   distinct over all n-grams
vader             sentiment in [-1, 1]
regex             whether, or how often, a regular expression matches
answer            whether the completion is the row's answer: AnswerReward
numeric_answer    whether its last number is the row's answer: NumericAnswerReward
tfidf_diversity   mean TF-IDF weight of its terms, as in A-LoL: TfidfDiversityReward
"""

import re
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from leftover.metrics import distinct_n
from leftover.rewards.base import STRICT, Reward, TextReward, check_name, make

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

# function -> its class, imported when a recipe names it.
FUNCTIONS: dict[str, str] = {
    "length": "leftover.rewards.text:LengthReward",
    "ngram_diversity": "leftover.rewards.text:NgramDiversityReward",
    "vader": "leftover.rewards.text:VaderReward",
    "regex": "leftover.rewards.text:RegexReward",
    "answer": "leftover.rewards.answers:AnswerReward",
    "numeric_answer": "leftover.rewards.answers:NumericAnswerReward",
    "tfidf_diversity": "leftover.rewards.tfidf:TfidfDiversityReward",
}


def make_text_reward(function: str | None = None, **settings: Any) -> Reward:
    """The text reward of that name. Raises UserError for an unknown name or setting."""
    check_name("text reward", "function", function, FUNCTIONS)
    return make(f"text reward '{function}'", resolve_name(FUNCTIONS[str(function)]), settings)


@dataclass(config=STRICT)
class LengthReward(TextReward):
    """How many white-space tokens a completion has."""

    function = "length"

    def score(self, completion: str) -> float:
        return float(len(completion.split()))


@dataclass(config=STRICT)
class NgramDiversityReward(TextReward):
    """Distinct n-grams over all n-grams of a completion, in [0, 1]; 0.0 where it has none."""

    function = "ngram_diversity"
    n: int | None = Field(default=None, ge=1)  # default: 2

    def score(self, completion: str) -> float:
        return distinct_n([completion], self.n or 2)

    def identity(self) -> dict[str, Any]:
        # Keys hold `n` only where a recipe sets it.
        return {name: value for name, value in super().identity().items() if value is not None}


@dataclass(config=STRICT)
class VaderReward(TextReward):
    """Compound sentiment, in [-1, 1] (Hutto and Gilbert, 2014; package vaderSentiment)."""

    function = "vader"

    def score(self, completion: str) -> float:
        return float(_vader().polarity_scores(completion)["compound"])


@cache
def _vader() -> "SentimentIntensityAnalyzer":
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@dataclass(config=STRICT)
class RegexReward(TextReward):
    """Whether, or how often, a regular expression (Python's `re`) matches the completion.

    Args:
        pattern: the expression.
        mode: match: 1.0 where it matches anywhere, else 0.0 (anchors `^`, `$`, `\\A`, `\\Z` tie it down); fullmatch:
            1.0 where it matches the whole completion without surrounding white space; count: the number of matches
            that do not overlap.
        ignore_case, multiline, dot_all: the flags of `re` of these names.
        negate: 1.0 where it does not match; for `count`, a negative weight does that.
    """

    function = "regex"
    pattern: str
    mode: Literal["match", "count", "fullmatch"] = "match"
    ignore_case: bool = False
    multiline: bool = False
    dot_all: bool = False
    negate: bool = False

    def __post_init__(self) -> None:
        if self.negate and self.mode == "count":
            raise ValueError("negate inverts a match, not a count: use a negative weight")
        flags = {re.IGNORECASE: self.ignore_case, re.MULTILINE: self.multiline, re.DOTALL: self.dot_all}
        self.expression = compile_pattern("pattern", self.pattern, sum(flag for flag, on in flags.items() if on))

    def score(self, completion: str) -> float:
        if self.mode == "count":
            return float(sum(1 for _ in self.expression.finditer(completion)))
        if self.mode == "match":
            found = self.expression.search(completion)
        else:
            found = self.expression.fullmatch(completion.strip())
        return float((found is None) == self.negate)


def compile_pattern(key: str, pattern: str, flags: int = 0, groups: int = 0) -> re.Pattern[str]:
    """The compiled expression of a setting. Raises ValueError where it is invalid or has fewer groups."""
    try:
        expression = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}") from error
    if expression.groups < groups:
        raise ValueError(
            f"{key} {pattern!r} has no group: put parentheses around the part that counts, as in '#### (.+)'"
        )
    return expression
