"""Features of a linear reward: TF-IDF of words and characters, and what a completion shares with its prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from leftover.errors import UserError
from leftover.rewards.base import Prompt
from leftover.rewards.tokens import Characters, Tokens, Words, tokenise

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Each of the first three holds the features of those before it.
Kind = Literal["completion", "both", "pair", "overlap"]

_CHARACTER_NGRAMS = (3, 4, 5)
_MIN_TEXTS = 2  # a term of a single training text says nothing about others
_TINY = 1e-12

Terms = TypeVar("Terms", bound=Words | Characters)

_MEASURES = ("share of words", "share of bigrams", "share by IDF", "log IDF not found", "log words", "recall")
OVERLAPS = [f"{measure}, {source}" for source in ("first part", "whole") for measure in _MEASURES]


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: a conversation as its turns."""
    return "\n\n".join(prompt_parts(prompt))


def prompt_parts(prompt: Prompt) -> list[str]:
    """The messages of a conversation, or the paragraphs of a text."""
    if isinstance(prompt, str):
        return [part for part in prompt.split("\n\n") if part.strip()] or [prompt]
    return [str(message["content"]) for message in prompt]


class TextFeatures:
    """Sparse features [N, F] of prompts and completions.

    completion: TF-IDF of its words (1- and 2-grams) and of characters within words (3- to 5-grams). both: also of the
    prompt's words. pair: also the overlap (see `Overlap`). overlap: only the overlap.
    """

    def __init__(self, kind: Kind):
        self.kind = kind
        self.blocks: dict[str, Tfidf[Any]] = {}
        self.overlap = Overlap() if kind in ("pair", "overlap") else None

    def fit(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> "csr_array":
        """Learn vocabularies and scales; returns the features of these texts. UserError if no word repeats."""
        tokens = self._tokens(prompts, completions)
        if self.kind != "overlap":
            self.blocks["words"] = Tfidf(Words.learn(tokens["completion"], _MIN_TEXTS))
            self.blocks["characters"] = Tfidf(Characters.learn(tokens["completion"], _MIN_TEXTS, _CHARACTER_NGRAMS))
        if self.kind in ("both", "pair"):
            self.blocks["prompt words"] = Tfidf(Words.learn(tokens["whole"], _MIN_TEXTS))
        for name, block in self.blocks.items():
            block.fit(tokens[_SOURCES[name]])
        if self.overlap:
            self.overlap.fit(tokens)
        return self._features(tokens)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> "csr_array":
        return self._features(self._tokens(prompts, completions))

    def names(self) -> list[str]:
        named = [f"{name}: {term}" for name, block in self.blocks.items() for term in block.terms.names()]
        return named + [f"overlap: {name}" for name in (OVERLAPS if self.overlap else ())]

    def state(self) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
        """Vocabularies (for JSON) and arrays: all that `restore` needs."""
        vocabularies, arrays = {}, {}
        blocks = self.blocks | ({"overlap": self.overlap.words} if self.overlap else {})
        for name, block in blocks.items():
            vocabularies[name], arrays[f"idf {name}"] = block.terms.known, block.idf
            if isinstance(block.terms, Words):
                arrays[f"bigrams {name}"] = block.terms.bigrams
        if self.overlap:
            arrays |= {"overlap mean": self.overlap.mean, "overlap scale": self.overlap.scale}
        return vocabularies, arrays

    def restore(self, vocabularies: dict[str, list[str]], arrays: dict[str, np.ndarray]) -> None:
        for name, terms in vocabularies.items():
            known = Characters(terms, _CHARACTER_NGRAMS) if name == "characters" else None
            self.blocks[name] = Tfidf(known or Words(terms, arrays[f"bigrams {name}"]), arrays[f"idf {name}"])
        if self.overlap:
            self.overlap.words = self.blocks.pop("overlap")
            self.overlap.mean, self.overlap.scale = arrays["overlap mean"], arrays["overlap scale"]

    def _tokens(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> dict[str, Tokens]:
        """One tokenisation of all texts that the features need."""
        n, texts = len(completions), {"completion": list(completions)}
        if self.kind != "completion":
            texts["whole"] = [prompt_text(prompt) for prompt in prompts]
        if self.overlap:
            texts["first part"] = [prompt_parts(prompt)[0] for prompt in prompts]
        tokens = tokenise([text for part in texts.values() for text in part])
        return {name: tokens.slice(i * n, (i + 1) * n) for i, name in enumerate(texts)}

    def _features(self, tokens: dict[str, Tokens]) -> "csr_array":
        from scipy import sparse

        parts = [block(tokens[_SOURCES[name]]) for name, block in self.blocks.items()]
        if self.overlap:
            parts.append(sparse.csr_array(self.overlap(tokens)))
        return sparse.hstack(parts, format="csr")


_SOURCES = {"words": "completion", "characters": "completion", "prompt words": "whole"}


class Tfidf(Generic[Terms]):
    """TF-IDF of `terms`: logarithmic counts, smoothed IDF, unit length, by scikit-learn's TfidfTransformer."""

    def __init__(self, terms: Terms, idf: np.ndarray | None = None):
        from sklearn.feature_extraction.text import TfidfTransformer

        self.terms = terms
        self._transformer = TfidfTransformer(sublinear_tf=True)
        if idf is not None:
            self._transformer.idf_ = idf

    def fit(self, tokens: Tokens) -> None:
        counts = self.terms(tokens)
        if counts.shape[1] == 0:
            raise UserError("no word occurs in two of the training texts: give more rows")
        self._transformer.fit(counts)

    def __call__(self, tokens: Tokens) -> "csr_array":
        counts = self.terms(tokens)
        counts.sort_indices()  # one order of summation whatever the batch
        return self._transformer.transform(counts)

    @property
    def idf(self) -> np.ndarray:
        return self._transformer.idf_


class Overlap:
    """How much of a completion is found in its prompt, [N, 12], standardised: six numbers for each of two sources.

    The sources are the prompt's first part (paragraph or message: the knowledge of a grounded dialogue) and the whole
    prompt. Shares are of the completion's words; `recall` is of the source's distinct words.
    """

    def __init__(self) -> None:
        self.words: Tfidf[Words]  # of completions, for the IDF alone
        self.mean, self.scale = np.empty(0), np.empty(0)

    def fit(self, tokens: dict[str, Tokens]) -> None:
        self.words = Tfidf(Words.learn(tokens["completion"], _MIN_TEXTS, bigrams=False))
        self.words.fit(tokens["completion"])
        raw = self._measure(tokens)
        self.mean, self.scale = raw.mean(0), np.maximum(raw.std(0), _TINY)

    def __call__(self, tokens: dict[str, Tokens]) -> np.ndarray:
        return (self._measure(tokens) - self.mean) / self.scale

    def _measure(self, tokens: dict[str, Tokens]) -> np.ndarray:
        completion = tokens["completion"]
        columns = self.words.terms.columns(completion)
        # A word that was never learnt is as rare as the rarest.
        idf = np.where(columns < 0, self.words.idf.max(), self.words.idf[columns])
        return np.hstack([_overlap(tokens[source], completion, idf) for source in ("first part", "whole")])


def _overlap(source: Tokens, completion: Tokens, idf: np.ndarray) -> np.ndarray:
    """[N, 6]: _MEASURES."""
    n = completion.num_texts
    there, counts = source.counts(), completion.counts()
    there.data[:] = 1
    shared = counts.multiply(there).tocsr()
    words, weight, found = counts.sum(1), counts @ idf, shared @ idf
    (source_rows, source_pairs), (rows, pairs) = source.bigrams(), completion.bigrams()
    # A pair of words within its text, as one number.
    source_keys, keys = (
        (r * len(idf) + p[:, 0]) * len(idf) + p[:, 1] for r, p in ((source_rows, source_pairs), (rows, pairs))
    )
    found_pairs = np.bincount(rows, np.isin(keys, source_keys), minlength=n)
    measures = [
        shared.sum(1) / np.maximum(words, 1),
        found_pairs / np.maximum(np.bincount(rows, minlength=n), 1),
        found / np.maximum(weight, _TINY),
        np.log1p(np.maximum(weight - found, 0)),
        np.log1p(words),
        np.diff(shared.indptr) / np.maximum(there.sum(1), 1),
    ]
    return np.stack(measures, axis=1)
