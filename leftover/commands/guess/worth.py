"""What thumbs and grades that are written as words are worth."""

import re
from collections.abc import Iterable

# From the worst, 0, to the best, 1.
_WORTH = {
    1.0: "excellent perfect best great amazing",
    0.9: (
        "good positive up thumbs_up thumbsup thumb_up like liked upvote upvoted yes y true helpful correct right "
        "accepted accept approve approved pass passed win winner happy satisfied resolved solved useful love safe "
        "chosen preferred 👍 👍🏻 +1 :+1: ✅ 😀 🙂 ❤️"
    ),
    0.5: "neutral fair okay ok average medium mixed partial partially meh tie so_so 😐",
    0.1: (
        "bad negative down thumbs_down thumbsdown thumb_down dislike disliked downvote downvoted no n false unhelpful "
        "not_helpful incorrect wrong rejected reject fail failed loss loser unhappy unsatisfied dissatisfied poor "
        "unresolved useless unsafe inappropriate 👎 👎🏻 -1 :-1: ❌ 🙁 😞"
    ),
    0.0: "terrible awful worst horrible very_bad very_poor",
}
_KNOWN = {word: worth for worth, words in _WORTH.items() for word in words.split()} | {"very_good": 1.0}
_NO_SCORE = {
    "none",
    "null",
    "nan",
    "n/a",
    "na",
    "unknown",
    "unrated",
    "not_rated",
    "no_feedback",
    "skip",
    "skipped",
    "-",
}


# `4`, `3,5` as others write 3.5, `5 stars`, `4 out of 5`, `4/5`, `85 %`.
_NUMBER = re.compile(
    r"([+-]?\d+(?:[.,]\d+)?)\s*(?:%|stars?|points?|pts?|(?:/|of|out of)\s*(\d+)\s*(?:stars?|points?)?)?"
)
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")  # 1,234: nobody knows which comma it is


def plain(word: str) -> str:
    """A word as the table has it: small letters, `_` for blanks and dashes inside."""
    word = word.strip().lower()
    return word if len(word) < 3 or word[0] in "+-:" else word.replace("-", "_").replace(" ", "_")


def is_no_score(word: str) -> bool:
    return plain(word) in _NO_SCORE


def known_worths(words: Iterable[str]) -> dict[str, float]:
    """What the known ones among these words are worth, the worst of them 0 and the best 1.

    Where every one of them spells a number, as `3 stars` and `1,5` do, it is worth that number; not where some are
    percent (`50 %`) or fractions (`4/5`) and others are not, since they are of several scales.
    """
    words = list(words)
    numbers = {word: number for word in words if (number := spelt_number(word)) is not None}
    scales = {"%" if "%" in word else "/" if re.search("/|of", word.lower()) else "" for word in numbers}
    if len(scales) == 1 and all(word in numbers or is_no_score(word) for word in words):
        return numbers
    found = {word: _KNOWN[plain(word)] for word in words if plain(word) in _KNOWN}
    low, high = min(found.values(), default=0.0), max(found.values(), default=1.0)
    return {word: round((worth - low) / ((high - low) or 1.0), 2) for word, worth in found.items()}


def spelt_number(word: str) -> float | None:
    """The number that a word begins with or that its stars count; `4/5` is 0.8. None for any other word."""
    word = word.strip().lower()
    if word and set(word) <= set("★☆⭐✩"):
        return float(word.count("★") + word.count("⭐"))
    found = _NUMBER.fullmatch(word)
    if found is None or _GROUPED.fullmatch(word):
        return None
    number, of = float(found[1].replace(",", ".")), float(found[2] or 1)
    return round(number / of, 4) if of else None
