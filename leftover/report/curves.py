"""Learning curves of a run as one picture."""

from collections import defaultdict
from pathlib import Path
from typing import Any

_PANELS = {
    "eval_reward/mean": "reward on the selection prompts",
    "eval_logratio/rank_correlation": "rank correlation on the selection rows",
    "eval_nll": "nats a token on validation rows",
}


def draw_curves(folder: Path, results: dict[str, Any], name: str = "learning_curves.png") -> str | None:
    """Write the picture `name`; returns its name, or None where nothing was evaluated along the way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels = {
        metric: title
        for metric, title in _PANELS.items()
        if any(metric in e for runs in results["training"].values() for facts in runs.values() for e in _points(facts))
    }
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.8), squeeze=False)
    for axis, (metric, title) in zip(axes[0], panels.items(), strict=True):
        for number, (policy, seeds) in enumerate(results["training"].items()):
            curve = defaultdict(list)
            for facts in seeds.values():
                for entry in _points(facts):
                    if metric in entry:
                        curve[entry["step"]].append(entry[metric])
            steps = sorted(curve)
            style = series_style(number)
            color = style["color"]
            axis.plot(steps, [sum(curve[s]) / len(curve[s]) for s in steps], **style, ms=3.5, label=policy)
            chosen = [facts.get("best_step") for facts in seeds.values()]
            for step in {step for step in chosen if step in curve}:
                axis.plot(step, sum(curve[step]) / len(curve[step]), color=color, marker="o", ms=9, mfc="none")
            if len(seeds) > 1:
                axis.fill_between(
                    steps, [min(curve[s]) for s in steps], [max(curve[s]) for s in steps], color=color, alpha=0.15
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step (a ring: the checkpoint that was chosen)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(folder / name, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return name


_COLORS, _MARKERS, _LINES = 10, "os^DvP", ("-", "--", ":", "-.")


def series_style(number: int) -> dict[str, Any]:
    """Colour, marker and line of policy `number` in every picture; no two of the first 120 are alike."""
    import matplotlib

    turn, color = divmod(number, _COLORS)
    return {
        "color": matplotlib.colormaps["tab10"](color),
        "marker": _MARKERS[turn % len(_MARKERS)],
        "ls": _LINES[turn % len(_LINES)],
    }


def _points(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return facts.get("evaluations", [])
