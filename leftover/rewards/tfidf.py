"""TF-IDF diversity of a completion, a reward of A-LoL's dialogue tasks (arXiv 2305.14718)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic.dataclasses import dataclass

from leftover.errors import UserError
from leftover.rewards.base import STRICT, Prompt, TextReward, not_fitted
from leftover.store.manifest import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

_FEW_TERMS = 5
_BATCH_ROWS = 2048


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
    """[N] from TF-IDF weights [N, terms]: the mean of those above 0, times n/10 where there are n < 5 of them."""
    num_terms = np.diff(weights.indptr)
    mean = np.asarray(weights.sum(axis=1)).ravel() / np.maximum(num_terms, 1)
    return mean * np.where(num_terms < _FEW_TERMS, num_terms / 10, 1.0)
