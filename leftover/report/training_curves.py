"""The training section of the page: curves of every policy along its steps, and what each run selected and kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from leftover.recipe.policy_config import PolicyConfig
from leftover.report import charts

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
    "eval_nll": ("Held-out NLL", "nats a token"),
    "eval_completions/distinct_2": ("Diversity on the selection prompts", "distinct-2"),
    "eval_completions/mean_length": ("Length on the selection prompts", "tokens"),
}
_ONLINE_ALONE = {"kl", "entropy"}


def _all_greedy(recipe: Any) -> bool:
    """Whether every policy's evaluations along training wrote greedy completions."""
    shared = {"eval_decoding": PolicyConfig.eval_decoding} | recipe.train
    return all((shared | fields)["eval_decoding"] == "greedy" for fields in recipe.policies.values())


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
        "charts": [picture for picture in pictures if picture is not None],
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
