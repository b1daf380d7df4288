"""Scored rows as `inspect` and `select` take them: a data file, rows in Python, a recipe, or the folder of a run."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from leftover import pipeline
from leftover.commands.guess.data import as_overrides, as_set, guess_columns, name_delimiter
from leftover.data.formats import check_files, read_records, read_rows
from leftover.data.records import Located, Row
from leftover.data.rows import ROWS_SCHEMA, Rejects, as_prompt, check_rows, log_rows
from leftover.data.splits import unique_ids
from leftover.errors import UserError, counted
from leftover.prepare.own_rows import Rows, located_rows, stream
from leftover.recipe.data_section import DataSection
from leftover.recipe.files import load_recipe, make_recipe, set_key
from leftover.report.analysis.rows import ScoredRows, prompts_of, rows_of_run, scored_rows, value_of_words
from leftover.rewards import ColumnReward, SumReward, learner, load_reward, text_lengths
from leftover.rewards.python import check_finite
from leftover.rewards.sum import as_array
from leftover.runs.claim import open_run
from leftover.runs.finished import FinishedRun
from leftover.store.folders import make_folder
from leftover.store.table import SHARD_ROWS, Stored, column, on_disk

IN_PYTHON = "rows"  # what rows in Python are called


class Remedies(NamedTuple):
    """What the user can do about rows that cannot be taken as they are."""

    no_score: str
    faulty_rows: str


_OF_FILE = Remedies(
    "name yours with --set data.columns.reward=COLUMN, or score the rows with --reward",
    "Put them aside with --set data.on_bad_row=skip, fix them, or name your columns (--set "
    "data.columns.completion=COLUMN; of a table without a header line --set 'data.table.names=[a, b]')",
)
_OF_PYTHON = Remedies(
    "name yours by overrides=['data.columns.reward=COLUMN'], or score the rows by reward='rewards.yaml'",
    "Put them aside by overrides=['data.on_bad_row=skip'], fix them, or name your columns by "
    "overrides=['data.columns.completion=COLUMN']",
)


class Source(NamedTuple):
    """Rows with their scores and values, and where they are from."""

    name: str
    rows: ScoredRows
    folder: Path | None = None  # of a run


@contextmanager
def scored_source(
    table: Rows, *, overrides: Sequence[str], reward: str | None, rejects: Path, option: str
) -> Iterator[Source]:
    """Read, and score where that is asked for; the rows of a file or of Python are on disk until the end of the block.

    Rows without a value, such as those of a file, get one fitted on the words of their prompts. Of a recipe or a run
    they are the training rows. UserError if no row has a score.

    Args:
        table: a data file (or Hub id) in any format of `data.path`; rows in Python; a recipe, whose rows are read and
            scored as `leftover prepare --only score` does; or the folder of a run.
        overrides: `dotted.key=value` of a recipe, such as data.columns.reward=label.
        reward: for a data file or rows in Python: a YAML as `reward` of a recipe, whose functions score the rows.
        rejects: the file of faulty rows, beside which rows are kept meanwhile.
        option: what names the folder of `rejects`, for messages.
    """
    in_file = isinstance(table, (str, Path))
    if in_file and ((path := Path(str(table))).suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()):
        if reward is not None:
            raise UserError("--reward scores the rows of a data file; a recipe has its own section reward")
        run = _scored_run(path, overrides)
        found = rows_of_run(run)
        if found is None:
            raise UserError(f"'{path}' has no scored training row: `leftover prepare {path} --only score` makes them")
        yield Source(path.name or str(table), found, run.folder)
        return
    name = str(table) if in_file else IN_PYTHON
    rows = None if in_file else stream(table, name)
    scores = _unfitted_reward(reward) if reward else None
    of_functions = scores is not None and not any(isinstance(c, ColumnReward) for c in scores.components.values())
    data = _data(name, rows, overrides, of_functions)
    read = read_rows(data) if rows is None else located_rows(rows, name, data)
    remedies = _OF_FILE if in_file else _OF_PYTHON
    make_folder(rejects.parent, option)
    with tempfile.TemporaryDirectory(prefix=".leftover-rows-", dir=rejects.parent) as stored:
        yield Source(Path(name).name or name, _rows_of(read, data, scores, remedies, rejects, Path(stored)))


def _data(name: str, rows: Iterable[Row] | None, overrides: Sequence[str], scored: bool) -> DataSection:
    """How rows are read: as the overrides say, and where they say nothing by what their columns are called and hold.

    Args:
        rows: in Python; None: `name` is a file, or an id of the Hub.
        scored: by functions alone.
    """
    content: dict[str, Any] = {"name": "inspect", "output_dir": ".", "model": {"path": "."}, "data": {"path": name}}
    for override in overrides:
        set_key(content, override)
    data = make_recipe(deepcopy(content), where="leftover").data
    if rows is None:
        check_files(data)
        if all(Path(path).is_file() for path in data.paths):
            name_delimiter(content["data"])
            data = make_recipe(deepcopy(content), where="leftover").data
    records = (lambda: (row for _, row in read_records(data))) if rows is None else (lambda: rows)
    option = as_set if rows is None else as_overrides
    guess_columns(content["data"], data, records, option=option, scored=scored)
    return make_recipe(content, where="leftover").data


def _unfitted_reward(path: str) -> SumReward:
    """The functions of a file of rewards. UserError for one that learns from rows, which must not be these."""
    reward = load_reward(path)
    if learning := [name for name, component in reward.components.items() if learner(component)]:
        raise UserError(f"{', '.join(learning)}: fitted on the rows of a recipe; give that recipe")
    return reward


def _scored_run(path: Path, overrides: Sequence[str]) -> FinishedRun:
    if not path.is_dir():
        run = open_run(load_recipe(path, overrides))
        try:
            pipeline.prepare(run, "score")
        finally:
            run.close()
        return FinishedRun(run.folder, run.recipe)
    if overrides:
        raise UserError(f"'{path}' is a run, whose rows are fixed: give its recipe to change a key with --set")
    return FinishedRun(path)


def _rewards(rows: Dataset, reward: SumReward) -> np.ndarray:
    """[N] float64, NaN without a score: as `leftover prepare` scores rows, with all of them to fit on."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in reward.components}
    lengths = list[np.ndarray]()
    columns = ["prompt", "conversational", "completion", "recorded_reward", "where"]
    for part in rows.select_columns(columns).iter(batch_size=SHARD_ROWS):
        prompts = list(map(as_prompt, part["prompt"], part["conversational"]))
        lengths.append(text_lengths(part["completion"]))
        for name, component in reward.components.items():
            if isinstance(component, ColumnReward):
                found = part["recorded_reward"]
            else:
                found = component(prompts, part["completion"])
                check_finite(f"reward function '{name}'", found, part["where"])
            scores[name].append(as_array(found))
    whole = {name: np.concatenate(parts) for name, parts in scores.items()}
    reward.fit(whole, lengths=np.concatenate(lengths))
    return reward.total(reward.without_length(whole, np.concatenate(lengths)))


def _rows_of(
    located: Iterable[Located],
    data: DataSection,
    reward: SumReward | None,
    remedies: Remedies,
    rejects: Path,
    stored: Path,
) -> ScoredRows:
    """Checked rows, stored in a folder, with their recorded rewards, or with those that `reward` gives."""
    stats, rejected = dict[str, Any](), Rejects(rejects)
    no_score = None if reward else remedies.no_score
    checked = check_rows(located, data, rejected, stats, remedies.faulty_rows, no_score)
    rows = on_disk(stored, checked, ROWS_SCHEMA)
    log_rows(stats, rejected)
    rewards = _rewards(rows, reward) if reward is not None else column(rows, "recorded_reward").astype(np.float64)
    if not np.isfinite(rewards).any():
        raise UserError(f"--reward gives none of the {counted(len(rows), 'row')} of {data.path} a score")
    group = unique_ids(
        Stored(rows, "prompt", "tools", of=lambda row: f"{row['prompt']}\0{row['tools'] or ''}"), len(rows)
    )
    value, about = value_of_words(prompts_of(rows), group, unique_ids(Stored(rows, "family"), len(rows)), rewards)
    return scored_rows(rows, group, rewards, value, about, data.columns, chat=data.prompts == "chat")
