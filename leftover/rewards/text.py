"""Rewards computed from the text alone, or from it and the rows: `type: text`, by `function`."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from leftover.errors import UserError
from leftover.metrics import distinct_n
from leftover.rewards.answers import AnswerReward, NumericAnswerReward
from leftover.rewards.base import STRICT, Prompt, Reward, TextReward, check_name, compile_pattern, make, not_fitted
from leftover.store.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_FEW_TERMS = 5
_BATCH_ROWS = 2048


@dataclass(config=STRICT)
class LengthReward(TextReward):
    """How many white-space tokens a completion has."""

    function = "length"

    def score(self, completion: str) -> float:
        return float(len(completion.split()))


@dataclass(config=STRICT)
class NgramDiversityReward(TextReward):
    """Distinct n-grams over all n-grams of a completion, in [0, 1]; 0.0 if it has none."""

    function = "ngram_diversity"
    n: int | None = Field(default=None, ge=1)  # default: 2

    def score(self, completion: str) -> float:
        return distinct_n([completion], self.n or 2)

    def identity(self) -> dict[str, Any]:
        # Keys hold `n` only if a recipe sets it.
        return {name: value for name, value in super().identity().items() if value is not None}


@dataclass(config=STRICT)
class VaderReward(TextReward):
    """Compound sentiment, in [-1, 1] (Hutto and Gilbert, 2014; package vaderSentiment)."""

    function = "vader"

    @cached_property
    def _analyzer(self) -> "SentimentIntensityAnalyzer":
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        return SentimentIntensityAnalyzer()

    def score(self, completion: str) -> float:
        return float(self._analyzer.polarity_scores(completion)["compound"])


@dataclass(config=STRICT)
class RegexReward(TextReward):
    """Whether, or how often, a regular expression (Python's `re`) matches the completion.

    Args:
        pattern: the expression.
        mode: match: 1.0 if it matches anywhere, else 0.0 (anchors `^`, `$`, `\\A`, `\\Z` tie it down); fullmatch:
            1.0 if it matches the whole completion without surrounding white space; count: the number of matches
            that do not overlap.
        ignore_case, multiline, dot_all: the flags of `re` of these names.
        negate: 1.0 if it does not match; for `count`, a negative weight does that.
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


@dataclass(config=STRICT)
class TfidfDiversityReward(TextReward):
    """How rare the words of a completion are: mean of its non-zero TF-IDF weights, in [0, 1].

    For a completion of n < 5 distinct known terms it is multiplied by n/10: one word alone would have the weight 1.
    Without a known term it is 0.0. Terms and their document frequencies are those of the training completions, by
    scikit-learn's TfidfVectorizer with its defaults (lower case, words of two letters or more, smoothed IDF, unit
    length).
    """

    function = "tfidf_diversity"
    reads_rows = True

    def __post_init__(self) -> None:
        self._vectorizer: TfidfVectorizer | None = None

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        if self._vectorizer is None:
            raise not_fitted("text reward 'tfidf_diversity'")
        return diversity(self._vectorizer.transform(completions)).tolist()

    def fit(self, folder: Path, rows: "Dataset") -> dict[str, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer()
        try:
            parts = rows.select_columns(["completion", "split"]).iter(batch_size=_BATCH_ROWS)
            texts = (zip(part["completion"], part["split"], strict=True) for part in parts)
            vectorizer.fit(text for part in texts for text, split in part if split == "train")
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            raise UserError(
                "text reward 'tfidf_diversity': the training completions hold no word of two letters or more"
            ) from error
        write_json(folder / "terms.json", vectorizer.get_feature_names_out().tolist())
        np.save(folder / "idf.npy", vectorizer.idf_, allow_pickle=False)
        return {"terms": len(vectorizer.idf_)}

    def load(self, folder: Path) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        terms = read_json(folder / "terms.json")
        self._vectorizer = TfidfVectorizer(vocabulary={term: i for i, term in enumerate(terms)})
        self._vectorizer.idf_ = np.load(folder / "idf.npy", allow_pickle=False)


def diversity(weights: "sparse.csr_matrix") -> np.ndarray:
    """[N] from TF-IDF weights [N, terms]: the mean of those above 0, times n/10 if there are n < 5 of them."""
    num_terms = np.diff(weights.indptr)
    mean = np.asarray(weights.sum(axis=1)).ravel() / np.maximum(num_terms, 1)
    return mean * np.where(num_terms < _FEW_TERMS, num_terms / 10, 1.0)


FUNCTIONS: dict[str, type[TextReward]] = {
    reward.function: reward
    for reward in (
        LengthReward,
        NgramDiversityReward,
        VaderReward,
        RegexReward,
        AnswerReward,
        NumericAnswerReward,
        TfidfDiversityReward,
    )
}


def make_text_reward(function: str | None = None, **settings: Any) -> Reward:
    """The text reward of that name."""
    check_name("text reward", "function", function, FUNCTIONS)
    return make(f"text reward '{function}'", FUNCTIONS[str(function)], settings)
