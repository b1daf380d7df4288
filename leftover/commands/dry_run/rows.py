"""The rows of a recipe as far as they are here: counted exactly, and tokenised in a sample where they are many."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leftover.commands.dry_run.published_sizes import ROWS
from leftover.commands.dry_run.sources import data_paths, on_the_hub
from leftover.data.chat import Chat
from leftover.data.formats import read_rows
from leftover.data.rows import Rejects, check_rows, text_hash
from leftover.data.splits import assign_splits
from leftover.data.tokenizer import load_tokenizer, read_chat_template
from leftover.data.tokens import Limits, Template, tokenise
from leftover.data.vocabulary import train_tokenizer
from leftover.errors import UserError
from leftover.recipe.sections import Recipe, TokenizerSection

# Rows that are tokenised; the error of the totals is told beside them.
SAMPLE_ROWS = 2000
_Z95 = 1.96


@dataclass
class Lengths:
    """Tokens of the sampled rows, after the truncation rule."""

    prompts: np.ndarray  # [n]
    completions: np.ndarray  # [n]
    kept: np.ndarray  # [n] bool: not dropped for a completion that is too long
    num_rows: int  # that the sample stands for

    @property
    def exact(self) -> bool:
        return len(self.kept) == self.num_rows

    @property
    def kept_share(self) -> float:
        return float(self.kept.mean())

    def total(self, values: np.ndarray) -> tuple[float, float]:
        """The sum over the rows that are kept, and half its 95 % interval (simple random sample, finite population)."""
        per_row = np.where(self.kept, values, 0.0)
        n, rows = len(per_row), self.num_rows
        spread = float(per_row.std(ddof=1)) if n > 1 else 0.0
        return rows * float(per_row.mean()), _Z95 * rows * spread * ((1 - n / rows) / n) ** 0.5

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and completion tokens of the kept rows among `rows` [N] bool; from a sample as many drawn from it."""
        if self.exact:
            return self.prompts[rows & self.kept], self.completions[rows & self.kept]
        sampled = np.flatnonzero(self.kept)
        chosen = np.random.default_rng(0).choice(sampled, round(self.kept_share * rows.sum()))
        return self.prompts[chosen], self.completions[chosen]


@dataclass
class Rows:
    """Rows that were read; arrays [N]."""

    stats: dict[str, Any]
    group: np.ndarray
    family: np.ndarray
    split: np.ndarray  # train, validation or test
    chosen: np.ndarray  # bool
    recorded: np.ndarray  # the recorded score, NaN where there is none
    text_bytes: int
    lengths: Lengths | None  # None: no tokenizer is here

    @property
    def scored(self) -> np.ndarray:
        """[N] bool: has a recorded score."""
        return np.isfinite(self.recorded)

    def where(self, split: str, chosen_only: bool = False) -> np.ndarray:
        """[N] bool: the rows of a split."""
        inside = self.split == split
        return inside & self.chosen if chosen_only else inside

    def prompts(self, split: str) -> int:
        return len(np.unique(self.group[self.where(split)]))


