"""Groups and splits: rows that share a prompt have one id, and a prompt family stays on one side."""

import hashlib
import itertools
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from leftover.data.checks import SPLITS
from leftover.data.rows import text_hash
from leftover.errors import UserError
from leftover.recipe.sections import DataSection

log = logging.getLogger(__name__)

_SHINGLE_WORDS = 3
_NEAR_DUPLICATE = 0.8  # Jaccard similarity of word shingles
_EVAL_PROMPTS_CHECKED = 2000
_TRAIN_CHUNK = 256  # training prompts compared at a time


def assign_splits(rows: Any, data: DataSection, seed: int) -> dict[str, np.ndarray]:
    """Columns `group` [N] int64, `family_id` [N] int64 and `split` [N] (a name of `SPLITS`).

    The user's splits are taken where every row has one. Else families are ranked by a hash of their id and the
    seed, so that most of them keep their side when rows are added.
    """
    groups, families = unique_ids(_asked(rows)), unique_ids(rows["family"])
    user_splits = rows["user_split"]
    given = sum(split is not None for split in user_splits)
    if given and given < len(rows):
        raise UserError(
            f"{len(rows) - given} of {len(rows)} rows have no '{data.columns.split}': give every row one, or none"
        )
    if given:
        splits = np.array([str(split) for split in user_splits])
        _check_user_splits(splits, families)
    else:
        splits = _split_families(rows["family"], families, data, seed)
    for split in SPLITS:
        if given and not (splits == split).any():
            raise UserError(
                f"the {split} split has no row: the rows' own splits (column '{data.columns.split}', or "
                "data.source_splits) do not name it; give rows of it, or set data.columns.split: null to have the "
                "rows split anew"
            )
        if not (splits == split).any():
            raise UserError(
                f"the {split} split has no row: {len(rows)} rows of {families.max() + 1} prompt families are too few "
                "to keep whole families apart; give more rows, or the splits yourself (column "
                f"'{data.columns.split}')"
            )
    return {"group": groups, "family_id": families, "split": splits}


def _asked(rows: Any) -> Iterable[str]:
    """What the model is asked in every row: the same messages with other tools are another prompt."""
    if "tools" not in rows.column_names:
        return rows["prompt"]
    return (f"{prompt}\0{tools or ''}" for prompt, tools in zip(rows["prompt"], rows["tools"], strict=True))


def unique_ids(values: Iterable[str]) -> np.ndarray:
    """[N] int64: integers in order of first appearance; equal strings share one."""
    hashes = np.fromiter((text_hash(value) for value in values), np.uint64)
    _, first, ids = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[ids]


def _split_families(names: Any, families: np.ndarray, data: DataSection, seed: int) -> np.ndarray:
    num_families = int(families.max()) + 1
    first_row = np.unique(families, return_index=True)[1]
    keys = [hashlib.blake2b(f"{seed}\0{names[int(i)]}".encode(), digest_size=8).digest() for i in first_row]
    rank = np.empty(num_families, np.int64)
    rank[np.argsort(np.array(keys))] = np.arange(num_families)
    num_test = round(data.test_size * num_families)
    num_validation = round(data.validation_size * num_families)
    side = np.where(rank < num_test, "test", np.where(rank < num_test + num_validation, "validation", "train"))
    return side[families]


def _check_user_splits(splits: np.ndarray, families: np.ndarray) -> None:
    crossing = 0
    for split in ("validation", "test"):
        crossing += len(np.intersect1d(families[splits == split], families[splits == "train"]))
    if crossing:
        log.warning(
            "%d prompt families stand in the given train split and in another split too: held-out results will "
            "look better than they are",
            crossing,
        )


def count_near_duplicates(prompts: Any, splits: np.ndarray) -> int:
    """How many held-out prompts (of at most 2,000) nearly repeat a training prompt: shingle Jaccard >= 0.8."""
    from sklearn.feature_extraction.text import HashingVectorizer

    held_out = sorted({p for p, s in zip(prompts, splits, strict=True) if s != "train"})[:_EVAL_PROMPTS_CHECKED]
    vectorizer = HashingVectorizer(
        analyzer=_shingles, binary=True, norm=None, alternate_sign=False, n_features=2**20, dtype=np.float32
    )
    matrix = vectorizer.transform(held_out).T.tocsr()
    sizes = np.asarray(matrix.sum(0)).ravel()
    found = np.zeros(len(held_out), bool)
    train = (p for p, s in zip(prompts, splits, strict=True) if s == "train")
    while chunk := list(itertools.islice(train, _TRAIN_CHUNK)):
        train_matrix = vectorizer.transform(chunk)
        shared = (train_matrix @ matrix).tocoo()
        union = np.asarray(train_matrix.sum(1)).ravel()[shared.row] + sizes[shared.col] - shared.data
        found[shared.col[shared.data / np.maximum(union, 1) >= _NEAR_DUPLICATE]] = True
    return int(found.sum())


def _shingles(text: str) -> list[str]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    size = min(_SHINGLE_WORDS, len(words))
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)] if words else [""]
