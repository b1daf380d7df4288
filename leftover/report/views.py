"""What the page shows of one run, section by section: plain values and pictures, nothing of HTML."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from leftover.evaluation.caveats import caveats
from leftover.evaluation.measures import MEASURES, bounds, number
from leftover.evaluation.statistics import reward_length_correlation
from leftover.evaluation.tables import (
    FIRST,
    component_grid,
    control_grid,
    explanation,
    meanings,
    result_grid,
    source_grid,
)
from leftover.evaluation.verdict import headline
from leftover.report import charts
from leftover.runs.names import decodings
from leftover.runs.records import BySeed, Records, ResultRow

_DISTRIBUTIONS = 4  # more outlines hide one another


def with_main(results: Mapping[str, Any], records: BySeed) -> dict[str, Any]:
    """Results with a main policy; of a comparison it is the one with the highest reward (or rank correlation)."""
    found = json.loads(json.dumps(results))  # seeds are texts, whether the results were just made or read
    table = found[found["primary"]]["table"]
    for name, seeds in records.items():  # comparisons of earlier versions lack it
        own = _of_decoding(seeds, found["primary"])
        table[name].setdefault("reward_length_correlation", reward_length_correlation(own))
    if "main" in found:
        return found

    def score(name: str) -> float:
        measure = MEASURES["reward" if "reward" in table[name] else "logratio/rank_correlation"]
        value = measure.value(table[name])
        return -np.inf if value is None else value

    return found | {"main": max(found["training"], key=score), "is_comparison": True}


def verdict_view(results: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, its caveats, and the numbers that stand out."""
    return {"sentence": headline(results), "caveats": caveats(results), "tiles": _tiles(results)}


def _tiles(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(number, its name, a note beside it)."""
    table = results[results["primary"]]["table"]
    row, reference, leftover = table[results["main"]], table["reference"], results["prepare"].get("leftover")

    def shown(name: str, of: ResultRow = row, form: str | None = None) -> str:
        measure = MEASURES[name]
        return number(measure.value(of), form or measure.form)

    tiles = []
    if "reward" in row:
        gain = "difference_from_reference"
        tiles = [
            (shown("reward"), "mean reward", f"reference {shown('reward', reference)}"),
            (shown(gain), "over the reference", bounds(row[gain], MEASURES[gain].form)),
            (shown("win_rate", form=".0%"), "win rate", "against the reference"),
        ]
    elif row.get("logratio/rank_correlation") is not None:
        tiles = [(shown("logratio/rank_correlation"), "rank correlation", "with the recorded rewards")]
    if leftover:
        tiles.append((f"{leftover['share']:.0%}", "of the rows left over", f"{leftover['leftover_rows']:,} rows"))
    if "kl" in row:
        tiles.append((shown("kl"), "KL to the reference", "nats a completion"))
    if row.get("distinct_2_relative") is not None:
        tiles.append((f"{shown('distinct_2_relative')} ×", "diversity", "of the reference's distinct-2"))
    return tiles


def results_view(results: Mapping[str, Any], records: BySeed) -> dict[str, Any]:
    """Tables of every decoding, and the pictures of the primary one."""
    primary, main, names = results["primary"], results["main"], list(records)
    tables = [
        {
            "decoding": decoding,
            "results": result_grid(results, decoding),
            "controls": control_grid(results, decoding),
            "components": component_grid(results[decoding]["table"]),
            "sources": source_grid(results, decoding),
        }
        for decoding in decodings(results)
    ]
    rewards = {
        name: np.array([r["reward"] for r in _scored(seeds, primary)], np.float64) for name, seeds in records.items()
    }
    scored = [name for name in dict.fromkeys(("reference", main, *rewards)) if len(rewards[name])]
    pictures = [
        charts.reward_distribution({name: rewards[name] for name in scored[:_DISTRIBUTIONS]}, names),
        charts.reward_against_diversity({n: results[primary]["table"][n] for n in names}, names),
        charts.wins(win_shares(records, primary), names),
    ]
    return {
        "tables": tables,
        "charts": [picture for picture in pictures if picture],
        "glossary": explanation(results),
        "meanings": meanings(MEASURES.values()),
        "first": [MEASURES[name].heading for name in FIRST],
        "main": main,
        "absent": results.get("not_applicable", {}) | results.get("failed", {}),
    }


def _of_decoding(seeds: Mapping[int, Records], decoding: str) -> Records:
    return [record for records in seeds.values() for record in records if record["decoding"] == decoding]


def _scored(seeds: Mapping[int, Records], decoding: str) -> Records:
    return [record for record in _of_decoding(seeds, decoding) if record.get("reward") is not None]


def win_shares(records: BySeed, decoding: str) -> dict[str, tuple[float, float, float]]:
    """The shares of prompts on which each policy, over its seeds, wins, ties and loses against the reference."""
    base: dict[int, Any] = {r["group"]: r["reward"] for r in _scored(records["reference"], decoding)}
    found = {}
    for name, seeds in records.items():
        gaps = [r["reward"] - base[r["group"]] for r in _scored(seeds, decoding) if r["group"] in base]
        if gaps and name != "reference":
            signs = np.sign(gaps)
            found[name] = (float((signs > 0).mean()), float((signs == 0).mean()), float((signs < 0).mean()))
    return found


def leftover_view(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """The analysis of the rows with its pictures."""
    value, bins = analysis["value"], analysis["calibration"]["bins"]
    pictures = [
        charts.advantage_histogram(analysis["advantage"]),
        # Of a constant it would show the folds, each with the mean of the others, as if they were prompts.
        charts.reward_against_value(value, analysis["reward"], bins)
        if set(analysis["kinds"]) != {"constant"}
        else None,
        charts.weight_curve(analysis["advantage"]),
    ]
    return {**analysis, "charts": [picture for picture in pictures if picture]}
