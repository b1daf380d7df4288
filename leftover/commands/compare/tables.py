"""The tables of a comparison: results, components and judges, and what the runs took."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leftover.commands.compare.gather import training_cost
from leftover.commands.dry_run.show import plain_table, print_tables
from leftover.evaluation.caveats import completion_caveats, training_caveats
from leftover.evaluation.gather import DATA, REFERENCE
from leftover.evaluation.measures import MEASURES, MISSING, Measure, columns, number, part, part_names
from leftover.evaluation.tables import SHORT_RECORDED, Grid, Markdown, escape, grid
from leftover.evaluation.verdict import winner
from leftover.monitoring.terminal import console, size_text
from leftover.report.frontier import level_grid, turns
from leftover.report.write import print_table

_SHORT = ("reward", "range", "win_rate", "length", "distinct", "kl")
_COST = (
    Measure("selected_rows", "rows selected", ",.0f"),
    Measure("effective_sample_size", "effective sample size", ",.0f"),
    Measure("updates", "updates", ",.0f"),
    Measure("trained_tokens", "tokens trained", ",.0f"),
    Measure("rollout_tokens", "rollout tokens", ",.0f"),
    Measure(
        "seconds", "seconds", text=lambda cost: number(cost.get("seconds"), ",.0f") + "*" * bool(cost.get("resumed"))
    ),
    Measure("rollout_seconds", "of them rollouts", ",.0f"),
    Measure(
        "peak_memory_bytes",
        "peak memory",
        text=lambda cost: size_text(cost["peak_memory_bytes"]) if "peak_memory_bytes" in cost else MISSING,
    ),
)
_PARTS = {
    "reward/": "Components of the reward, before weights and transform",
    "judge/": "Judges, on which no policy was trained",
}
_MARKS = {"best": "**{}**", "second": "<u>{}</u>"}


def result_grid(results: Mapping[str, Any], decoding: str) -> Grid:
    """The result table as Markdown, best and second marked."""
    found = results[decoding]
    return grid(found["table"], columns("comparison"), "method", _marker(found["marks"]))


def print_comparison(results: Mapping[str, Any], folder: str) -> None:
    """Print the main numbers of the primary decoding, the methods that do not apply, and where the files are."""
    measures = [MEASURES[name] for name in (_SHORT if results["can_score_new_completions"] else SHORT_RECORDED)]
    console = print_table(results, grid(results[results["primary"]]["table"], measures, "method"))
    for name, reason in results["not_applicable"].items():
        console.print(f"{name}: n/a, {reason}")
    if results["can_score_new_completions"]:
        console.print(winner(results))
    console.print(f"Comparison: {Path(folder) / 'comparison.md'}")


def print_frontier(results: Mapping[str, Any], folder: str) -> None:
    """Print the rewards at equal KL, who over-optimises, the methods that do not apply, and where the files are."""
    shown = level_grid(results, "reward")
    notes = [*turns(results), *(f"{name}: n/a, {reason}" for name, reason in results["not_applicable"].items())]
    table = plain_table(f"{results['name']}: reward at equal KL", *shown.header, rows=map(tuple, shown.cells))
    print_tables(console(width=140), [table], [*notes, f"Frontier: {Path(folder) / 'frontier.md'}"])


def part_grids(results: Mapping[str, Any], decoding: str) -> dict[str, Grid]:
    """Title -> table of the components, and of the judges; a single component that equals the reward is skipped."""
    table, found = results[decoding]["table"], {}
    for kind, title in _PARTS.items():
        names = list(dict.fromkeys(name for row in table.values() for name in part_names(row, kind)))
        rows = {name: row for name, row in table.items() if part_names(row, kind)}
        alone = kind == "reward/" and len(names) == 1
        if names and not (alone and all(row[names[0]]["mean"] == row["reward"]["mean"] for row in rows.values())):
            measures = [part(name, name.removeprefix(kind)) for name in names]
            found[title] = grid(rows, measures, "method", _marker(results[decoding]["marks"]))
    return found


def method_caveats(results: Mapping[str, Any], decoding: str) -> dict[str, list[str]]:
    """What to know before believing a method's numbers, for methods with something to know."""
    table = results[decoding]["table"]
    found = {
        name: [*completion_caveats(row, table[REFERENCE]), *training_caveats(results["training"].get(name, {}))]
        for name, row in table.items()
        if name not in (DATA, REFERENCE)
    }
    return {name: said for name, said in found.items() if said}


def cost_grid(results: Mapping[str, Any]) -> Grid:
    """The cost of a run of each method, as Markdown."""
    costs = {name: training_cost(runs) for name, runs in results["training"].items()}
    return grid({name: cost for name, cost in costs.items() if "updates" in cost}, _COST, "method", _marker({}))


def _marker(marks: Mapping[str, Mapping[str, str]]) -> Callable[[str, str, str], str]:
    """For `grid`: cells as Markdown, names as code."""

    def mark(name: str, measure: str, text: str) -> str:
        form = _MARKS.get(marks.get(measure, {}).get(name, ""), "{}") if measure else "`{}`"
        return Markdown(form.format(escape(text) if measure else text))

    return mark
