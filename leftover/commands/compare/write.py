"""comparison.md, comparison.csv and comparison.json, all from the same numbers."""

import csv
import io
import logging
from collections.abc import Mapping
from typing import Any

from leftover.commands.compare.gather import flat_rows
from leftover.commands.compare.marks import RULE
from leftover.commands.compare.plots import draw_reward_diversity
from leftover.commands.compare.tables import cost_grid, method_caveats, part_grids, result_grid
from leftover.evaluation.measures import columns, glossary
from leftover.publish.card import write_cards
from leftover.report.curves import draw_curves
from leftover.report.page import run_view, write_page
from leftover.report.write import render
from leftover.runs.finished import FinishedRun
from leftover.runs.names import decodings
from leftover.store.manifest import write_json, write_text

log = logging.getLogger(__name__)


def write_comparison(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write the tables and pictures of a comparison into the run's folder."""
    rows = flat_rows(results)
    write_json(run.folder / "comparison.json", results | {"rows": rows, "rule": RULE})
    write_text(run.folder / "comparison.csv", _as_csv(rows))
    pictures = {
        "Reward against diversity": draw_reward_diversity(run.folder, results),
        "Reward along training": draw_curves(run.folder, results["training"], "comparison_training.png"),
    }
    write_text(run.folder / "comparison.md", as_markdown(results, pictures))
    log.info("compare: %s", run.folder / "comparison.md")
    write_page([run_view(run, results)], run.folder / "report.html")
    write_cards(run, results)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_markdown(results: dict[str, Any], pictures: Mapping[str, str | None]) -> str:
    """The content of comparison.md."""
    methods = results["methods"]
    updates = sorted({method["updates"] for method in methods.values()})
    settings = [method["settings"] for method in methods.values()]
    shared = {k: v for k, v in settings[0].items() if all(k in other and other[k] == v for other in settings)}
    trained = [facts for runs in results["training"].values() for facts in runs.values()]
    tables = [
        {
            "decoding": decoding,
            "results": result_grid(results, decoding),
            "marked": any(results[decoding]["marks"].values()),
            "caveats": method_caveats(results, decoding),
            "parts": part_grids(results, decoding),
        }
        for decoding in decodings(results["primary"])
    ]
    values = results | {
        "updates": " to ".join(f"{number:,}" for number in dict.fromkeys((updates[0], updates[-1]))),
        "online": [name for name, method in methods.items() if method["planned_tokens"] is None],
        "tables": tables,
        "rule": RULE,
        "glossary": glossary(columns("comparison")),
        "costs": cost_grid(results),
        "memory_of": {facts.get("peak_memory_of") for facts in trained},
        "resumed": any("resumed_at" in facts for facts in trained),
        "shared": shared,
        "methods": {
            name: method | {"own": {k: v for k, v in method["settings"].items() if k not in shared}}
            for name, method in methods.items()
        },
        "pictures": pictures,
    }
    return render("comparison.md.j2", values)
