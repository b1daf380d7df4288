"""Curves along training: those of the page, from metrics.jsonl, and learning_curves.png, from the evaluations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.evaluation.measures import MEASURES
from leftover.recipe.policy_config import PolicyConfig
from leftover.recipe.sections import Recipe
from leftover.report import charts
from leftover.report.figures import Curve, figure, paint_curve, paint_reference, policy_style
from leftover.runs.names import policy_folder

# metric -> title and label of the axis
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
    "loss": ("Loss", "the method's own loss"),
    "eval_nll": ("Held-out NLL", "nats a token"),
    "eval_completions/distinct_2": ("Distinct-2 on the selection prompts", "longer texts have less"),
    "eval_completions/mean_length": ("Length on the selection prompts", "tokens"),
}
_IN_PNG = ("eval_reward/mean", "eval_logratio/rank_correlation", "eval_nll")
_DECODING = {"greedy": "greedy", "sample": "sampled"}  # the setting of training -> the table of the results
_ONLINE_ONLY = {"kl", "entropy"}
# What the reference has by definition, and where the result table holds it, of the test prompts.
_OF_REFERENCE = {"eval_kl": 0.0, "kl": 0.0, "logratio/mean": 0.0, "importance_weight/mean": 1.0}
_IN_TABLE = {"eval_reward/mean": "reward", "eval_completions/mean_length": "length"}

Training = Mapping[str, Mapping[Any, Mapping[str, Any]]]  # policy -> seed -> what the manifest keeps of its training


def training_view(folder: Path, recipe: Recipe, results: Mapping[str, Any]) -> dict[str, Any]:
    """The learning curves of all policies; which were not logged, and whether for want of sampled completions."""
    training: Training = results["training"]
    logs = {
        p: {int(s): read_log(policy_folder(folder, p, s) / "metrics.jsonl") for s in seeds}
        for p, seeds in training.items()
    }
    pictures, missing = [], []
    shared = {"eval_decoding": PolicyConfig.eval_decoding} | recipe.train
    decodings = {(shared | fields)["eval_decoding"] for fields in recipe.policies.values()}
    tables = [results[name]["table"] for decoding in decodings if (name := _DECODING[decoding]) in results]
    for metric, (title, label) in _PANELS.items():
        if metric == "eval_logratio/rank_correlation" and results["can_score_new_completions"]:
            continue
        names = ["reference", *training]
        curves = _curves(logs, metric)
        level = reference_level(metric, curves, tables)
        picture = charts.curve(title, curves, names, _chosen(training), label, level)
        if picture is not None:
            pictures.append(picture)
        elif metric not in _ONLINE_ONLY:
            missing.append(title)
    unsampled = decodings == {"greedy"} and _PANELS["eval_kl"][0] in missing
    return {"charts": pictures, "missing": missing, "unsampled": unsampled}


def reference_level(
    metric: str, curves: Mapping[str, Curve], tables: Sequence[Mapping[str, Any]]
) -> tuple[float, str] | None:
    """What the reference has of a metric, and what to call it; None if nothing knows it.

    It is known by definition, or from evaluations before the first step (`eval_on_start`); else what it has on the test
    prompts stands for it, if all policies are evaluated by the decoding of the only one of `tables`.
    """
    if metric in _OF_REFERENCE:
        return _OF_REFERENCE[metric], "reference"
    if starts := [seed[0] for curve in curves.values() for seed in curve.values() if 0 in seed]:
        return float(np.mean(starts)), "reference"
    if metric in _IN_TABLE and len(tables) == 1:
        level = MEASURES[_IN_TABLE[metric]].value(tables[0].get("reference", {}))
        return None if level is None else (level, "reference, test prompts")
    return None


def draw_curves(folder: Path, training: Training, name: str = "learning_curves.png") -> str | None:
    """Write the picture `name`; returns its name, or None if nothing was evaluated during training."""
    logs = {p: {s: facts.get("evaluations", []) for s, facts in seeds.items()} for p, seeds in training.items()}
    panels = {metric: curves for metric in _IN_PNG if (curves := _curves(logs, metric))}
    if not panels:
        return None
    from matplotlib.ticker import MaxNLocator

    styles, chosen = {policy: policy_style(policy, training) for policy in training}, _chosen(training)
    with figure(ncols=len(panels), figsize=(5.5 * len(panels), 3.8), squeeze=False) as (made, axes):
        for axis, (metric, curves) in zip(axes[0], panels.items(), strict=True):
            for policy, curve in curves.items():
                paint_curve(axis, curve, chosen[policy], label=policy, ms=3.5, **styles[policy])
            if level := reference_level(metric, curves, []):
                paint_reference(axis, *level)
            title, label = _PANELS[metric]
            axis.set_title(title, fontsize=10)
            axis.set(xlabel="optimizer step (a ring: the checkpoint that was kept)", ylabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        handles, labels = axes[0][0].get_legend_handles_labels()
        made.tight_layout()
        made.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        made.savefig(folder / name, dpi=120, bbox_inches="tight")
    return name


def _curves(logs: Mapping[str, Mapping[int, Iterable[Mapping[str, Any]]]], metric: str) -> Mapping[str, Curve]:
    """policy -> seed -> step -> number, of those that logged the metric."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for policy, seeds in logs.items():
        for seed, lines in seeds.items():
            for line in lines:
                value = line.get(metric)
                if isinstance(value, (int, float)) and np.isfinite(value):
                    found.setdefault(policy, {}).setdefault(seed, {})[line["step"]] = value
    return found


def _chosen(training: Training) -> dict[str, set[int]]:
    """policy -> the steps whose checkpoints its seeds kept."""
    return {p: {f["best_step"] for f in seeds.values() if f.get("best_step")} for p, seeds in training.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, if there is one; the half line of a killed run, and what is damaged, is skipped."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines
