"""Reward against diversity as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leftover.commands.compare.gather import DATA
from leftover.evaluation.gather import REFERENCE
from leftover.report.figures import figure, paint_reward_against_diversity, series_style


def draw_reward_diversity(folder: Path, results: Mapping[str, Any]) -> str | None:
    """Write comparison_reward_diversity.png and .svg; returns the first's name, None where no reward was measured.

    A point a method: mean reward with its 95 % interval against distinct-2, relative to the reference's at equal
    lengths; a dot for each of its seeds' rewards.
    """
    table = {name: row for name, row in results[results["primary"]]["table"].items() if name != DATA}
    table = {name: row for name, row in table.items() if row.get("distinct_2_relative") is not None}
    if "reward" not in table.get(REFERENCE, {}):
        return None
    reference = table.pop(REFERENCE)
    styles = {name: series_style(number) for number, name in enumerate(table)}
    ranked = sorted(table, key=lambda name: -table[name]["reward"]["mean"])  # the legend's order
    with figure(figsize=(7.5, 5.2)) as (made, axis):
        for name in ranked:
            style = styles[name] | {"ls": ""}  # of the points; their intervals are always whole lines
            paint_reward_against_diversity(axis, table[name], lw=1, label=name, **style)
            seeds = list(table[name]["reward_by_seed"].values())
            if len(seeds) > 1:
                at = [table[name]["distinct_2_relative"]] * len(seeds)
                axis.plot(at, seeds, ls="", marker=".", ms=4, color=style["color"], alpha=0.6)
        paint_reward_against_diversity(axis, reference, lw=1, label=REFERENCE, color="black", marker="*", ms=10, ls="")
        axis.axhline(reference["reward"]["mean"], color="black", lw=0.6, ls=":")
        axis.set(
            xlabel="distinct-2 over the reference's, both cut to the shorter for every prompt",
            ylabel="reward on held-out prompts [95 %]; dots: seeds",
        )
        axis.set_title(f"{results['name']}: {results['primary']} completions", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        made.tight_layout()
        for ending in ("png", "svg"):
            made.savefig(folder / f"comparison_reward_diversity.{ending}", dpi=120)
    return "comparison_reward_diversity.png"
