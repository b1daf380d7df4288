"""Rewards computed from the text alone."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from leftover.errors import UserError, nearest


def make_text_reward(function: str, **settings: Any) -> Any:
    """The text reward of that name."""
    return TextReward(function, **settings)


class TextReward:
    """A function of the completion's text, by name.

    length: white-space tokens. ngram_diversity: distinct over all n-grams of the completion (`n`, default 2).
    vader: compound sentiment in [-1, 1] (Hutto and Gilbert, 2014; package vaderSentiment).
    """

    def __init__(self, function: str, **settings: Any):
        if function not in _FUNCTIONS:
            raise UserError(
                f"unknown text reward '{function}'{nearest(function, list(_FUNCTIONS))}; "
                f"functions: {', '.join(_FUNCTIONS)}"
            )
        if (function != "ngram_diversity" and settings) or settings.keys() - {"n"}:
            raise UserError(f"text reward '{function}' does not take {', '.join(settings)}")
        if not isinstance(settings.get("n", 2), int) or settings.get("n", 2) < 1:
            raise UserError(f"text reward '{function}': n is {settings['n']!r}, not a whole number from 1")
        self.function, self.settings = function, settings

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [_FUNCTIONS[self.function](completion, **self.settings) for completion in completions]

    def identity(self) -> dict[str, Any]:
        return {"type": "text", "function": self.function, **self.settings}


def length(completion: str) -> float:
    """How many white-space tokens the completion has."""
    return float(len(completion.split()))


def ngram_diversity(completion: str, n: int = 2) -> float:
    """Distinct n-grams over all n-grams of one completion, in [0, 1]; 0.0 where it has none."""
    from leftover.metrics import distinct_n

    return distinct_n([completion], n)


def vader(completion: str) -> float:
    """VADER's compound sentiment, in [-1, 1]."""
    return float(_analyzer().polarity_scores(completion)["compound"])


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


_FUNCTIONS: dict[str, Callable[..., float]] = {"length": length, "ngram_diversity": ngram_diversity, "vader": vader}
