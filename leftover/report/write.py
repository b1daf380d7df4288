"""Gather what the stages wrote, and say it: numbers in results.json, words in report.md, all of it in report.html."""

import logging
import platform
from typing import Any

from leftover.evaluation.tables import GLOSSARY, interval, result_cells
from leftover.evaluation.verdict import verdict
from leftover.monitoring.terminal import console
from leftover.report.curves import draw_curves
from leftover.report.judge import judge_section
from leftover.report.page import write_run_page
from leftover.report.sections import data_section, examples_section, leftover_section, training_section
from leftover.runs.finished import FinishedRun
from leftover.runs.names import DECODINGS
from leftover.store.manifest import write_json

log = logging.getLogger(__name__)


def write_report(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write results.json, report.md, its pictures and report.html."""
    write_json(run.folder / "results.json", results)
    parts = [f"# {run.recipe.name}", verdict(results), data_section(results), leftover_section(run.table, results)]
    for decoding in (results["primary"], *(d for d in DECODINGS if d != results["primary"])):
        parts += [f"## Results, {decoding} completions", result_table(results, decoding)]
        parts += [comparison_table(results, decoding), source_table(results, decoding)]
    parts += [GLOSSARY, judge_section(run.folder, run.manifest), training_section(results)]
    curves = draw_curves(run.folder, results)
    if curves:
        parts += ["## Learning curves", f"![Learning curves]({curves})"]
    parts += [examples_section(run), _reproduce()]
    path = run.folder / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    log.info("report: %s", path)
    write_run_page(run, results)


def source_table(results: dict[str, Any], decoding: str) -> str:
    """Rewards and judges on the test prompts of every source apart, as Markdown; empty where there is but one."""
    found = results[decoding]["by_source"]
    sources = found["reference"]
    measures = [name for name in next(iter(sources.values()), {}) if name == "reward" or name.startswith("judge/")]
    if not measures:
        return ""
    header = [f"{source} ({of['prompts']} prompts)" for source, of in sources.items()]
    lines = [f"| policy | measure | {' | '.join(header)} |", "| --- | --- |" + " --- |" * len(header)]
    for policy, by in found.items():
        for name in measures:
            lines.append(f"| {policy} | {name} | {' | '.join(interval(by[source][name]) for source in sources)} |")
    return "By source of the test prompts:\n\n" + "\n".join(lines)


def _reproduce() -> str:
    import torch
    import transformers

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"## Reproduce\n\n`leftover run` on the `recipe.yaml` beside this file. {versions}."


def comparison_table(results: dict[str, Any], decoding: str) -> str:
    """Paired differences of the main policy against every control, as Markdown; empty where there is none."""
    against = {k: v for k, v in results[decoding]["main_against"].items() if v}
    if not against:
        return ""
    lines = [
        f"Paired difference in reward, {results['main']} minus the control (bootstrap by prompt family):",
        "",
        "| control | difference [95 %] | by seed | win rate |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in against.items():
        by_seed = ", ".join(f"{v:+.3f}" for v in row["by_seed"].values())
        lines.append(f"| {name} | {interval(row['difference'], '+')} | {by_seed} | {row['win_rate']:.2f} |")
    return "\n".join(lines)


def markdown_table(header: list[str], cells: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in cells])


def result_table(results: dict[str, Any], decoding: str) -> str:
    """The result table as Markdown."""
    return markdown_table(*result_cells(results, decoding))


_PIPED_WIDTH = 1000  # columns: nothing is cut or wrapped where no terminal sets a width


def print_table(results: dict[str, Any], header: list[str], cells: list[list[str]]) -> Any:
    """A table of results on stdout, as wide as it must be where that is no terminal; returns its console."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{results['name']}: {results['primary']} completions on held-out prompts",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    out = console(width=_PIPED_WIDTH)
    out.print(table)
    return out


def print_results(results: dict[str, Any]) -> None:
    """The short result table, the leftover share and the verdict at the terminal."""
    out = print_table(results, *result_cells(results, results["primary"], short=True))
    leftover = results["prepare"].get("leftover")
    if leftover:
        out.print(
            f"Leftover: {leftover['leftover_rows']} of {leftover['training_rows']} training rows "
            f"({leftover['share']:.0%}) have a positive advantage."
        )
    out.print(verdict(results))
