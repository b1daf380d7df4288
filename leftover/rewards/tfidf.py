"""TF-IDF diversity of a completion, a reward of A-LoL's dialogue tasks (arXiv 2305.14718)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.errors import UserError
from leftover.store.manifest import write_json

_FEW_TERMS = 5
_BATCH_ROWS = 2048


class TfidfDiversityReward:
    """How rare the words of a completion are: mean of its non-zero TF-IDF weights, in [0, 1].

    A completion of n < 5 distinct known terms gets n/10 of it: one word alone would have the weight 1. One without a
    known term gets 0.0. Terms and their document frequencies are those of the training completions, by
    scikit-learn's TfidfVectorizer with its defaults (lower case, words of two letters or more, smoothed IDF, unit
    length).
    """

    reads_rows = True

    def __init__(self) -> None:
        self._vectorizer: Any = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        if self._vectorizer is None:
            raise UserError(
                "text reward 'tfidf_diversity' has not read the training completions: use it in a recipe, or call fit "
                "and load"
            )
        return diversity(self._vectorizer.transform(completions)).tolist()

    def fit(self, folder: Path, rows: Any) -> dict[str, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer()
        try:
            vectorizer.fit(_training_completions(rows))
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

        terms = json.loads((folder / "terms.json").read_text(encoding="utf-8"))
        self._vectorizer = TfidfVectorizer(vocabulary={term: i for i, term in enumerate(terms)})
        self._vectorizer.idf_ = np.load(folder / "idf.npy", allow_pickle=False)

    def identity(self) -> dict[str, Any]:
        return {"type": "text", "function": "tfidf_diversity"}


def diversity(weights: Any) -> np.ndarray:
    """[N] from TF-IDF weights [N, terms] (sparse rows): the mean of those above 0, n/10 of it where they are n < 5."""
    num_terms = np.diff(weights.indptr)
    mean = np.asarray(weights.sum(axis=1)).ravel() / np.maximum(num_terms, 1)
    return mean * np.where(num_terms < _FEW_TERMS, num_terms / 10, 1.0)


def _training_completions(rows: Any) -> Iterator[str]:
    for part in rows.select_columns(["completion", "split"]).iter(batch_size=_BATCH_ROWS):
        yield from (text for text, split in zip(part["completion"], part["split"], strict=True) if split == "train")
