"""What the page shows of one run, section by section: plain values and pictures, nothing of HTML."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from leftover.evaluation.results import reward_length_correlation
from leftover.evaluation.verdict import caveats, headline
from leftover.metrics import win_rate
from leftover.report import charts
from leftover.report.charts import Chart
from leftover.report.completions import BySeed
from leftover.runs.names import DECODINGS


def with_main(results: dict[str, Any], records: BySeed) -> dict[str, Any]:
    """Results that name a main policy, as a comparison's do not: the one of highest reward (or rank correlation)."""
    results = json.loads(json.dumps(results))  # seeds are texts, whether the results were just made or read
    primary = results["primary"]
    table = results[primary]["table"]
    for name, seeds in records.items():  # comparisons of earlier versions do not tell it
        own = [r for lines in seeds.values() for r in lines if r["decoding"] == primary]
        table[name].setdefault("reward_length_correlation", reward_length_correlation(own))
    if "main" in results:
        return results

    def score(name: str) -> float:
        row = table[name]
        return row["reward"]["mean"] if "reward" in row else row.get("logratio/rank_correlation", -np.inf)

    return results | {"main": max(results["training"], key=score), "is_comparison": True}


def verdict_view(results: dict[str, Any]) -> dict[str, Any]:
    """The sentence, its caveats, and the numbers that stand out."""
    sentence = headline(results)
    if results.get("is_comparison") and len(results["training"]) > 1:
        sentence = f"Of {len(results['training'])} methods the highest: {sentence}"
    return {"sentence": sentence, "caveats": caveats(results), "tiles": _tiles(results)}


def _tiles(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(number, what it is, what stands beside it)."""
    table, main = results[results["primary"]]["table"], results["main"]
    row, reference = table[main], table["reference"]
    tiles = []
    if "reward" in row:
        gain = row["difference_from_reference"]
        tiles += [
            (f"{row['reward']['mean']:.3f}", "mean reward", f"reference {reference['reward']['mean']:.3f}"),
            (f"{gain['mean']:+.3f}", "over the reference", f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"),
            (f"{row['win_rate']:.0%}", "win rate", "against the reference"),
        ]
    elif row.get("logratio/rank_correlation") is not None:
        tiles.append((f"{row['logratio/rank_correlation']:.3f}", "rank correlation", "with the recorded rewards"))
    leftover = results["prepare"].get("leftover")
    if leftover:
        tiles.append((f"{leftover['share']:.0%}", "of the rows left over", f"{leftover['leftover_rows']:,} rows"))
    if "kl" in row:
        tiles.append((f"{row['kl']['mean']:.2f}", "KL to the reference", "nats a completion"))
    tiles.append((f"{row['distinct_2']:.3f}", "distinct-2", f"reference {reference['distinct_2']:.3f}"))
    return tiles


def results_view(results: dict[str, Any], records: BySeed) -> dict[str, Any]:
    """Tables of both decodings, and the pictures of the primary one."""
    from leftover.evaluation.tables import GLOSSARY, interval, result_cells

    primary, names = results["primary"], list(records)
    tables = []
    for decoding in (primary, *(d for d in DECODINGS if d != primary)):
        header, cells = result_cells(results, decoding)
        against = results[decoding].get("main_against", {})
        controls = [
            [name, interval(row["difference"], "+"), f"{row['win_rate']:.2f}"] for name, row in against.items() if row
        ]
        tables.append(
            {
                "decoding": decoding,
                "header": header,
                "cells": cells,
                "controls": controls,
                "parts": _parts(results[decoding]["table"], interval),
                "sources": _source_cells(results[decoding].get("by_source", {}), interval),
            }
        )
    rewards = {name: _rewards(seeds, primary) for name, seeds in records.items()}
    rewards = {name: values for name, values in rewards.items() if len(values)}
    pictures = [
        charts.reward_distribution(_few(rewards, results["main"]), names),
        charts.reward_against_diversity({n: results[primary]["table"][n] for n in names}, names),
        charts.wins(win_shares(records, primary), names),
    ]
    return {
        "tables": tables,
        "charts": _drawn(pictures),
        "glossary": GLOSSARY,
        "main": results["main"],
        "absent": results.get("not_applicable", {}) | results.get("failed", {}),
    }


def _few(rewards: dict[str, Any], main: str, number: int = 4) -> dict[str, Any]:
    """Reference, main policy and the next: outlines of many distributions hide one another."""
    order = ["reference", main, *(n for n in rewards if n not in ("reference", main))]
    return {name: rewards[name] for name in order[:number] if name in rewards}


def _parts(table: dict[str, Any], interval: Any) -> dict[str, Any] | None:
    """Components of the reward and judges; result_cells has the judges already where there is no component."""
    names = list(dict.fromkeys(n for row in table.values() for n in row if n.startswith("reward/")))
    if len(names) < 2:
        return None
    cells = [[name, *(interval(row.get(n)) for n in names)] for name, row in table.items()]
    return {"header": ["policy", *names], "cells": cells}


def _source_cells(by_source: dict[str, Any], interval: Any) -> dict[str, Any] | None:
    sources = by_source.get("reference") or {}
    measures = [n for n in next(iter(sources.values()), {}) if n == "reward" or n.startswith("judge/")]
    if not measures:
        return None
    header = ["policy", "measure", *(f"{source} ({of['prompts']} prompts)" for source, of in sources.items())]
    cells = [
        [policy, measure, *(interval(by[source][measure]) for source in sources)]
        for policy, by in by_source.items()
        for measure in measures
    ]
    return {"header": header, "cells": cells}


def _rewards(seeds: Mapping[int, list[dict[str, Any]]], decoding: str) -> np.ndarray:
    lines = [record for records in seeds.values() for record in records if record["decoding"] == decoding]
    return np.array([record["reward"] for record in lines if "reward" in record], np.float64)


def win_shares(records: BySeed, decoding: str) -> dict[str, tuple[float, float, float]]:
    """Shares of prompts on which a policy's reward is above, equal to and below the reference's, over its seeds."""
    [reference] = records["reference"].values()
    base = {r["group"]: r["reward"] for r in reference if r["decoding"] == decoding and "reward" in r}
    found = {}
    for name, seeds in records.items():
        lines = [r for of in seeds.values() for r in of if r["decoding"] == decoding and r["group"] in base]
        if name == "reference" or not lines:
            continue
        ours, theirs = [r["reward"] for r in lines], [base[r["group"]] for r in lines]
        ties = float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))
        won = win_rate(ours, theirs) - ties / 2
        found[name] = (won, ties, 1 - won - ties)
    return found


def leftover_view(analysis: dict[str, Any]) -> dict[str, Any]:
    """The analysis of the rows with its pictures."""
    pictures = [
        charts.advantage_histogram(analysis["advantage"]),
        charts.reward_against_value(analysis["value"], analysis["reward"], analysis["calibration"]["bins"]),
        charts.weight_curve(analysis["advantage"]),
    ]
    return analysis | {"charts": _drawn(pictures)}


def _drawn(pictures: list[Chart | None]) -> list[Chart]:
    return [picture for picture in pictures if picture is not None]
