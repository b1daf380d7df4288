"""`leftover inspect`: how good is my data? The leftover section alone, of rows that nothing was trained on yet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.inspect.analysis import analyse
from leftover.inspect.rows import ScoredRows, rows_of_file, rows_of_table
from leftover.recipe_files import load_recipe, make_recipe
from leftover.terminal import console


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
    from leftover.report.finished import FinishedRun

    if path.is_dir() and overrides:
        raise UserError(f"'{path}' is a run, whose rows are as they are: give its recipe to change a key with --set")
    if path.is_dir():
        run = FinishedRun(path)
        rows, folder = rows_of_table(run.table, run.about_value), run.folder
    else:
        from leftover import pipeline
        from leftover.workspace import Run

        this = Run(load_recipe(path, overrides))
        pipeline.prepare(this, "score")
        found = FinishedRun(this.folder)
        rows, folder = rows_of_table(found.table, found.about_value), this.folder
    if rows is None:
        raise UserError(f"'{path}' has no scored training row: `leftover prepare {path} --only score` makes them")
    return rows, folder


def _of_file(table: str, overrides: list[str], reward: str | None, output: Path) -> ScoredRows:
    from leftover.data.formats import check_files
    from leftover.sampling.inputs import _reward_section as read_reward

    content = {"name": "inspect", "output_dir": ".", "model": {"path": "."}, "data": {"path": table}}
    recipe = make_recipe(content, where="leftover inspect", overrides=overrides)
    check_files(recipe.data)
    section = read_reward(reward)
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
