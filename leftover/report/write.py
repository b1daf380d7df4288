"""Write what a run found: numbers in results.json, words in report.md, all of it in report.html."""

import logging
import platform
from importlib.metadata import version
from typing import Any

from leftover.evaluation.verdict import verdict
from leftover.report.curves import draw_curves
from leftover.report.markdown import render
from leftover.report.page import run_view, write_page
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import write_json

log = logging.getLogger(__name__)


def write_report(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write results.json, report.md, its picture and report.html."""
    write_json(run.folder / "results.json", results)
    view = run_view(run, results, "run-1")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    values = {
        "runs": results["training"],
        "sentence": verdict(results),
        "curves": draw_curves(run.folder, results["training"]),
        "versions": f"Python {platform.python_version()}, {packages}",
    }
    text = render("report.md.j2", results | view | values)
    path = run.folder / "report.md"
    path.write_text(text, encoding="utf-8")
    log.info("report: %s", path)
    write_page([view], run.folder / "report.html")
