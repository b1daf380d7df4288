"""`leftover report`: finished runs, and recipes that are run first, as one page."""

from collections.abc import Sequence
from pathlib import Path

from leftover import pipeline
from leftover.errors import UserError
from leftover.recipe.files import load_recipe
from leftover.report.page import write_report_page
from leftover.report.write import print_results
from leftover.runs.finished import FinishedRun


def report_on(runs: Sequence[str], *, overrides: Sequence[str] = (), output: str | None = None) -> Path:
    """Write report.html of one or more runs; returns its path.

    A folder with results is reported as it is: nothing is computed, and only report.html changes in it. For a recipe
    (or a folder without results yet) all stages run first, which reuse what is finished.
    """
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    for run in runs:
        if not Path(run).exists():
            raise UserError(f"'{run}' does not exist: name the folder of a finished run, or a recipe to run first")
    return write_report_page([_finished(Path(run), overrides) for run in runs], Path(output) if output else None)


def _finished(path: Path, overrides: Sequence[str]) -> Path:
    if path.is_dir() and FinishedRun(path).results() is not None and not overrides:
        return path
    recipe = load_recipe(path, overrides)
    results = pipeline.run(recipe)
    assert results is not None  # the report is the last stage
    print_results(results)
    return Path(recipe.output_dir)
