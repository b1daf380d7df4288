"""comparison.md, comparison.csv and comparison.json, all from the same numbers."""

import csv
import logging
from pathlib import Path
from typing import Any

from leftover.commands.compare.gather import flat_rows
from leftover.commands.compare.marks import RULE
from leftover.commands.compare.plots import draw_reward_diversity
from leftover.commands.compare.tables import COST, Row, as_table, code, method_caveats, parts_tables, result_columns
from leftover.evaluation.tables import GLOSSARY
from leftover.publish.card import write_cards
from leftover.report.curves import draw_curves
from leftover.report.page import write_run_page
from leftover.runs.finished import FinishedRun
from leftover.store.manifest import write_json

log = logging.getLogger(__name__)


def write_comparison(run: FinishedRun, results: dict[str, Any]) -> None:
    """Write the tables and pictures of a comparison into the run's folder."""
    rows = flat_rows(results)
    write_json(run.folder / "comparison.json", results | {"rows": rows, "rule": RULE})
    _write_csv(run.folder / "comparison.csv", rows)
    pictures = {
        "Reward against diversity": draw_reward_diversity(run.folder, results),
        "Reward along training": draw_curves(run.folder, results, "comparison_training.png"),
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
        parts += [f"## Results, {decoding} completions", as_table(result_columns(), own)]
        parts += [RULE if any(results[decoding]["marks"].values()) else "", method_caveats(results, decoding)]
        parts += parts_tables(own)
    trained = [row for row in rows if row["decoding"] == results["primary"] and "updates" in row]
    parts += [_GLOSSARY, "## What a run took", as_table(COST, trained), _cost_notes(results)]
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
    said = (
        f"seeds {seeds}" if len(results["seeds"]) > 1 else f"seed {seeds} alone: what another would change is unknown"
    )
    return f"One prepared table, one reference; {budget}; {said}. {tuned}".strip()


def _cost_notes(results: dict[str, Any]) -> str:
    facts = [facts for runs in results["training"].values() for facts in runs.values()]
    of = {fact.get("peak_memory_of") for fact in facts}
    said = ["Means over seeds. Tokens: of prompts and completions, without padding."]
    said.append("Seconds: of training with its evaluations on the selection prompts.")
    if "gpu" in of:
        said.append("Peak memory: the most that tensors took on the GPU.")
    if of & {"process", "process_lifetime"}:
        said.append("Peak memory: the most that the training process held, with its libraries.")
    if any("resumed_at" in fact for fact in facts):
        said.append("*: with runs that were continued after a stop; their seconds count from there.")
    return " ".join(said)


def _refused(results: dict[str, Any]) -> str:
    found = results["not_applicable"]
    lines = [f"- {code(name)}: n/a, {reason}" for name, reason in found.items()]
    return "\n".join(["## Not applicable", "", *lines]) if lines else ""


def _failures(results: dict[str, Any]) -> str:
    lines = [f"- {code(name)}: {' '.join(said.split())}" for name, said in results["failed"].items()]
    return "\n".join(["## Failed", "", "No number above has these runs in it.", "", *lines]) if lines else ""


def _methods(results: dict[str, Any]) -> str:
    lines = ["## Methods", "", "| method | source | settings |", "| --- | --- | --- |"]
    methods = results["methods"]
    shared = _shared([method["settings"] for method in methods.values()])
    for name, method in methods.items():
        own = {k: v for k, v in method["settings"].items() if k not in shared}
        lines.append(f"| {code(name)} | {method['source']} | {_settings(own)} |")
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
            lines.append(f"| {code(name)} | {_settings(trial['settings']) or 'defaults'} | {score} | {chosen} |")
    return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())
