"""What a reward is fitted on: labelled, scored or preferred completions, and the families held out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.data.formats import data_files, read_rows
from leftover.data.rows import Rejects, as_prompt, check_rows, text_hash
from leftover.errors import UserError, nearest
from leftover.recipe.data_section import POLICY_KEYS, DataSection, idle_for_rows
from leftover.rewards.base import Prompt, make
from leftover.store.manifest import file_hash
from leftover.store.table import equals

if TYPE_CHECKING:
    from datasets import Dataset

_MIN_FAMILIES = 10
_COLUMNS = ("prompt", "conversational", "completion", "recorded_reward", "family", "user_split", "is_chosen", "where")


@dataclass
class Examples:
    """Rows to learn from; with `pairs` of rows (chosen, rejected) where preferences are the target."""

    target: str  # label, score or pairs
    prompts: list[Prompt]
    completions: list[str]
    scores: np.ndarray  # [N] float64; NaN for pairs
    families: np.ndarray  # [N] str
    pairs: np.ndarray  # [P, 2] int64; empty for other targets
    outside: np.ndarray  # [N] bool: the user's split is not `train`
    where: list[str]  # the rows' places, for messages

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, mask: np.ndarray) -> "Examples":
        """The rows of a mask [N]; pairs stay whole, since their two rows share a family."""
        rows = np.flatnonzero(mask)
        place = np.cumsum(mask) - 1
        return Examples(
            self.target,
            [self.prompts[i] for i in rows],
            [self.completions[i] for i in rows],
            self.scores[rows],
            self.families[rows],
            place[self.pairs[mask[self.pairs[:, 0]]]],
            self.outside[rows],
            [self.where[i] for i in rows],
        )


def data_section(fit: object) -> DataSection:
    """The settings of `fit:`; UserError for keys that a data section does not have, or only for policies."""
    if not isinstance(fit, dict):
        raise UserError(
            f"fit is {fit!r:.60}: it takes `rows`, or the keys of a data section (path, format, columns, ...)"
        )
    if idle := [name for name in fit if name in POLICY_KEYS]:
        raise UserError(f"fit: {', '.join(idle)}: only for training policies; remove it")
    valid = [key for key in DataSection.model_fields if key not in POLICY_KEYS]
    if unknown := next((name for name in fit if name not in valid), None):
        close = nearest(str(unknown), valid) or f"; valid here: {', '.join(valid)}"
        raise UserError(f"fit: unknown key '{unknown}'{close}")
    return make("fit", DataSection, fit)


def data_identity(data: DataSection) -> dict[str, Any]:
    """What the rows of a data section depend on: its settings and the hashes of its files."""
    files = {path: file_hash(Path(path)) for path in data_files(data) if Path(path).is_file()}
    return {"settings": data.model_dump(mode="json", exclude=idle_for_rows(data)), "files": files}


@contextmanager
def of_fit() -> Iterator[None]:
    """Let a UserError that names keys of `data` name them as those of `fit`."""
    try:
        yield
    except UserError as error:
        keys = "|".join(DataSection.model_fields)
        raise UserError(re.sub(rf"\bdata\.({keys})\b", r"fit.\1", str(error))) from error


def read_examples(data: DataSection, rejected: Path | None, target: str) -> tuple[Examples, dict[str, int]]:
    """Rows of a data section as examples, and counts of rows read and dropped; faulty ones go to `rejected`."""
    stats: dict[str, int] = {}
    remedy = "Fix them, name your columns in data.columns, or set data.on_bad_row: skip to put faulty rows aside"
    with of_fit():
        rejects = None if rejected is None else Rejects(rejected)
        rows = list(check_rows(read_rows(data), data, rejects, stats, remedy))
    counts = {name: stats[name] for name in ("read", "rejected", "other_parts")}
    return make_examples(rows, target, f"column '{data.columns.reward}' (fit.columns.reward)", counts)


def run_examples(rows: "Dataset", target: str) -> tuple[Examples, dict[str, int]]:
    """The training rows of a run's table as examples, and counts."""
    chosen = rows.select_columns(list(_COLUMNS)).select(np.flatnonzero(equals(rows, "split", "train")))
    # Their split is that of the run: families are held out from the training rows.
    own = [row | {"user_split": None} for row in chosen]
    return make_examples(own, target, "reward column of the run's rows (data.columns.reward)", {"read": len(own)})


