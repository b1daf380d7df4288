"""The picture of a card: the learning curve of one policy."""

from pathlib import Path
from typing import Any

# The first that was measured is drawn: the checkpoint was chosen by it.
_MEASURES = {
    "eval_reward/mean": "mean reward on the selection prompts",
    "eval_logratio/rank_correlation": "rank correlation on the selection rows",
    "eval_nll": "nats a token on the validation rows",
}


def draw_curve(facts: dict[str, Any], path: Path) -> str | None:
    """Draw the evaluations along a training run to `path`; returns the measure in words, None if there is none.

    `facts`: `evaluations` and `best_step`, as the manifest keeps them of a trained policy.
    """
    points = facts.get("evaluations", [])
    measured = [name for name in _MEASURES if any(name in point for point in points)]
    if not measured:
        return None
    words, curve = _MEASURES[measured[0]], {p["step"]: p[measured[0]] for p in points if measured[0] in p}
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axis.plot(list(curve), list(curve.values()), marker="o", ms=3.5, lw=1.8)
    best = facts.get("best_step", -1)
    if best in curve:
        axis.plot(best, curve[best], marker="o", ms=10, mfc="none", color="C0", ls="", label="the checkpoint kept")
        axis.legend(frameon=False, fontsize=9)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel(words, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return words
