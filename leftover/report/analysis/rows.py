"""Scored rows as arrays: from the table of a run, or from a data file, whose value is fitted on words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leftover.errors import UserError
from leftover.store.table import Table, column, equals

_NUM_FEATURES = 100


@dataclass
class ScoredRows:
    """Texts [N], and arrays [N] in which NaN means that a row has no such number."""

    prompts: list[str]
    completions: list[str]
    sources: list[str | None]
    where: list[str]
    reward: np.ndarray
    value: np.ndarray
    about_value: dict[str, Any]  # targets, kind, r2 (None where it could not be measured)

    @property
    def advantage(self) -> np.ndarray:
        return self.reward - self.value


def rows_of_table(table: Table, about_value: dict[str, Any] | None) -> ScoredRows | None:
    """Training rows of a prepared table; their value is fitted on words where the run has none.

    None where the table has no rewards, or no training row has one.
    """
    if not table.has("reward"):
        return None
    # A value that the run noted nothing of is of an earlier recipe of its folder.
    names = ("rows", "split", "tokens", "reward", *(("value",) if about_value else ()))
    blocks = [block for block in names if table.has(block)]
    rows = table.open(*blocks)
    keep = equals(rows, "split", "train")
    if "kept" in rows.column_names:
        keep &= equals(rows, "kept", True)
    rows = rows.select(np.flatnonzero(keep))
    reward = column(rows, "reward") if len(rows) else np.empty(0)
    if not np.isfinite(reward).any():
        return None
    prompts = _prompts(rows["prompt"][:], rows["conversational"][:])
    if "value" in rows.column_names:
        value = column(rows, "value")
    else:
        value, about_value = value_of_words(prompts, column(rows, "group"), column(rows, "family_id"), reward)
    return ScoredRows(
        prompts, rows["completion"][:], rows["source"][:], rows["where"][:], reward, value, about_value or {}
    )


def value_of_words(
    prompts: Sequence[str], group: np.ndarray, family: np.ndarray, reward: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, dict[str, Any]]:
    """V of every row, [N], without a model: recorded rewards regressed on the words of the prompt, cross-fitted.

    As `value.targets: recorded`, with TF-IDF vectors reduced to their first singular directions in place of a
    model's states; the constant where nothing beats it. Rows of one prompt family never serve their own value.
    """
    from leftover.prepare.value.estimate import RowConstants, estimate_values
    from leftover.recipe.sections import ValueSection

    if len(np.unique(family[np.isfinite(reward)])) < 2:
        raise UserError("all scored rows are of one prompt (or family): there is nothing to compare its reward with")
    features = _word_features(prompts)
    rows = RowConstants(group, family, reward, np.ones(len(reward), bool), features, [[]] * len(reward))
    settings = ValueSection(candidates=["constant", "ridge"])
    value, about = estimate_values(rows, settings, "recorded", seed=seed)
    return value, about | {"features": "words of the prompt"}


def _word_features(prompts: Sequence[str]) -> np.ndarray:
    """[N, at most 100] float32; computed once for each distinct prompt."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    unique = list(dict.fromkeys(prompts))
    place = {prompt: i for i, prompt in enumerate(unique)}
    try:
        vectors = TfidfVectorizer(sublinear_tf=True, min_df=min(2, len(unique)), max_features=50_000)
        matrix = vectors.fit_transform(unique)
    except ValueError:  # no word that two prompts share
        return np.zeros((len(prompts), 1), np.float32)
    num_features = min(_NUM_FEATURES, matrix.shape[1] - 1, len(unique) - 1)
    if num_features < 1:
        return np.zeros((len(prompts), 1), np.float32)
    features = TruncatedSVD(num_features, random_state=0).fit_transform(matrix)
    return features[[place[prompt] for prompt in prompts]].astype(np.float32)


def _prompts(texts: Sequence[str], conversational: Sequence[bool]) -> list[str]:
    from leftover.data.chat import readable

    pairs = zip(texts, conversational, strict=True)
    return [readable({"prompt": text, "conversational": of_messages}) for text, of_messages in pairs]
