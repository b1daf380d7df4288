"""`leftover inspect`: how good is my data? The leftover section of the report alone, before any training."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from leftover import pipeline
from leftover.data.formats import check_files, read_rows
from leftover.data.rows import ROWS_SCHEMA, Rejects, as_prompt, check_rows, log_rows
from leftover.data.splits import unique_ids
from leftover.errors import UserError
from leftover.monitoring.terminal import console
from leftover.prepare.value.described import described
from leftover.recipe.data_section import DataSection
from leftover.recipe.files import load_recipe, make_recipe
from leftover.report.analysis.analysis import analyse
from leftover.report.analysis.rows import ScoredRows, prompts_of, rows_of_table, scored_rows, value_of_words
from leftover.report.page import write_inspection
from leftover.rewards import ColumnReward, SumReward, learner, load_reward, text_lengths
from leftover.rewards.python import check_finite
from leftover.rewards.sum import as_array
from leftover.runs.claim import open_run
from leftover.runs.finished import FinishedRun
from leftover.store.folders import check_page, make_folder
from leftover.store.table import SHARD_ROWS, Stored, column, on_disk


def inspect(
    table: str, *, overrides: Sequence[str] = (), reward: str | None = None, output: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Write a page about the scored rows of `table`; returns its numbers and its path. UserError if no row has a score.

    Rows without a value, such as those of a file, get one fitted on the words of their prompts.

    Args:
        table: a data file (or Hub id) in any format of `data.path`; a recipe, whose rows are read and scored as
            `leftover prepare --only score` does; or the folder of a run.
        overrides: `dotted.key=value` of a recipe, such as data.columns.reward=label.
        reward: for a data file: a YAML as `reward` of a recipe, whose functions score the rows.
        output: default: inspect.html of the run's folder, or NAME.inspect.html here for a data file.
    """
    path = Path(table)
    if output is not None:
        check_page(Path(output))
    if (path / "recipe.yaml").is_file() or path.suffix in (".yaml", ".yml"):
        if reward is not None:
            raise UserError("--reward scores the rows of a data file; a recipe has its own section reward")
        run = _scored_run(path, overrides)
        found = rows_of_table(run.table, run.prepared.get("value"))
        if found is None:
            raise UserError(f"'{path}' has no scored training row: `leftover prepare {path} --only score` makes them")
        analysis, target = analyse(found), Path(output or run.folder / "inspect.html")
    else:
        target = Path(output or f"{path.name}.inspect.html")
        content = {"name": "inspect", "output_dir": ".", "model": {"path": "."}, "data": {"path": table}}
        data = make_recipe(content, where="leftover inspect", overrides=overrides).data
        check_files(data)
        scores = _unfitted_reward(reward) if reward else None
        make_folder(target.parent, "the folder of --output:")
        with tempfile.TemporaryDirectory(prefix=".leftover-inspect-", dir=target.parent) as stored:
            rows = rows_of_file(data, scores, target.with_suffix(".rejected_rows.jsonl"), Path(stored))
            analysis = analyse(rows)
    return analysis, write_inspection(path.name or table, analysis, target)


def _unfitted_reward(path: str) -> SumReward:
    """The functions of a file of rewards. UserError for one that learns from rows, which must not be these."""
    reward = load_reward(path)
    if learning := [name for name, component in reward.components.items() if learner(component)]:
        raise UserError(f"{', '.join(learning)}: fitted on the rows of a recipe; inspect that recipe")
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


def show(analysis: dict[str, Any], path: Path) -> None:
    """Print the numbers that matter most, and the path of the page."""
    about, twins, odd = analysis["about_value"], analysis["duplicates"], analysis["disagreement"]
    r2 = about.get("r2")
    terminal = console(width=140)
    terminal.print(
        f"Leftover: {analysis['leftover']:,} of {analysis['rows']:,} scored rows ({analysis['share']:.0%}) are above "
        f"their value, worth {analysis['effective_sample_size']:,.0f} equally weighted rows."
    )
    terminal.print(
        f"Value: {described(about)}, {about.get('targets', '')}; held-out R² "
        f"{'n/a' if r2 is None else format(r2, '.3f')}."
    )
    terminal.print(
        f"Duplicates: {twins['repeated_rows']:,} repeated rows; {twins['contradictions']:,} pairs of prompt and "
        "completion with scores that contradict each other."
    )
    if odd["correlation"] is not None:
        terminal.print(f"Neighbours: rewards of similar texts correlate by {odd['correlation']:+.2f}.")
    if analysis["without_advantage"]:
        terminal.print(f"{analysis['without_advantage']:,} rows have no score, and are in none of these numbers.")
    terminal.print(f"Page: {path}", soft_wrap=True)


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


def rows_of_file(data: DataSection, reward: SumReward | None, rejects: Path, stored: Path) -> ScoredRows:
    """The rows of a data file, stored in a folder, with their recorded rewards, or with those that `reward` gives."""
    stats, rejected = dict[str, Any](), Rejects(rejects)
    remedy = None if reward else "name yours with --set data.columns.reward=COLUMN, or score the rows with --reward"
    read = check_rows(read_rows(data), data, rejected, stats, score_remedy=remedy)
    rows = on_disk(stored, read, ROWS_SCHEMA)
    log_rows(stats, rejected)
    rewards = _rewards(rows, reward) if reward is not None else column(rows, "recorded_reward").astype(np.float64)
    if not np.isfinite(rewards).any():
        raise UserError(f"--reward gives none of the {len(rows)} rows of {data.path} a score")
    group = unique_ids(
        Stored(rows, "prompt", "tools", of=lambda row: f"{row['prompt']}\0{row['tools'] or ''}"), len(rows)
    )
    value, about = value_of_words(prompts_of(rows), group, unique_ids(Stored(rows, "family"), len(rows)), rewards)
    return scored_rows(rows, rewards, value, about)
