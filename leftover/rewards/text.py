"""Rewards computed from the text alone, or from it and what the rows say of it: `type: text`, by `function`.

length            white-space tokens
ngram_diversity   distinct over all n-grams (`n`, default 2)
vader             sentiment in [-1, 1]
regex             whether, or how often, a regular expression matches (`pattern`, `mode`): RegexReward
answer            whether the completion is the row's answer: AnswerReward
numeric_answer    whether its last number is the row's answer (`pattern`, `tolerance`): NumericAnswerReward
tfidf_diversity   mean TF-IDF weight of its terms, as in A-LoL: TfidfDiversityReward
"""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from leftover.errors import UserError, nearest


def make_text_reward(function: str, **settings: Any) -> Any:
    """The text reward of that name; `settings` are those of its class. Raises UserError for an unknown name."""
    if function in _CLASSES:
        module, _, name = _CLASSES[function].partition(":")
        return getattr(importlib.import_module(module), name)(**settings)
    return TextReward(function, **settings)


class TextReward:
    """A function of the completion's text without a state, by name.

    length: white-space tokens. ngram_diversity: distinct over all n-grams of the completion (`n`, default 2).
    vader: compound sentiment in [-1, 1] (Hutto and Gilbert, 2014; package vaderSentiment).
    """

    def __init__(self, function: str, **settings: Any):
        if function not in _FUNCTIONS:
            valid = [*_FUNCTIONS, *_CLASSES]
            raise UserError(
                f"unknown text reward '{function}'{nearest(function, valid)}; functions: {', '.join(valid)}"
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

# function -> the class of one with settings or a state of its own.
_CLASSES: dict[str, str] = {
    "regex": "leftover.rewards.regex:RegexReward",
    "answer": "leftover.rewards.answers:AnswerReward",
    "numeric_answer": "leftover.rewards.answers:NumericAnswerReward",
    "tfidf_diversity": "leftover.rewards.tfidf:TfidfDiversityReward",
}
