"""Gather what the stages wrote, and say it: numbers in results.json, words in report.md, all of it in report.html."""

import logging
import platform
from typing import Any

from leftover.evaluate import DECODINGS, policy_subject, read_completions, read_metrics
from leftover.judged import dependent_judges, idle_scorers
from leftover.manifest import write_json
from leftover.models import read_json
from leftover.pipeline import policy_artifact
from leftover.report.curves import draw_curves
from leftover.report.judge import judge_section
from leftover.report.page import write_run_page
from leftover.report.sections import (
    data_section,
    examples_section,
    leftover_section,
    training_section,
    verdict,
)
from leftover.results import by_source, compare, summarise
from leftover.rewards import learner
from leftover.terminal import console
from leftover.workspace import Run

log = logging.getLogger(__name__)


def write_report(run: Run) -> dict[str, Any]:
    """Write results.json, report.md, its pictures and report.html; returns the content of results.json."""
    results = gather(run)
    write_json(run.folder / "results.json", results)
    parts = [f"# {run.recipe.name}", verdict(results), data_section(results), leftover_section(run, results)]
    for decoding in (results["primary"], *(d for d in DECODINGS if d != results["primary"])):
        parts += [f"## Results, {decoding} completions", result_table(results, decoding)]
        parts += [comparison_table(results, decoding), source_table(results, decoding)]
    parts += [GLOSSARY, judge_section(run), training_section(results)]
    curves = draw_curves(run, results)
    if curves:
        parts += ["## Learning curves", f"![Learning curves]({curves})"]
    parts += [examples_section(run), _reproduce(run)]
    path = run.folder / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    log.info("report: %s", path)
    write_run_page(run, results)
    return results


def gather(run: Run) -> dict[str, Any]:
    """The content of results.json, from the files of the run alone."""
    policies = list(run.recipe.policies)
    seeds = run.recipe.seeds
    records = {p: {s: read_completions(run, policy_subject(p, s)) for s in seeds} for p in policies}
    metrics = {p: {s: read_metrics(run, policy_subject(p, s)) for s in seeds} for p in policies}
    reference = read_completions(run, "reference")
    reference_metrics = {run.seed: read_metrics(run, "reference")}
    results: dict[str, Any] = {
        "name": run.recipe.name,
        "main": run.recipe.main_policy,
        "primary": run.recipe.evaluate.primary,
        "can_score_new_completions": run.reward.scores_new_completions,
        "prepare": read_json(run.folder / "prepare.json"),
        "scoring_caveats": scoring_caveats(run),
        "training": {p: {s: run.manifest.facts(policy_artifact(p, s)) for s in seeds} for p in policies},
    }
    for decoding in DECODINGS:
        rows = {"reference": summarise({run.seed: reference}, reference, reference_metrics, decoding)}
        rows |= {p: summarise(records[p], reference, metrics[p], decoding) for p in policies}
        against = {p: compare(records[policies[0]], records[p], decoding) for p in policies[1:]}
        results[decoding] = {"table": rows, "main_against": against}
        all_records = {"reference": {run.seed: reference}} | records
        results[decoding]["by_source"] = {p: by_source(seeds, decoding) for p, seeds in all_records.items()}
    return results


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


def scoring_caveats(run: Run) -> list[str]:
    """What to know of the rewards and judges before believing them."""
    scorers = {f"reward {name}": r for name, r in run.reward.components.items()}
    scorers |= {f"judge {name}": j for name, j in (run.judges.components if run.judges else {}).items()}
    facts = {name: run.manifest.facts(name).get("facts", {}) for name, scorer in scorers.items() if learner(scorer)}
    return [*dependent_judges(run.recipe), *idle_scorers(facts)]


def _reproduce(run: Run) -> str:
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


def interval(value: dict[str, float] | None, sign: str = "") -> str:
    """`mean [low, high]`, or a dash where nothing was measured."""
    return "–" if value is None else f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


_COLUMNS: dict[str, Any] = {
    "policy": lambda name, row: name,
    "reward [95 %]": lambda name, row: interval(row.get("reward")),
    "range over seeds": lambda name, row: _range(row.get("reward_by_seed")),
    "win rate": lambda name, row: _number(row.get("win_rate"), 2),
    "win rate, equal length": lambda name, row: rate_of_pairs(row),
    "length": lambda name, row: _number(row["length"], 1),
    "distinct-1/2/3": lambda name, row: "/".join(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)),
    "distinct-2, × reference": lambda name, row: _number(row.get("distinct_2_relative"), 2),
    "perplexity of its own, base": lambda name, row: _number(row.get("own_perplexity_under_base"), 2),
    "perplexity of its own, reference": lambda name, row: _number(row.get("own_perplexity_under_reference"), 2),
    "perplexity of test rows": lambda name, row: _number(row.get("perplexity_of_test_completions"), 2),
    "KL": lambda name, row: _number((row.get("kl") or {}).get("mean"), 2),
    "rank correlation": lambda name, row: _number(row.get("logratio/rank_correlation"), 3),
    "pair accuracy": lambda name, row: _number(row.get("logratio/pair_accuracy"), 3),
}
GLOSSARY = (
    "Intervals: 95 %, bootstrap by prompt family. Win rate: by reward against the reference's completion of the same "
    "prompt, a tie one half; at equal length: over the pairs of all seeds whose lengths differ by a tenth at most (in "
    "brackets how many; a dash for fewer than 20). Length: tokens. distinct-n: distinct n-grams over all n-grams of "
    "the completions; distinct-2, × reference: over the reference's, both cut to the shorter of the two for every "
    "prompt. Perplexity of its own: of its completions under the "
    "untouched base or the reference; of test rows: of the data's completions under the policy. KL: nats a completion, "
    "policy to reference, on the policy's samples. Rank correlation, pair accuracy: of the log-ratio policy over "
    "reference against the recorded rewards of test rows."
)
_SHORT = ("policy", "reward [95 %]", "length", "distinct-1/2/3", "win rate", "KL")
# What stands for the reward where new completions could not be scored.
_SHORT_RECORDED = ("policy", "rank correlation", "pair accuracy", "length", "distinct-1/2/3", "KL")


def result_cells(results: dict[str, Any], decoding: str, *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the result table; columns in which nothing was measured are left out."""
    names = tuple(_COLUMNS)
    if short:
        names = _SHORT if results["can_score_new_completions"] else _SHORT_RECORDED
    table = results[decoding]["table"]
    cells = [[_COLUMNS[n](policy, row) for n in names] for policy, row in table.items()]
    judges = sorted({k for row in table.values() for k in row if k.startswith("judge/")})
    header = list(names) + judges
    cells = [line + [interval(row.get(j)) for j in judges] for line, row in zip(cells, table.values(), strict=True)]
    return measured(header, cells)


def measured(header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells without the columns that hold dashes alone."""
    used = [i for i in range(len(header)) if any(set(line[i]) - set("–/") for line in cells)]
    return [header[i] for i in used], [[line[i] for i in used] for line in cells]


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


_FEW_PAIRS = 20


def rate_of_pairs(row: dict[str, Any]) -> str:
    """The win rate at equal length with the number of its pairs; a dash where they are too few to say anything."""
    pairs = row.get("pairs_of_equal_length") or 0
    return "–" if pairs < _FEW_PAIRS else f"{row['win_rate_at_equal_length']:.2f} ({pairs:,})"


def _range(by_seed: dict | None) -> str:
    if not by_seed or len(by_seed) < 2:
        return "–"
    return f"{min(by_seed.values()):.3f} to {max(by_seed.values()):.3f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"
