"""Learning curves of a run as one picture."""

from collections import defaultdict
from typing import Any

from leftover.workspace import Run

_PANELS = {
    "eval_reward/mean": "reward on the selection prompts",
    "eval_logratio/rank_correlation": "rank correlation on the selection rows",
    "eval_nll": "nats a token on validation rows",
}


def draw_curves(run: Run, results: dict[str, Any]) -> str | None:
    """Write learning_curves.png; returns its name, or None where nothing was evaluated along the way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels = {
        name: title
        for name, title in _PANELS.items()
        if any(name in e for seeds in results["training"].values() for facts in seeds.values() for e in _points(facts))
    }
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.8), squeeze=False)
    for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
        for number, (policy, seeds) in enumerate(results["training"].items()):
            curve = defaultdict(list)
            for facts in seeds.values():
                for entry in _points(facts):
                    if name in entry:
                        curve[entry["step"]].append(entry[name])
            steps = sorted(curve)
            color = f"C{number}"
            axis.plot(
                steps, [sum(curve[s]) / len(curve[s]) for s in steps], color=color, marker="o", ms=3, label=policy
            )
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
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(run.folder / "learning_curves.png", dpi=120)
    plt.close(figure)
    return "learning_curves.png"


def _points(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return facts.get("evaluations", [])
