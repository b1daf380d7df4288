"""Reward against diversity as one picture."""

from pathlib import Path
from typing import Any

from leftover.commands.compare.gather import DATA, REFERENCE
from leftover.report.curves import series_style


def draw_reward_diversity(folder: Path, results: dict[str, Any]) -> str | None:
    """Write comparison_reward_diversity.png and .svg; returns the first's name, None where no reward was measured.

    A point a method: mean reward with its 95 % interval against distinct-2, relative to the reference's at equal
    lengths; a dot for each of its seeds' rewards.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = {name: row for name, row in results[results["primary"]]["table"].items() if name != DATA}
    table = {name: row for name, row in table.items() if row.get("distinct_2_relative") is not None}
    if "reward" not in table.get(REFERENCE, {}):
        return None
    figure, axis = plt.subplots(figsize=(7.5, 5.2))
    styles = {name: series_style(number) for number, name in enumerate(n for n in table if n != REFERENCE)}
    for name in sorted(styles, key=lambda name: -table[name]["reward"]["mean"]):  # the legend's order
        _point(axis, name, table[name], styles[name])
    _point(axis, REFERENCE, table[REFERENCE], {"color": "black", "marker": "*", "ms": 10})
    axis.axhline(table[REFERENCE]["reward"]["mean"], color="black", lw=0.6, ls=":")
    axis.set_xlabel("distinct-2 over the reference's, both cut to the shorter for every prompt")
    axis.set_ylabel("reward on held-out prompts [95 %]; dots: seeds")
    axis.set_title(f"{results['name']}: {results['primary']} completions", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(folder / f"comparison_reward_diversity.{ending}", dpi=120)
    plt.close(figure)
    return "comparison_reward_diversity.png"


def _point(axis: Any, name: str, row: dict[str, Any], style: dict[str, Any]) -> None:
    reward, diversity = row["reward"], row["distinct_2_relative"]
    ends = [[reward["mean"] - reward["low"]], [reward["high"] - reward["mean"]]]
    style = style | {"ls": ""}  # of the points; their intervals are always whole lines
    axis.errorbar([diversity], [reward["mean"]], yerr=ends, capsize=3, lw=1, label=name, **style)
    seeds = list(row["reward_by_seed"].values())
    if len(seeds) > 1:
        axis.plot([diversity] * len(seeds), seeds, ls="", marker=".", ms=4, color=style["color"], alpha=0.6)
