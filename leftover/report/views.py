"""What the page shows of one run, section by section: plain values and pictures, nothing of HTML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leftover.evaluate import DECODINGS
from leftover.metrics import win_rate
from leftover.report import charts
from leftover.report.charts import Chart
from leftover.report.completions import BySeed
from leftover.report.sections import caveats, headline, reward_length_correlation


def with_main(results: dict[str, Any], records: BySeed) -> dict[str, Any]:
    """Results that name a main policy, as a comparison's do not: the one of highest reward (or rank correlation)."""
    results = json.loads(json.dumps(results))  # seeds are texts, whether the results were just made or read
    primary = results["primary"]
    table = results[primary]["table"]
    for name, seeds in records.items():
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
    from leftover.report.write import GLOSSARY, interval, result_cells

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


# metric -> title and what its axis says
_PANELS = {
    "eval_reward/mean": ("Reward on the selection prompts", "mean reward"),
    "eval_logratio/rank_correlation": ("Rank correlation on the selection rows", "log-ratio against reward"),
    "eval_kl": ("KL to the reference", "nats a completion"),
    "eval_entropy": ("Entropy", "nats a token"),
    "logratio/mean": ("Log-ratio of the drawn rows", "log π − log π_ref, nats"),
    "importance_weight/mean": ("Importance weights", "mean weight"),
    "importance_weight/clipped_frac": ("Importance weights clipped", "share"),
    "kl": ("KL, online rollouts", "nats a completion"),
    "entropy": ("Entropy, online rollouts", "nats a token"),
    "loss": ("Loss", "loss of the method's own"),
    "eval_nll": ("Held-out likelihood", "nats a token"),
    "eval_completions/distinct_2": ("Diversity on the selection prompts", "distinct-2"),
    "eval_completions/mean_length": ("Length on the selection prompts", "tokens"),
}
_ONLINE_ALONE = {"kl", "entropy"}


def _all_greedy(recipe: Any) -> bool:
    """Whether every policy's evaluations along training wrote greedy completions, as the configs' default is."""
    return all(
        (recipe.train | fields).get("eval_decoding", "greedy") == "greedy" for fields in recipe.policies.values()
    )


def training_view(folder: Path, recipe: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Learning curves of all policies, and what each run selected, took and kept."""
    runs, names = results["training"], ["reference", *results["training"]]
    logs = {p: {s: read_log(folder / "policies" / p / f"seed-{s}" / "metrics.jsonl") for s in of}
            for p, of in runs.items()}  # fmt: skip
    chosen = {p: {f["best_step"] for f in of.values() if f.get("best_step")} for p, of in runs.items()}
    pictures, missing = [], []
    for metric, (title, label) in _PANELS.items():
        if metric == "eval_logratio/rank_correlation" and results["can_score_new_completions"]:
            continue
        curves: dict[str, dict[int, dict[int, float]]] = {}
        for policy, seeds in logs.items():
            found = {int(s): _series(lines, metric) for s, lines in seeds.items()}
            if any(found.values()):
                curves[policy] = {s: points for s, points in found.items() if points}
        picture = charts.curve(title, curves, names, chosen, label)
        pictures.append(picture)
        if picture is None and metric not in _ONLINE_ALONE:
            missing.append(title)
    return {
        "charts": _drawn(pictures),
        "missing": missing,
        "unsampled": _all_greedy(recipe) and _PANELS["eval_kl"][0] in missing,
        "rows": _training_rows(results),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where it is not there. The half line of a killed run is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _series(lines: list[dict[str, Any]], metric: str) -> dict[int, float]:
    found = {line["step"]: line[metric] for line in lines if isinstance(line.get(metric), (int, float))}
    return {step: value for step, value in found.items() if np.isfinite(value)}


def _training_rows(results: dict[str, Any]) -> dict[str, Any]:
    header = ["policy", "seed", "rows selected", "effective sample size", "steps", "kept step", "its value"]
    cells = []
    for policy, seeds in results["training"].items():
        for seed, facts in seeds.items():
            best = facts.get("best_metric")
            cells.append(
                [
                    policy,
                    seed,
                    f"{facts['selected_rows']:,}",
                    f"{facts['effective_sample_size']:,.0f}",
                    f"{facts['steps']:,}",
                    f"{facts.get('best_step') or '–'}",
                    "–" if best is None else f"{best:.3f}",
                ]
            )
    return {"header": header, "cells": cells}


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
