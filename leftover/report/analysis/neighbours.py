"""Rows whose reward disagrees with those of rows that read like them: labels to check first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_CHUNK = 512  # rows whose similarities to all others are held at once
_LEAST_SIMILARITY = 0.1  # below, a row has no neighbour worth the name


def neighbour_disagreement(
    prompts: Sequence[str],
    completions: Sequence[str],
    rewards: np.ndarray,
    *,
    among: np.ndarray | None = None,
    num_neighbours: int = 10,
    max_rows: int = 4000,
) -> dict[str, Any]:
    """Compare every row's reward with the mean reward of its nearest rows, weighted by similarity.

    Similarity is the mean of two cosines between TF-IDF vectors (words and pairs of words, sublinear term counts):
    of the prompts and of the completions. A row that repeats another (similarity 1) counts as its neighbour.

    Args:
        rewards: [N], finite where rows are compared.
        among: indices of the rows that are compared; None: of all.
        max_rows: of more rows this many are drawn, since the cost grows with their square.

    Returns:
        rows: [n] indices of the rows compared, n <= max_rows; fewer if rows are like no other.
        expected: [n] the neighbours' weighted mean reward.
        neighbours: [n, k] indices of the neighbours, the nearest first.
        similarity: [n] mean similarity to them.
        correlation: between reward and expectation over the rows; NaN if either is constant.
        num_compared: how many rows were drawn.
    """
    among = np.arange(len(prompts)) if among is None else among
    chosen = np.sort(np.random.default_rng(0).permutation(among)[:max_rows])
    num_neighbours = max(0, min(num_neighbours, len(chosen) - 1))
    texts = [[column[i] for i in chosen.tolist()] for column in (prompts, completions)]
    nearest, similarity = _nearest(texts, num_neighbours)
    total = similarity.sum(1)
    known = total / max(num_neighbours, 1) >= _LEAST_SIMILARITY
    values = np.asarray(rewards, np.float64)[chosen]
    expected = (similarity * values[nearest]).sum(1)[known] / total[known]
    observed = values[known]
    varied = len(observed) > 2 and np.ptp(observed) > 0 and np.ptp(expected) > 0
    return {
        "rows": chosen[known],
        "expected": expected,
        "neighbours": chosen[nearest[known]],
        "similarity": total[known] / max(num_neighbours, 1),
        "correlation": float(np.corrcoef(observed, expected)[0, 1]) if varied else float("nan"),
        "num_compared": len(chosen),
    }


def _nearest(columns: list[list[str]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] rows most similar to every row, and how similar; a row is not its own neighbour."""
    from scipy.sparse import hstack

    matrix = hstack([_vectors(texts) for texts in columns]).tocsr()
    num_rows = matrix.shape[0]
    nearest = np.empty((num_rows, k), np.int64)
    similarity = np.empty((num_rows, k))
    for start in range(0, num_rows, _CHUNK):
        cosines = (matrix[start : start + _CHUNK] @ matrix.T).toarray() / len(columns)
        here = np.arange(len(cosines))
        cosines[here, start + here] = -1.0
        found = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        nearest[start : start + _CHUNK] = found
        similarity[start : start + _CHUNK] = np.take_along_axis(cosines, found, 1)
    return nearest, np.clip(similarity, 0.0, 1.0)


def _vectors(texts: list[str]) -> Any:
    """TF-IDF rows of length 1; zeros for a text without a word."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    except ValueError:  # no text has a word
        return csr_matrix((len(texts), 1), dtype=np.float32)
