"""comparison.md, comparison.csv and comparison.json, all from the same numbers."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover.card import write_cards
from leftover.compare.gather import flat_rows
from leftover.compare.marks import RULE
from leftover.compare.plots import draw_reward_diversity
from leftover.manifest import write_json
from leftover.plan.sources import size_text
from leftover.report.curves import draw_curves
from leftover.report.page import write_run_page
from leftover.report.write import GLOSSARY
from leftover.workspace import Run

log = logging.getLogger(__name__)

Row = dict[str, Any]
_MISSING = "–"


def write_comparison(run: Run, results: dict[str, Any]) -> None:
    """Write the tables and pictures of a comparison into the run's folder."""
    rows = flat_rows(results)
    write_json(run.folder / "comparison.json", results | {"rows": rows, "rule": RULE})
    _write_csv(run.folder / "comparison.csv", rows)
    pictures = {
        "Reward against diversity": draw_reward_diversity(run.folder, results),
        "Reward along training": draw_curves(run, results, "comparison_training.png"),
    }
    path = run.folder / "comparison.md"
    path.write_text(as_markdown(results, rows, pictures), encoding="utf-8")
    log.info("compare: %s", path)
    write_run_page(run, results)
    write_cards(run, results)


def _write_csv(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def as_markdown(results: dict[str, Any], rows: list[Row], pictures: dict[str, str | None]) -> str:
    """The content of comparison.md."""
    parts = [f"# Comparison: {results['name']}", _intro(results)]
    parts += [f"Caveat: {caveat}." for caveat in results["scoring_caveats"]]
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        own = [row for row in rows if row["decoding"] == decoding]
        parts += [f"## Results, {decoding} completions", _table(_result_columns(), own)]
        parts += [RULE if any(results[decoding]["marks"].values()) else "", _parts_table(results, own)]
    trained = [row for row in rows if row["decoding"] == results["primary"] and "updates" in row]
    parts += [_GLOSSARY, "## What a run took", _table(_COST, trained), _cost_notes(results)]
    parts += [_refused(results), _failures(results), _methods(results), _trials(results)]
    for title, name in pictures.items():
        parts += [f"## {title}", f"![{title}]({name})"] if name else []
    return "\n\n".join(part for part in parts if part) + "\n"


_GLOSSARY = (
    f"{GLOSSARY} Win rate, data: by reward against the data's own completions of the same prompt. The row `data` is "
    "the test rows themselves."
)


def _intro(results: dict[str, Any]) -> str:
    updates = sorted({method["updates"] for method in results["methods"].values()})
    per_run = f"{updates[0]:,}" if len(updates) == 1 else f"{updates[0]:,} to {updates[-1]:,}"
    budget = {
        "equal": f"every method takes {per_run} optimizer updates",
        "paper": f"updates are scaled by the share of rows that a method selects: {per_run}",
    }[results["budget"]]
    online = [name for name, method in results["methods"].items() if method["planned_tokens"] is None]
    if online:
        budget += f" ({', '.join(online)}: as many, rounded up to whole rounds of its own completions)"
    trials = results["num_trials"]
    tuned = f"Settings: the best of {trials} trials a method on the selection prompts." if trials > 1 else ""
    seeds = ", ".join(map(str, results["seeds"]))
    return f"One prepared table, one reference; {budget}; seeds {seeds}. {tuned}".strip()


def _result_columns() -> dict[str, Callable[[Row], str]]:
    return {
        "method": lambda row: _code(row["method"]),
        "reward [95 %]": lambda row: _marked(row, "reward"),
        "range over seeds": lambda row: _range(row, "reward lowest seed", "reward highest seed"),
        "− reference [95 %]": lambda row: _interval(row, "difference_from_reference", "+"),
        "win rate, reference": lambda row: _number(row, "win_rate", 2),
        "win rate, equal length": lambda row: _number(row, "win_rate_at_equal_length", 2),
        "win rate, data": lambda row: _number(row, "win_rate_against_data", 2),
        "length": lambda row: _number(row, "length", 1),
        "distinct-1/2/3": lambda row: "/".join(_number(row, f"distinct_{n}", 3) for n in (1, 2, 3)),
        "distinct-2, equal length": lambda row: _number(row, "distinct_2_at_reference_length", 3),
        "perplexity of its own, base": lambda row: _number(row, "own_perplexity_under_base", 2),
        "perplexity of its own, reference": lambda row: _number(row, "own_perplexity_under_reference", 2),
        "perplexity of test rows": lambda row: _number(row, "perplexity_of_test_completions", 2),
        "KL": lambda row: _number(row, "kl", 2),
        "rank correlation": lambda row: _number(row, "logratio/rank_correlation", 3),
        "pair accuracy": lambda row: _number(row, "logratio/pair_accuracy", 3),
    }


def _parts_table(results: dict[str, Any], rows: list[Row]) -> str:
    """Components and judges; a single component that is the reward itself is not told twice."""
    names = list(dict.fromkeys(n for row in rows for n in row if n.startswith(("reward/", "judge/"))))
    parts = [n for n in names if not n.endswith((" low", " high"))]
    alone = [n for n in parts if n.startswith("reward/")]
    if len(alone) == 1 and all(row.get(alone[0]) == row.get("reward") for row in rows if alone[0] in row):
        parts.remove(alone[0])
    if not parts:
        return ""
    columns: dict[str, Callable[[Row], str]] = {"method": lambda row: _code(row["method"])}
    for part in parts:
        columns[part.replace("/", ": ")] = lambda row, part=part: _marked(row, part)  # type: ignore[misc]
    return "Components of the reward, and judges, on which no policy was trained:\n\n" + _table(
        columns, [row for row in rows if any(part in row for part in parts)]
    )


_COST: dict[str, Callable[[Row], str]] = {
    "method": lambda row: _code(row["method"]),
    "rows selected": lambda row: _number(row, "selected_rows", 0),
    "effective sample size": lambda row: _number(row, "effective_sample_size", 0),
    "updates": lambda row: _number(row, "updates", 0),
    "tokens trained": lambda row: _number(row, "trained_tokens", 0),
    "rollout tokens": lambda row: _number(row, "rollout_tokens", 0),
    "seconds": lambda row: _number(row, "seconds", 0),
    "of them rollouts": lambda row: _number(row, "rollout_seconds", 0),
    "peak memory": lambda row: size_text(row["peak_memory_bytes"]) if "peak_memory_bytes" in row else _MISSING,
}


def _cost_notes(results: dict[str, Any]) -> str:
    facts = [facts for runs in results["training"].values() for facts in runs.values()]
    of = {fact.get("peak_memory_of") for fact in facts}
    said = ["Means over seeds. Tokens: of prompts and completions, without padding."]
    said.append("Seconds: of training with its evaluations on the selection prompts.")
    if "gpu" in of:
        said.append("Peak memory: the most that tensors took on the GPU.")
    if of & {"process", "process_lifetime"}:
        said.append("Peak memory: the most that the training process held, with its libraries.")
    resumed = sum("resumed_at" in fact for fact in facts)
    if resumed:
        said.append(f"{resumed} runs were continued after a stop: their seconds count from there.")
    return " ".join(said)


def _refused(results: dict[str, Any]) -> str:
    found = results["not_applicable"]
    lines = [f"- {_code(name)}: n/a, {reason}" for name, reason in found.items()]
    return "\n".join(["## Not applicable", "", *lines]) if lines else ""


def _failures(results: dict[str, Any]) -> str:
    lines = [f"- {_code(name)}: {' '.join(said.split())}" for name, said in results["failed"].items()]
    return "\n".join(["## Failed", "", "No number above has these runs in it.", "", *lines]) if lines else ""


def _methods(results: dict[str, Any]) -> str:
    lines = ["## Methods", "", "| method | source | settings |", "| --- | --- | --- |"]
    methods = results["methods"]
    shared = _shared([method["settings"] for method in methods.values()])
    for name, method in methods.items():
        own = {k: v for k, v in method["settings"].items() if k not in shared}
        lines.append(f"| {_code(name)} | {method['source']} | {_settings(own)} |")
    return "\n".join([*lines, "", f"All: {_settings(shared)}. What is not named has the defaults of `LoLConfig`."])


def _shared(settings: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = settings
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


def _trials(results: dict[str, Any]) -> str:
    if results["num_trials"] < 2:
        return ""
    lines = [
        "## Trials",
        "",
        f"Each with seed {results['seeds'][0]}; scored by the kept checkpoint on the selection prompts.",
        "",
        "| method | trial | score | |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in results["methods"].items():
        for i, trial in enumerate(method.get("trials", [])):
            score = "failed" if trial["selection"] is None else f"{trial['selection']:.4f}"
            chosen = "chosen" if i == method["chosen"] else ""
            lines.append(f"| {_code(name)} | {_settings(trial['settings']) or 'defaults'} | {score} | {chosen} |")
    return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())


_SHORT = ("method", "reward [95 %]", "range over seeds", "win rate, reference", "length", "distinct-1/2/3", "KL")
_SHORT_RECORDED = ("method", "rank correlation", "pair accuracy", "length", "distinct-1/2/3", "KL")


def short_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the primary result table, for a terminal, without markup."""
    names = _SHORT if results["can_score_new_completions"] else _SHORT_RECORDED
    columns = {name: cell for name, cell in _result_columns().items() if name in names}
    rows = [row for row in flat_rows(results) if row["decoding"] == results["primary"]]
    header, cells = _cells(columns, [row | {"marked reward": ""} for row in rows])
    return header, [[cell.strip("`") for cell in line] for line in cells]


def _cells(columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; columns in which nothing was measured are left out."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if any(set(line[i]) - set("–/") for line in cells)]
    header = list(columns)
    return [header[i] for i in used], [[line[i] for i in used] for line in cells]


def _table(columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> str:
    header, cells = _cells(columns, rows)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in cells])


def _code(name: str) -> str:
    return f"`{name}`"


def _number(row: Row, name: str, digits: int) -> str:
    value = row.get(name)
    return _MISSING if value is None or value != value else f"{value:,.{digits}f}"


def _range(row: Row, low: str, high: str) -> str:
    if low not in row or len(row["seeds"].split()) < 2:
        return _MISSING
    return f"{row[low]:.3f} to {row[high]:.3f}"


def _interval(row: Row, name: str, sign: str = "") -> str:
    if name not in row:
        return _MISSING
    return f"{row[name]:{sign}.3f} [{row[f'{name} low']:{sign}.3f}, {row[f'{name} high']:{sign}.3f}]"


def _marked(row: Row, name: str) -> str:
    before, after = {"best": ("**", "**"), "second": ("<u>", "</u>")}.get(row.get(f"marked {name}", ""), ("", ""))
    return f"{before}{_interval(row, name)}{after}"