def read(recipe: Recipe) -> Rows | str:
    """The rows, or the reason why they cannot be read yet. Raises UserError for rows that a run would refuse."""
    paths = data_paths(recipe.data)
    absent = [path for path in paths if not Path(path).is_file()]
    if absent:
        kind = "is on the Hub" if on_the_hub(absent[0]) else "is not there"
        splits = ", ".join(f"{split} {number:,}" for split, number in ROWS.get(absent[0], {}).items())
        published = f" (published records: {splits})" if splits else ""
        return f"unknown until downloaded: '{absent[0]}' {kind}{published}"
    if recipe.data.drop_listed is not None and not Path(recipe.data.drop_listed).is_file():
        return f"unknown until downloaded: '{recipe.data.drop_listed}' (key data.drop_listed) is not there"
    stats: dict[str, Any] = {}
    columns = _Columns({name: [] for name in ("prompt", "family", "tools", "user_split")})
    chosen, recorded, text_bytes, sample = [], [], 0, _Reservoir(SAMPLE_ROWS)
    for row in check_rows(read_rows(recipe.data), recipe.data, _Unwritten(), stats):
        columns["prompt"].append(str(text_hash(row["prompt"])))
        for name in ("family", "tools", "user_split"):
            columns[name].append(row[name])
        chosen.append(bool(row["is_chosen"]))
        recorded.append(np.nan if row["recorded_reward"] is None else row["recorded_reward"])
        text_bytes += len(row["prompt"].encode()) + len(row["completion"].encode()) + len(row["family"].encode())
        sample.add(row)
    sides = assign_splits(columns, recipe.data, recipe.seed)
    if recipe.data.rows == "chosen" and not any(chosen):
        raise UserError("data.rows: chosen needs rows that say which completion was chosen; none does")
    return Rows(
        stats,
        sides["group"],
        sides["family_id"],
        sides["split"],
        np.array(chosen),
        np.array(recorded, np.float64),
        text_bytes,
        _lengths(recipe, sample.rows, len(chosen)),
    )


def left_out(stats: dict[str, Any]) -> dict[str, int]:
    """Rows that were read and are no rows of the run, by reason."""
    found = {"rejected": stats["rejected"], "outside data.part": stats["other_parts"]}
    found |= dict(stats.get("left_out") or Counter())
    return {reason: count for reason, count in found.items() if count}


def _lengths(recipe: Recipe, sample: list[dict[str, Any]], num_rows: int) -> Lengths | None:
    model, data = recipe.model, recipe.data
    if isinstance(model.tokenizer, TokenizerSection):
        # The run trains its own on all training rows; the sample's is much like it.
        texts = (row["completion"] if row["conversational"] else row["prompt"] + row["completion"] for row in sample)
        tokenizer = train_tokenizer(texts, model.tokenizer.vocab_size)
        tokenizer.chat_template = read_chat_template(model.chat_template)
    else:
        path = model.tokenizer or str(model.path)
        try:
            tokenizer = load_tokenizer(
                path, chat_template=model.chat_template, trust_remote_code=model.trust_remote_code
            )
        except UserError:
            if Path(path).exists():
                raise
            return None
    limits = Limits(data.max_prompt_tokens, data.max_completion_tokens, data.long_completions)
    asked, told, chat = ([row[name] for row in sample] for name in ("prompt", "completion", "conversational"))
    template = Template(Chat(tokenizer, model.template_options, model.end_tokens), [row["tools"] for row in sample])
    done = tokenise(tokenizer, asked, told, chat, limits, template)
    prompts, completions = (np.array([len(ids) for ids in part]) for part in (done.prompt_ids, done.completion_ids))
    lengths = Lengths(prompts, completions, np.array(done.kept), num_rows)
    if not lengths.kept.any():
        raise UserError(
            f"every completion is longer than data.max_completion_tokens ({data.max_completion_tokens}); raise it"
        )
    return lengths


class _Columns:
    """Lists by name, read as the columns of a `datasets.Dataset`."""

    def __init__(self, columns: dict[str, list[Any]]):
        self._columns = columns

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)


class _Unwritten(Rejects):
    """Rejects that leave no file."""

    def __init__(self) -> None:
        super().__init__(Path("rejected_rows.jsonl"))

    def start(self, stage: str) -> None:
        return

    def add(self, stage: str, where: str, reason: str, row: dict[str, Any]) -> None:
        return


class _Reservoir:
    """A simple random sample of a stream (Vitter's algorithm R), in the order of the stream where all of it fits."""

    def __init__(self, size: int):
        self.size, self.seen, self.rows = size, 0, list[Any]()
        self._random = random.Random(0)

    def add(self, row: Any) -> None:
        self.seen += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
        elif (place := self._random.randrange(self.seen)) < self.size:
            self.rows[place] = row
