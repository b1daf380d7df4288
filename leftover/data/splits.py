"""Groups and splits: rows that share a prompt have one id, and a prompt family stays on one side."""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from datasets import Dataset

from leftover.data.checks import SPLITS
from leftover.data.missing import documents_remedy
from leftover.data.rows import as_prompt, text_hash
from leftover.errors import UserError
from leftover.recipe.data_section import DataSection

log = logging.getLogger(__name__)

_SHINGLE_WORDS = 3
_NEAR_DUPLICATE = 0.8  # Jaccard similarity of word shingles
_EVAL_PROMPTS_CHECKED = 2000
_TRAIN_CHUNK = 256  # training prompts compared at a time


def assign_splits(rows: Dataset, data: DataSection, seed: int) -> dict[str, np.ndarray]:
    """Columns `group` [N] int64, `family_id` [N] int64 and `split` [N] (a name of `SPLITS`).

    The user's splits hold if every row has one. Otherwise families are ranked by a hash of their id and the seed,
    so that most of them keep their side when rows are added.
    """
    # The same messages with other tools are another prompt.
    names = [name for name in ("prompt", "tools") if name in rows.column_names]
    asked = (f"{row['prompt']}\0{row.get('tools') or ''}" for row in rows.select_columns(names))
    groups, families = unique_ids(asked, len(rows)), unique_ids(rows["family"], len(rows))
    given = np.fromiter((-1 if name is None else SPLITS.index(name) for name in rows["user_split"]), np.int8)
    known = given >= 0
    column = data.columns.split
    if known.any() and not known.all():
        raise UserError(
            f"{(~known).sum()} of {len(rows)} rows have no '{column}': give every row one, or none (`leftover "
            "generate --no-splits` writes none), or set data.columns.split: null, which splits all anew"
        )
    if known.all():
        splits = np.array(SPLITS, object)[given]
        held_out = [np.unique(families[splits == split]) for split in ("validation", "test")]
        if crossing := int(np.isin(np.concatenate(held_out), families[splits == "train"]).sum()):
            log.warning(
                "%d prompt families are in the given train split and in another split too: held-out results will "
                "look better than they are",
                crossing,
            )
        remedy = (
            f"the rows' own splits (column '{column}', or data.source_splits) do not name it; give rows of it, or set "
            "data.columns.split: null to have the rows split anew"
        )
    else:
        splits = _split_families(rows, families, data, seed)
        remedy = (
            f"{len(rows)} rows of {families.max() + 1} prompt families are too few to keep whole families apart; give "
            f"more rows, or the splits yourself (column '{column}')"
        ) + documents_remedy(data)
    for split in SPLITS:
        if not (splits == split).any():
            raise UserError(f"the {split} split has no row: {remedy}")
    return {"group": groups, "family_id": families, "split": splits}


def unique_ids(values: Iterable[str], count: int = -1) -> np.ndarray:
    """[N] int64: integers in order of first appearance; equal strings share one. `count`: N, where it is known."""
    hashes = np.fromiter((text_hash(value) for value in values), np.uint64, count)
    # As np.unique does it, with three arrays of N at once in place of five.
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    new = np.append(True, hashes[1:] != hashes[:-1])[: len(order)]
    del hashes
    ids = np.empty(len(order), np.int64)
    ids[order] = np.repeat(_ranks(order[new]), np.diff(np.append(np.flatnonzero(new), len(order))))
    return ids


def _ranks(keys: np.ndarray) -> np.ndarray:
    """[N] int64: the place of each key in their order."""
    ranks = np.empty(len(keys), np.int64)
    ranks[np.argsort(keys)] = np.arange(len(keys))
    return ranks


def _split_families(rows: Dataset, families: np.ndarray, data: DataSection, seed: int) -> np.ndarray:
    first_row = np.unique(families, return_index=True)[1]
    names = rows.select_columns(["family"]).select(first_row)["family"]
    digests = (hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in names)
    keys = np.fromiter((int.from_bytes(digest, "big") for digest in digests), np.uint64, len(first_row))
    ranks = _ranks(keys)
    num_test, num_validation = (round(share * len(keys)) for share in (data.test_size, data.validation_size))
    side = np.full(len(keys), "train", object)  # a reference for every row, and three texts
    side[ranks < num_test + num_validation] = "validation"
    side[ranks < num_test] = "test"
    return side[families]


def words_of(rows: Dataset) -> list[str]:
    """The prompts as texts; of a conversation what was said, without the names of roles and fields around it."""
    read = rows.select_columns(["prompt", "conversational"]).with_format("arrow")[:]
    prompts = map(as_prompt, read["prompt"].to_pylist(), read["conversational"].to_pylist())
    return [
        prompt if isinstance(prompt, str) else " ".join(str(turn.get("content") or "") for turn in prompt)
        for prompt in prompts
    ]


def count_near_duplicates(prompts: Sequence[str], splits: np.ndarray) -> int:
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