def make_examples(
    rows: list[dict[str, Any]], target: str, column: str, counts: dict[str, int]
) -> tuple[Examples, dict[str, int]]:
    """Rows of ROWS_SCHEMA as examples, and `counts` with the dropped rows added; `column` names the scores.

    Raises UserError if the rows have nothing to learn from.
    """
    target = _resolve(rows, target, column)
    pairs = _pairs(rows) if target == "pairs" else np.empty((0, 2), np.int64)
    scored = [i for i, row in enumerate(rows) if row["recorded_reward"] is not None]
    kept = np.unique(pairs) if target == "pairs" else np.array(scored, np.int64)
    counts = counts | {"without_pair" if target == "pairs" else "without_score": len(rows) - len(kept)}
    rows = [rows[i] for i in kept]
    scores = np.array([np.nan if target == "pairs" else row["recorded_reward"] for row in rows], np.float64)
    if np.ptp(scores) == 0:
        kind = "labels" if target == "label" else "scores"
        raise UserError(f"all {len(scores)} {kind} in the {column} are {scores[0]:g}: there is nothing to learn")
    examples = Examples(
        target,
        [as_prompt(row["prompt"], row["conversational"]) for row in rows],
        [row["completion"] for row in rows],
        scores,
        np.array([row["family"] for row in rows]),
        np.searchsorted(kept, pairs),
        np.array([row["user_split"] not in (None, "train") for row in rows], bool),
        [row["where"] for row in rows],
    )
    return examples, {f"rows_{name}": count for name, count in counts.items() if count}


def hold_out(examples: Examples, share: float, seed: int) -> np.ndarray:
    """[N] bool: the rows of held-out families: those of the user's validation and test rows, else by a hash.

    UserError where too few families, or one label only, stand on either side.
    """
    names = np.unique(examples.families)
    if len(names) < _MIN_FAMILIES:
        raise UserError(
            f"{len(examples)} rows of {len(names)} families are too few to fit a reward and to hold some out (at least "
            f"{_MIN_FAMILIES} families): give more rows, or name in fit.columns.family a column that tells them apart "
            "(rows of one prompt are one family by default)"
        )
    if examples.outside.any() and not examples.outside.all():
        held_out = np.isin(examples.families, examples.families[examples.outside])
    else:
        held_out = family_share(examples.families, share, seed, "held out")
    for side, rows in (("to learn from", ~held_out), ("held out", held_out)):
        _check_side(examples, rows, side)
    return held_out


def family_share(families: np.ndarray, share: float, seed: int, purpose: str) -> np.ndarray:
    """[N] bool: the rows of about `share` of the families (one at least), chosen by a hash of their names."""
    names = np.unique(families)
    places = np.array([text_hash(f"{purpose}\0{seed}\0{name}") for name in names], np.uint64)
    chosen = names[np.argsort(places)[: max(1, round(share * len(names)))]]
    return np.isin(families, chosen)


def _check_side(examples: Examples, rows: np.ndarray, side: str) -> None:
    needed = _MIN_FAMILIES // 2 if side == "to learn from" else 1
    kinds = {"rows": rows}
    if examples.target == "label":
        kinds = {f"rows of label {value}": rows & (examples.scores == value) for value in (0, 1)}
    for kind, of_kind in kinds.items():
        found = len(np.unique(examples.families[of_kind]))
        if found < needed:
            raise UserError(
                f"only {found} families have {kind} {side}; {needed} are needed: give more such rows, or set held_out"
            )
    if examples.target == "score" and np.ptp(examples.scores[rows]) == 0:
        raise UserError(f"all scores {side} are equal: give more rows, or set held_out")


def _resolve(rows: Sequence[dict[str, Any]], target: str, column: str) -> str:
    """The target that `auto` stands for; UserError if the rows do not have the one asked for."""
    preferred = any(row["is_chosen"] is not None for row in rows)
    if target == "pairs" and not preferred:
        raise UserError("target: pairs needs rows `chosen` and `rejected`, or rows with `is_chosen` true and false")
    # Readers give the rows of a pair without scores 1 and 0, which only repeat which one was chosen.
    bare = all(row["recorded_reward"] in (None, float(bool(row["is_chosen"]))) for row in rows)
    if target == "pairs" or (target == "auto" and preferred and bare):
        return "pairs"
    values = {row["recorded_reward"] for row in rows} - {None}
    if not values:
        raise UserError(f"no row has a score in the {column}: name the column that holds labels or scores")
    if target == "label" and values - {0.0, 1.0}:
        example = next(iter(sorted(values - {0.0, 1.0})))
        raise UserError(f"target: label needs 0 or 1 in the {column}, found {example:g}: set target: score")
    return ("label" if values <= {0.0, 1.0} else "score") if target == "auto" else target


def _pairs(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """[P, 2] (chosen, rejected): two rows that follow each other, share prompt and family, and differ in is_chosen."""
    pairs, i = [], 0
    while i + 1 < len(rows):
        a, b = rows[i], rows[i + 1]
        same = all(a[name] == b[name] for name in ("prompt", "family", "conversational"))
        if same and {a["is_chosen"], b["is_chosen"]} == {True, False}:
            pairs.append((i, i + 1) if a["is_chosen"] else (i + 1, i))
            i += 2
        else:
            i += 1
    if not pairs:
        raise UserError(
            "no two neighbouring rows share a prompt with one chosen and one rejected: put the rows of a pair next to "
            "each other"
        )
    return np.array(pairs, np.int64)
