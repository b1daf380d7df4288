"""`leftover report`: runs as they are, and recipes that are run first, as one page."""

from collections.abc import Sequence
from pathlib import Path

from leftover import pipeline
from leftover.errors import UserError
from leftover.recipe.files import load_recipe
from leftover.report.page import write_report_page
from leftover.report.write import print_results
from leftover.store.folders import check_page


def report_on(runs: Sequence[str], *, overrides: Sequence[str] = (), output: str | None = None) -> Path:
    """Write report.html of one or more runs; returns its path.

    A folder is reported as it is, finished or not: nothing is computed, and only report.html changes in it. For a
    recipe all stages run first, which reuse what is finished.
    """
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    for run in runs:
        if not Path(run).exists():
            raise UserError(f"'{run}' does not exist: name the folder of a run, or a recipe to run first")
        if overrides and Path(run).is_dir():
            raise UserError(f"--set changes a recipe, and '{run}' is a run, which is shown as it is: leave --set out")
    if output is not None:
        check_page(Path(output))
    return write_report_page([_reported(Path(run), overrides) for run in runs], Path(output) if output else None)


def _reported(path: Path, overrides: Sequence[str]) -> Path:
    if path.is_dir():
        return path
    recipe = load_recipe(path, overrides)
    results = pipeline.run(recipe)
    assert results is not None  # the report is the last stage
    print_results(results)
    return Path(recipe.output_dir)
