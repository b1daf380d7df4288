"""Scored rows as arrays: from the table of a run, or from a data file, whose value is fitted on words."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.data.chat import readable
from leftover.data.records import unfilled
from leftover.errors import UserError, counted
from leftover.objectives.advantage import advantage
from leftover.prepare.readers import training_mask
from leftover.recipe.data_section import ColumnsSection
from leftover.runs.finished import FinishedRun
from leftover.store.table import Stored, column, equals

if TYPE_CHECKING:
    from datasets import Dataset

_PLAIN = ColumnsSection()  # without a template
_NUM_FEATURES = 100
# So many prompts teach which words there are and their directions; the rest is read a part at a time.
_FITTED, _CHUNK = 100_000, 4096


@dataclass
class ScoredRows:
    """Texts [N], of which none need be in memory, and arrays [N] in which NaN means that a row has no such number."""

    prompts: Sequence[str]
    completions: Sequence[str]
    sources: Sequence[str | None]
    where: Sequence[str]
    reward: np.ndarray
    value: np.ndarray
    about_value: dict[str, Any]  # targets, kind, r2 (None if it could not be measured)
    stored: "Dataset"  # the rows with all that was read of them
    group: np.ndarray  # rows of one prompt share a number
    columns: ColumnsSection = field(
        default_factory=ColumnsSection
    )  # whose templates are in the stored texts, and not in these
    looked_at: str = ""  # which of all rows these are, in words

    @cached_property
    def advantage(self) -> np.ndarray:
        return advantage(self.reward, self.value)


def rows_of_run(run: FinishedRun) -> ScoredRows | None:
    """Training rows of a run's table, with its value; None if no row has a reward.

    Before there is a value, one is fitted on words. What an earlier recipe of the folder left is not read.
    """
    if not all(map(run.has_current, ("rows", "split", "tokens", "reward"))):
        return None
    blocks = ["rows", "split", "tokens", "reward"]
    about_value = run.prepared.get("value") if run.has_current("value") else None
    if about_value:
        blocks.append("value")
    rows = run.table.open(*blocks)
    mask = training_mask(rows)
    looked_at = _looked_at(rows, int(mask.sum()))
    rows = rows.select(np.flatnonzero(mask))
    reward = column(rows, "reward") if len(rows) else np.empty(0)
    if not np.isfinite(reward).any():
        return None
    group, columns = column(rows, "group"), run.recipe.data.columns
    if about_value:
        value = column(rows, "value")
    else:
        value, about_value = value_of_words(prompts_of(rows), group, column(rows, "family_id"), reward)
    chat = run.recipe.data.prompts == "chat"
    return scored_rows(rows, group, reward, value, about_value, columns, looked_at, chat)


def _looked_at(rows: "Dataset", training: int) -> str:
    """Training rows alone are looked at: where the others are."""
    kept = equals(rows, "kept", True)
    others = {f"of {name}": int((kept & equals(rows, "split", name)).sum()) for name in ("validation", "test")}
    others["too long"] = int((~kept).sum())
    told = ", ".join(f"{number:,} {what}" for what, number in others.items() if number)
    not_at = f" (not at {told})" if told else ""
    return f"the {counted(training, 'training row')} of {counted(len(rows), 'row')}{not_at}"


def scored_rows(
    rows: "Dataset",
    group: np.ndarray,
    reward: np.ndarray,
    value: np.ndarray,
    about_value: dict[str, Any],
    columns: ColumnsSection = _PLAIN,
    looked_at: str = "",
    chat: bool = False,
) -> ScoredRows:
    """The texts of stored rows as the user's own columns have them, with these numbers. `chat`: of `data.prompts`."""
    completions = Stored(rows, "completion", of=lambda row: unfilled(columns.completion, row["completion"]))
    sources, where = (Stored(rows, name) for name in ("source", "where"))
    prompts = prompts_of(rows, columns.prompt, chat)
    return ScoredRows(prompts, completions, sources, where, reward, value, about_value, rows, group, columns, looked_at)


def prompts_of(rows: "Dataset", template: str = "", chat: bool = False) -> Sequence[str]:
    """The prompts as people read them. `chat`: a message of a user alone was a text, which is given back."""

    def text(row: dict[str, Any]) -> str:
        if not row["conversational"]:
            return unfilled(template, row["prompt"])
        messages = json.loads(row["prompt"]) if chat else []
        asked = len(messages) == 1 and messages[0]["role"] == "user"
        return unfilled(template, messages[0]["content"]) if asked else readable(row)

    return Stored(rows, "prompt", "conversational", of=text)


def value_of_words(
    prompts: Sequence[str], group: np.ndarray, family: np.ndarray, reward: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """V of every row, [N], without a model: recorded rewards regressed on the words of the prompt, cross-fitted.

    As `value.targets: recorded`, with TF-IDF vectors reduced to their first singular directions in place of a
    model's states; the constant if nothing beats it. Rows of one prompt family never serve their own value.
    """
    from leftover.prepare.value.estimate import RowConstants, estimate_values
    from leftover.prepare.value.fit import Some
    from leftover.recipe.sections import ValueSection

    if len(np.unique(family[np.isfinite(reward)])) < 2:
        raise UserError("all scored rows have the same prompt (or family): there is nothing to compare its reward with")
    _, first, of_row = np.unique(group, return_index=True, return_inverse=True)
    is_first = np.zeros(len(group), bool)
    is_first[first] = True
    features = _word_features(_Some(prompts, is_first), len(first))
    of_row = np.searchsorted(np.sort(first), first)[of_row]
    rows = RowConstants(group, family, reward, np.ones(len(reward), bool), Some(features, of_row), [[]] * len(reward))
    settings = ValueSection(candidates=["constant", "ridge"])
    value, about = estimate_values(rows, settings, "recorded", seed=0)
    return value, about | {"features": "words of the prompt"}


@dataclass
class _Some:
    """Texts where a mask [N] holds, in their order; read anew by every loop."""

    texts: Iterable[str]
    mask: np.ndarray

    def __iter__(self) -> Iterator[str]:
        return itertools.compress(self.texts, self.mask)


def _word_features(prompts: Iterable[str], count: int) -> np.ndarray:
    """[N, at most 100] float16 of N = `count` prompts, by the words and directions of 100,000 that are drawn."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    drawn = np.zeros(count, bool)
    drawn[np.random.default_rng(0).permutation(count)[:_FITTED]] = True
    try:
        words = TfidfVectorizer(sublinear_tf=True, min_df=min(2, count), max_features=50_000)
        matrix = words.fit_transform(_Some(prompts, drawn))
    except ValueError:  # no word that two prompts share
        return np.zeros((count, 1), np.float16)
    num_features = min(_NUM_FEATURES, matrix.shape[1] - 1, matrix.shape[0] - 1)
    if num_features < 1:
        return np.zeros((count, 1), np.float16)
    directions = TruncatedSVD(num_features, random_state=0).fit(matrix)
    stream, parts = iter(prompts), list[np.ndarray]()
    while part := list(itertools.islice(stream, _CHUNK)):
        parts.append(directions.transform(words.transform(part)).astype(np.float16))
    return np.concatenate(parts)
