"""comparison.md, .csv, .json and a picture, all from the same numbers; the same for a frontier."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leftover.commands.compare.gather import RULE, flat_rows
from leftover.commands.compare.tables import cost_grid, method_caveats, part_grids, result_grid
from leftover.evaluation.caveats import run_caveats
from leftover.evaluation.gather import DATA, REFERENCE
from leftover.evaluation.tables import explanation
from leftover.evaluation.verdict import winner
from leftover.monitoring.finite import plain
from leftover.publish.card import write_cards
from leftover.report.curves import draw_curves
from leftover.report.figures import figure, paint_reference, paint_reward_against_diversity, policy_style
from leftover.report.frontier import FRONTIER, frontier_svg, frontier_view
from leftover.report.page import run_view, write_page, write_report_page
from leftover.report.write import as_csv, render
from leftover.runs.finished import FinishedRun
from leftover.runs.names import decodings
from leftover.store.files import write_text
from leftover.store.sealed import write_sealed

log = logging.getLogger(__name__)


def write_comparison(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write the tables and pictures of a comparison into the run's folder."""
    results = plain(results)
    rows = flat_rows(results)
    write_sealed(run.folder / "comparison.json", results | {"rows": rows, "rule": RULE}, copied=False)
    write_text(run.folder / "comparison.csv", as_csv(rows))
    pictures = {
        "Reward against diversity": draw_reward_diversity(run.folder, results),
        "Reward along training": draw_curves(run.folder, results["training"], "comparison_training.png"),
    }
    write_text(run.folder / "comparison.md", as_markdown(results, pictures))
    log.info("compare: %s", run.folder / "comparison.md")
    write_page([run_view(run, results)], run.folder / "report.html")
    write_cards(run, results)


def write_frontier(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write frontier.json, .csv, .svg and .md; and the page anew where the folder has one with results."""
    write_sealed(run.folder / FRONTIER, results | {"scored_by": run.scored_by()}, copied=False)
    write_text(run.folder / "frontier.csv", as_csv(results["points"]))
    write_text(run.folder / "frontier.svg", frontier_svg(results))
    write_text(run.folder / "frontier.md", render("frontier.md.j2", results | {"view": frontier_view(results)}))
    log.info("compare: %s", run.folder / "frontier.md")
    if run.results() is not None:
        write_report_page([run.folder])


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
        for decoding in decodings(results)
    ]
    values = results | {
        "updates": " to ".join(f"{number:,}" for number in dict.fromkeys((updates[0], updates[-1]))),
        "online": [name for name, method in methods.items() if method["planned_tokens"] is None],
        "tables": tables,
        "rule": RULE,
        "glossary": explanation(results, "comparison"),
        "costs": cost_grid(results),
        "memory_of": {facts.get("peak_memory_of") for facts in trained},
        "resumed": any("resumed_at" in facts for facts in trained),
        "shared": shared,
        "methods": {
            name: method | {"own": {k: v for k, v in method["settings"].items() if k not in shared}}
            for name, method in methods.items()
        },
        "pictures": pictures,
        "sentence": winner(results) if results["can_score_new_completions"] else None,
        "caveats": run_caveats(results),
    }
    return render("comparison.md.j2", values)


def draw_reward_diversity(folder: Path, results: Mapping[str, Any]) -> str | None:
    """Write comparison_reward_diversity.png and .svg; returns the first's name, None if no reward was measured.

    A point a method: mean reward with its 95 % interval against distinct-2, relative to the reference's at equal
    lengths; a dot for each of its seeds' rewards.
    """
    table = {name: row for name, row in results[results["primary"]]["table"].items() if name != DATA}
    table = {name: row for name, row in table.items() if row.get("distinct_2_relative") is not None}
    table = {name: row for name, row in table.items() if "reward" in row}
    if REFERENCE not in table:
        return None
    reference = table.pop(REFERENCE)
    styles = {name: policy_style(name, table) for name in table}
    ranked = sorted(table, key=lambda name: -table[name]["reward"]["mean"])  # the legend's order
    with figure(rc={"svg.hashsalt": "leftover"}, figsize=(7.5, 5.2)) as (made, axis):  # equal numbers, equal files
        for name in ranked:
            style = styles[name] | {"ls": ""}  # of the points; their intervals are always whole lines
            paint_reward_against_diversity(axis, table[name], lw=1, label=name, **style)
            seeds = list(table[name]["reward_by_seed"].values())
            if len(seeds) > 1:
                at = [table[name]["distinct_2_relative"]] * len(seeds)
                axis.plot(at, seeds, ls="", marker=".", ms=4, color=style["color"], alpha=0.6)
        style = policy_style(REFERENCE, table)
        paint_reward_against_diversity(axis, reference, lw=1, label=REFERENCE, ms=10, **style)
        paint_reference(axis, reference["reward"]["mean"])
        axis.set(
            xlabel="distinct-2 over the reference's, both cut to the shorter for every prompt",
            ylabel="reward on held-out prompts [95 %]; dots: seeds",
        )
        axis.set_title(f"{results['name']}: {results['primary']} completions", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        made.tight_layout()
        for ending, metadata in (("png", None), ("svg", {"Date": None})):
            made.savefig(folder / f"comparison_reward_diversity.{ending}", dpi=120, metadata=metadata)
    return "comparison_reward_diversity.png"
