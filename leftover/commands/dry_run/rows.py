"""The rows of a recipe, if they can be read: counted exactly, and of many rows a sample is tokenised."""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from leftover.commands.dry_run.published_sizes import ROWS
from leftover.commands.dry_run.shape import find_config
from leftover.commands.dry_run.sources import on_the_hub
from leftover.data.chat import Chat
from leftover.data.formats import data_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, check_rows, text_hash
from leftover.data.splits import assign_splits
from leftover.data.tokenizer import load_tokenizer, read_chat_template, train_tokenizer
from leftover.data.tokens import Limits, tokenise
from leftover.errors import UserError
from leftover.models.load import is_encoder_decoder
from leftover.models.vocabulary import check_vocabulary_of
from leftover.prepare.checks import NAME_SCORES, NONE_CHOSEN, all_too_long
from leftover.recipe.needs import records_scores
from leftover.recipe.sections import ModelSection, Recipe, TokenizerSection
from leftover.store.table import column, equals, on_disk

# Rows that are tokenised; the error of the totals is printed beside them.
SAMPLE_ROWS = 2000
_Z95 = 1.96
_COLUMNS = ("prompt", "family", "tools", "user_split", "is_chosen", "recorded_reward")  # that splits depend on


@dataclass
class Lengths:
    """Tokens of the sampled rows, after the truncation rule."""

    prompts: np.ndarray  # [n]
    completions: np.ndarray  # [n]
    kept: np.ndarray  # [n] bool: not dropped for a completion that is too long
    num_rows: int  # that the sample stands for
    share_cut: float = 0.0  # of the rows: their completion is cut at the limit, and has no end

    @property
    def exact(self) -> bool:
        return len(self.kept) == self.num_rows

    @property
    def kept_share(self) -> float:
        return float(self.kept.mean())

    def total(self, values: np.ndarray) -> tuple[float, float]:
        """The sum over the kept rows, and half its 95 % interval (simple random sample, finite population)."""
        per_row = np.where(self.kept, values, 0.0)
        n, rows = len(per_row), self.num_rows
        spread = float(per_row.std(ddof=1)) if n > 1 else 0.0
        return rows * float(per_row.mean()), _Z95 * rows * spread * ((1 - n / rows) / n) ** 0.5

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and completion tokens of the kept rows among `rows` [N] bool; as many draws from a sample."""
        if self.exact:
            chosen = np.flatnonzero(rows & self.kept)
        else:
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
    recorded: np.ndarray  # the recorded score, or NaN
    text_bytes: int
    lengths: Lengths | None  # None: the tokenizer is not downloaded

    @property
    def scored(self) -> np.ndarray:
        """[N] bool: has a recorded score."""
        return np.isfinite(self.recorded)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows that were read but are not used, by reason."""
        found = {"rejected": self.stats["rejected"], "outside data.part": self.stats["other_parts"]}
        return {reason: count for reason, count in (found | self.stats["left_out"]).items() if count}

    def where(self, split: str | None, chosen_only: bool = False) -> np.ndarray:
        """[N] bool: the rows of a split (None: of all)."""
        inside = np.ones(len(self.split), bool) if split is None else self.split == split
        return inside & self.chosen if chosen_only else inside

    def prompts(self, split: str) -> int:
        return len(np.unique(self.group[self.where(split)]))


def read(recipe: Recipe) -> Rows | str:
    """The rows, or the reason why they cannot be read yet. Raises UserError for rows that a run would refuse."""
    data = recipe.data
    absent = next((path for path in data_files(data) if not Path(path).is_file()), None)
    if absent is not None:
        if not on_the_hub(absent):
            return f"unknown until '{absent}' is here"
        splits = ", ".join(f"{split} {number:,}" for split, number in ROWS.get(absent, {}).items())
        published = f" (published records: {splits})" if splits else ""
        return f"unknown until downloaded: '{absent}' is on the Hub{published}"
    stats: dict[str, Any] = {}
    sample, draws, text_bytes = list[dict[str, Any]](), random.Random(0), 0
    remedy = NAME_SCORES if records_scores(recipe) else None

    def read_through() -> Iterator[dict[str, Any]]:
        nonlocal text_bytes
        for number, row in enumerate(check_rows(read_rows(data), data, None, stats, score_remedy=remedy)):
            # A simple random sample of the stream (Vitter's algorithm R), in its order if all of it fits.
            if len(sample) < SAMPLE_ROWS:
                sample.append(row)
            elif (place := draws.randrange(number + 1)) < SAMPLE_ROWS:
                sample[place] = row
            text_bytes += sum(len(row[name].encode()) for name in ("prompt", "completion", "family"))
            prompt = str(text_hash(row["prompt"]))  # equal for equal prompts, and short
            yield {name: prompt if name == "prompt" else row[name] for name in _COLUMNS}

    with tempfile.TemporaryDirectory(prefix="leftover-dry-run-") as folder:
        schema = pa.schema([ROWS_SCHEMA.field(name) for name in _COLUMNS])
        rows = on_disk(Path(folder), read_through(), schema)
        sides = assign_splits(rows, data, recipe.seed)
        chosen = equals(rows, "is_chosen", True)
        recorded = column(rows, "recorded_reward").astype(np.float64)
    if data.train_on == "chosen" and not chosen.any():
        raise UserError(NONE_CHOSEN)
    arrays = (sides["group"], sides["family_id"], sides["split"], chosen, recorded)
    return Rows(stats, *arrays, text_bytes, _lengths(recipe, sample, len(chosen)))


def _lengths(recipe: Recipe, sample: list[dict[str, Any]], num_rows: int) -> Lengths | None:
    model, data = recipe.model, recipe.data
    tokenizer = _tokenizer(model, sample)
    if tokenizer is None:
        return None
    config, _ = find_config(model)
    if config is not None and not isinstance(model.tokenizer, TokenizerSection):
        name, remote = "the model" if model.path else "model.config", model.remote_code
        check_vocabulary_of(config, tokenizer, name, trust_remote_code=remote, key="model.tokenizer")
    limits = Limits(data.max_prompt_tokens, data.max_completion_tokens, data.long_completions)
    two_texts = config is not None and is_encoder_decoder(config)
    chat = Chat(tokenizer, model.template_options, model.end_tokens, two_texts=two_texts)
    done = tokenise(chat, sample, limits)
    prompts, completions = (np.array([len(ids) for ids in part]) for part in (done.prompt_ids, done.completion_ids))
    kept = np.array(done.kept)
    lengths = Lengths(prompts, completions, kept, num_rows, float((kept & done.completion_long).mean()))
    if not lengths.kept.any():
        raise all_too_long(data)
    return lengths


def _tokenizer(model: ModelSection, sample: list[dict[str, Any]]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the run; None if it is not downloaded yet."""
    if isinstance(model.tokenizer, TokenizerSection):
        # The run trains its own on all training rows; the sample's is much like it.
        texts = (row["completion"] if row["conversational"] else row["prompt"] + row["completion"] for row in sample)
        tokenizer = train_tokenizer(texts, model.tokenizer.vocab_size)
        tokenizer.chat_template = read_chat_template(model.chat_template)
        return tokenizer
    path = model.tokenizer or str(model.path)
    try:
        return load_tokenizer(path, chat_template=model.chat_template, trust_remote_code=model.remote_code)
    except UserError:
        if Path(path).exists():
            raise
        return None
