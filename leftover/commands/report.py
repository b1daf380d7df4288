"""`leftover report`: runs that are finished, and recipes that are run first, as one page."""

from collections.abc import Sequence
from pathlib import Path

from leftover.errors import UserError
from leftover.recipe.files import load_recipe
from leftover.report.page import write_report_page
from leftover.runs.finished import FinishedRun


def report_on(runs: Sequence[str], *, overrides: Sequence[str] = (), output: str | None = None) -> Path:
    """Write report.html of one or more runs; returns its path.

    A folder with results is reported as it is: nothing is computed, and nothing in it changes but report.html. Of a
    recipe (or a folder that has no results yet) all stages run first, which reuse what is finished.
    """
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    folders = [str(_finished(run, list(overrides))) for run in runs]
    return write_report_page(folders, Path(output) if output else None)


def _finished(run: str, overrides: list[str]) -> Path:
    path = Path(run)
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        raise UserError(f"'{run}' is not the folder of a run (no recipe.yaml in it)")
    if path.is_dir() and not overrides and FinishedRun(path).results() is not None:
        return path
    from leftover.pipeline import run as run_stages
    from leftover.report.write import print_results

    recipe = load_recipe(run, overrides)
    results = run_stages(recipe)
    assert results is not None  # the report is the last stage
    print_results(results)
    return Path(recipe.output_dir)
