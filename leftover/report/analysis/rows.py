"""Scored rows as arrays: from the table of a run, or from a data file, whose value is fitted on words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leftover.data.chat import readable
from leftover.errors import UserError
from leftover.objectives.advantage import advantage
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
    about_value: dict[str, Any]  # targets, kind, r2 (None if it could not be measured)

    @property
    def advantage(self) -> np.ndarray:
        return advantage(self.reward, self.value)


def rows_of_table(table: Table, about_value: dict[str, Any] | None) -> ScoredRows | None:
    """Training rows of a prepared table, or None if none has a reward; without a value, one is fitted on words."""
    if not table.has("reward"):
        return None
    blocks = ["rows", "split", "tokens", "reward"]
    if about_value:  # without it, the table's values are of an earlier recipe of the folder
        blocks.append("value")
    rows = table.open(*filter(table.has, blocks))
    keep = equals(rows, "split", "train")
    if "kept" in rows.column_names:
        keep &= equals(rows, "kept", True)
    rows = rows.select(np.flatnonzero(keep))
    reward = column(rows, "reward") if len(rows) else np.empty(0)
    if not np.isfinite(reward).any():
        return None
    pairs = zip(rows["prompt"][:], rows["conversational"][:], strict=True)
    prompts = [readable({"prompt": text, "conversational": of_messages}) for text, of_messages in pairs]
    if "value" in rows.column_names:
        value = column(rows, "value")
    else:
        value, about_value = value_of_words(prompts, column(rows, "group"), column(rows, "family_id"), reward)
    return ScoredRows(
        prompts, rows["completion"][:], rows["source"][:], rows["where"][:], reward, value, about_value or {}
    )


def value_of_words(
    prompts: Sequence[str], group: np.ndarray, family: np.ndarray, reward: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """V of every row, [N], without a model: recorded rewards regressed on the words of the prompt, cross-fitted.

    As `value.targets: recorded`, with TF-IDF vectors reduced to their first singular directions in place of a
    model's states; the constant if nothing beats it. Rows of one prompt family never serve their own value.
    """
    from leftover.prepare.value.estimate import RowConstants, estimate_values
    from leftover.recipe.sections import ValueSection

    if len(np.unique(family[np.isfinite(reward)])) < 2:
        raise UserError("all scored rows have the same prompt (or family): there is nothing to compare its reward with")
    features = _word_features(prompts)
    rows = RowConstants(group, family, reward, np.ones(len(reward), bool), features, [[]] * len(reward))
    settings = ValueSection(candidates=["constant", "ridge"])
    value, about = estimate_values(rows, settings, "recorded", seed=0)
    return value, about | {"features": "words of the prompt"}


def _word_features(prompts: Sequence[str]) -> np.ndarray:
    """[N, at most 100] float32; computed once for each distinct prompt."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    try:
        vectors = TfidfVectorizer(sublinear_tf=True, min_df=min(2, len(place)), max_features=50_000)
        matrix = vectors.fit_transform(place)
    except ValueError:  # no word that two prompts share
        return np.zeros((len(prompts), 1), np.float32)
    num_features = min(_NUM_FEATURES, matrix.shape[1] - 1, len(place) - 1)
    if num_features < 1:
        return np.zeros((len(prompts), 1), np.float32)
    features = TruncatedSVD(num_features, random_state=0).fit_transform(matrix)
    return features[[place[prompt] for prompt in prompts]].astype(np.float32)
