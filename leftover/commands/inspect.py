"""`leftover inspect`: how good is my data? The leftover section alone, of rows that nothing was trained on yet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.monitoring.terminal import console
from leftover.recipe.data_section import DataSection
from leftover.recipe.files import load_recipe, make_recipe, reward_section
from leftover.recipe.sections import RewardSection
from leftover.report.analysis.analysis import analyse
from leftover.report.analysis.rows import ScoredRows, _prompts, rows_of_table, value_of_words


def inspect(
    table: str, *, overrides: Sequence[str] = (), reward: str | None = None, output: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Write a page about the scored rows of `table`; returns its numbers and its path.

    Args:
        table: a data file (or Hub id) in any format of `data.path`, with recorded scores; a recipe, whose rows are
            read and scored as `leftover prepare --only score` does; or the folder of a run.
        overrides: `dotted.key=value` of a recipe, such as data.columns.reward=label.
        reward: of a data file: a YAML as `reward` of a recipe, whose functions score the rows.
        output: default: inspect.html of the run's folder, or NAME.inspect.html here for a data file.

    A file's rows, and those of a run without values, get a value fitted on the words of their prompts. Raises
    UserError where no row has a score.
    """
    path = Path(table)
    if (path / "recipe.yaml").is_file() or path.suffix in (".yaml", ".yml"):
        if reward is not None:
            raise UserError("--reward scores the rows of a data file; a recipe has its own section reward")
        rows, folder = _of_run(path, list(overrides))
        target = folder / "inspect.html"
    else:
        target = Path(f"{path.name}.inspect.html")
        rows = _of_file(table, list(overrides), reward, Path(output or target))
    from leftover.report.page import write_inspection

    analysis = analyse(rows)
    return analysis, write_inspection(path.name or table, analysis, Path(output or target))


def _of_run(path: Path, overrides: list[str]) -> tuple[ScoredRows, Path]:
    from leftover.runs.finished import FinishedRun

    if path.is_dir() and overrides:
        raise UserError(f"'{path}' is a run, whose rows are as they are: give its recipe to change a key with --set")
    if path.is_dir():
        run = FinishedRun(path)
    else:
        from leftover import pipeline
        from leftover.runs.claim import open_run

        opened = open_run(load_recipe(path, overrides))
        pipeline.prepare(opened, "score")
        run = FinishedRun(opened.folder, opened.recipe)
    rows = rows_of_table(run.table, run.prepared.get("value"))
    if rows is None:
        raise UserError(f"'{path}' has no scored training row: `leftover prepare {path} --only score` makes them")
    return rows, run.folder


def _of_file(table: str, overrides: list[str], reward: str | None, output: Path) -> ScoredRows:
    from leftover.data.formats import check_files

    content = {"name": "inspect", "output_dir": ".", "model": {"path": "."}, "data": {"path": table}}
    recipe = make_recipe(content, where="leftover inspect", overrides=overrides)
    check_files(recipe.data)
    section = reward_section(reward)
    rows, _ = rows_of_file(recipe.data, section, output.with_suffix(".rejected_rows.jsonl"))
    return rows


def show(analysis: dict[str, Any], path: Path) -> None:
    """Print the numbers that matter most, and where the page is."""
    about, twins, odd = analysis["about_value"], analysis["duplicates"], analysis["disagreement"]
    r2 = about.get("r2")
    said = [
        f"Leftover: {analysis['leftover']:,} of {analysis['rows']:,} scored rows ({analysis['share']:.0%}) are above "
        f"their value, worth {analysis['effective_sample_size']:,.0f} equally weighted rows.",
        f"Value: {about.get('kind', 'recorded')}, {about.get('targets', '')}; held-out R² "
        f"{'n/a' if r2 is None else format(r2, '.3f')}.",
        f"Duplicates: {twins['repeated_rows']:,} repeated rows; {twins['contradictions']:,} pairs of prompt and "
        "completion with scores that contradict each other.",
    ]
    if odd["correlation"] is not None:
        said.append(f"Neighbours: rewards of like texts correlate by {odd['correlation']:+.2f}.")
    if analysis["without_advantage"]:
        said.append(f"{analysis['without_advantage']:,} rows have no score, and are in none of these numbers.")
    terminal = console(width=140)
    for line in said:
        terminal.print(line)
    terminal.print(f"Page: {path}", soft_wrap=True)


def rows_of_file(data: DataSection, reward: RewardSection | None, rejects: Path) -> tuple[ScoredRows, dict[str, Any]]:
    """The rows of a data file with their recorded rewards, or with those that `reward` gives; and what was counted.

    Raises UserError where no row has a reward.
    """
    from leftover.data.formats import read_rows
    from leftover.data.rows import Rejects, check_rows, text_hash
    from leftover.data.splits import unique_ids
    from leftover.rewards.sum import fresh_reward

    stats: dict[str, Any] = {}
    rows = list(check_rows(read_rows(data), data, Rejects(rejects), stats))
    scores = fresh_reward(reward) if reward else None
    prompts = _prompts([row["prompt"] for row in rows], [row["conversational"] for row in rows])
    if scores is not None:
        asked = [as_prompt(row["prompt"], row["conversational"]) for row in rows]
        rewards = np.asarray(scores.combine(scores.score_components(asked, [r["completion"] for r in rows])))
    else:
        recorded = [row["recorded_reward"] for row in rows]
        rewards = np.array([np.nan if one is None else one for one in recorded], np.float64)
    if not np.isfinite(rewards).any():
        raise UserError(
            f"no row of {data.path} has a score in the column '{data.columns.reward}': name yours with --set "
            "data.columns.reward=COLUMN, or score the rows with --reward"
        )
    group = unique_ids(f"{row['prompt']}\0{row['tools'] or ''}" for row in rows)
    family = np.array([text_hash(row["family"]) for row in rows], np.uint64)
    value, about = value_of_words(prompts, group, family, rewards)
    found = ScoredRows(
        prompts,
        [row["completion"] for row in rows],
        [row["source"] for row in rows],
        [row["where"] for row in rows],
        rewards,
        value,
        about,
    )
    return found, stats
