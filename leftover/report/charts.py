"""The pictures of the page, each a function of plain numbers that returns a `Chart`, or None without numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leftover.report.figures import (
    Curve,
    over_seeds,
    paint_curve,
    paint_points,
    paint_reference,
    paint_reward_against_diversity,
)
from leftover.report.svg import GRID, INK, NEUTRAL, SERIES, SURFACE, draw, printable, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from leftover.runs.records import ResultRow

_MAX_POINTS = 500


class Chart(NamedTuple):
    """A picture with its title and a description for screen readers."""

    title: str
    svg: str
    description: str


def reward_distribution(rewards: Mapping[str, np.ndarray], names: Sequence[str]) -> Chart | None:
    """Reward histograms over the same bins: an outline for each policy; filled, with its mean, for the reference."""
    if not rewards:
        return None
    edges = _edges(np.concatenate(list(rewards.values())))

    def paint(axis: "Axes") -> None:
        for name, values in rewards.items():
            heights = np.histogram(values, edges)[0] / len(values)
            is_reference = name == "reference"
            style = style_of(name, names) | {"lw": 1.6}
            del style["marker"]
            if is_reference:
                axis.axvline(values.mean(), **style, label="reference's mean")
                style |= {"alpha": 0.35, "ls": "-"}
            axis.stairs(heights, edges, fill=is_reference, label=printable(name), **style)
        axis.set(xlabel="reward", ylabel="share of completions", ylim=(0, None))

    means = ", ".join(f"{name} mean {values.mean():.3f}" for name, values in rewards.items())
    return Chart("Reward distribution", draw(paint), f"Histograms of reward on held-out prompts: {means}.")


def reward_against_diversity(table: Mapping[str, "ResultRow"], names: Sequence[str]) -> Chart | None:
    """One point for each policy: mean reward with its interval against distinct-2, relative to the reference's."""
    rows = {n: r for n, r in table.items() if "reward" in r and r.get("distinct_2_relative") is not None}
    if not rows:
        return None

    def paint(axis: "Axes") -> None:
        for name, row in rows.items():
            style = style_of(name, names)
            if name == "reference":
                paint_reference(axis, row["reward"]["mean"], color=NEUTRAL)
            else:
                style["ls"] = ""
            paint_reward_against_diversity(axis, row, ms=6, lw=1.3, label=printable(name), **style)
        axis.margins(x=0.2, y=0.15)
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel="distinct-2, × reference (more diverse →)", ylabel="mean reward, 95 %")

    said = ", ".join(f"{n} {r['reward']['mean']:.3f} at {r['distinct_2_relative']:.3f}" for n, r in rows.items())
    return Chart("Reward against diversity", draw(paint), f"Mean reward at distinct-2, × reference: {said}.")


def wins(shares: Mapping[str, tuple[float, float, float]], names: Sequence[str]) -> Chart | None:
    """Win, tie and loss shares of every policy against the reference, as one bar each."""
    if not shares:
        return None

    def paint(axis: "Axes") -> None:
        for place, (name, parts) in enumerate(shares.items()):
            color = style_of(name, names)["color"]
            for i, (part, alpha) in enumerate(zip(parts, (1.0, 0.45, 0.15), strict=True)):
                axis.barh(place, part, left=sum(parts[:i]), color=color, alpha=alpha, height=0.55)
        rates = [won + tied / 2 for won, tied, _ in shares.values()]
        dots: dict[str, Any] = {"marker": "D", "ms": 5, "mfc": SURFACE, "mec": INK}
        axis.plot(rates, range(len(shares)), ls="", **dots, label="win rate")
        reference = style_of("reference", names) | {"marker": ""}
        axis.axvline(0.5, lw=1.4, label="reference: 0.5", **reference)
        axis.set_yticks(range(len(shares)), [printable(name, 14) for name in shares])
        axis.set(xlabel="wins · ties (paler) · losses (palest)", xlim=(0, 1), ylim=(len(shares) - 0.4, -0.6))
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(axis="y", visible=False)

    said = "; ".join(f"{name} wins {w:.0%}, ties {t:.0%}, loses {lost:.0%}" for name, (w, t, lost) in shares.items())
    height = max(2.6, 1.0 + 0.34 * min(len(shares), 6) + 0.17 * max(len(shares) - 6, 0))  # of many bars thinner ones
    picture = draw(paint, height=height)
    return Chart("Wins against the reference", picture, f"Against the reference: {said}.")


def curve(
    title: str,
    curves: Mapping[str, Curve],
    names: Sequence[str],
    chosen: Mapping[str, set[int]],
    label: str,
    reference: tuple[float, str] | None = None,
) -> Chart | None:
    """A metric along optimizer steps: mean over seeds with their range, a ring at every step in `chosen`.

    `reference`: what the reference has, and what the legend calls that line.
    """
    lines = {name: line for name, seeds in curves.items() if (line := over_seeds(seeds)).steps}
    if not lines:
        return None

    def paint(axis: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        for name in lines:
            style = style_of(name, names) | {"label": printable(name), "ms": 2.5}
            paint_curve(axis, curves[name], chosen.get(name, ()), **style)
        if reference is not None:
            paint_reference(axis, *reference, color=NEUTRAL)
        axis.set(xlabel="optimizer step", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    said = "; ".join(f"{name} from {line.means[0]:.3g} to {line.means[-1]:.3g}" for name, line in lines.items())
    level = "" if reference is None else f"; {reference[1]}: {reference[0]:.3g}"
    return Chart(title, draw(paint), f"{label} along training: {said}{level}.")


def points(
    title: str, lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], names: Sequence[str], x: str, y: str
) -> Chart | None:
    """Means with their intervals against x, those of one policy joined in order."""
    if not lines:
        return None

    def paint(axis: "Axes") -> None:
        for name, of in lines.items():
            paint_points(axis, of, label=printable(name), **style_of(name, names))
        if "reference" in lines:
            paint_reference(axis, lines["reference"][0][1]["mean"], color=NEUTRAL)
        axis.set(xlabel=x, ylabel=printable(y, 18))

    said = "; ".join(
        f"{name} " + ", ".join(f"{of['mean']:.3f} at {at:.3g}" for at, of in found) for name, found in lines.items()
    )
    return Chart(title, draw(paint), f"{y} by {x}: {said}.")


def advantage_histogram(advantage: np.ndarray) -> Chart | None:
    """How many rows have which advantage: kept above zero, dropped below it."""
    if not len(advantage):
        return None
    # Zero is an edge: no bar holds rows of both kinds.
    width = (np.ptp(advantage) or 1.0) / 40
    edges = width * np.arange(np.floor(advantage.min() / width), np.ceil(advantage.max() / width) + 1)

    def paint(axis: "Axes") -> None:
        for kept, color, label in ((False, NEUTRAL, "dropped"), (True, SERIES[0], "kept")):
            inside = advantage[(advantage > 0) == kept]
            if len(inside):
                counts, said = np.histogram(inside, edges)[0], f"{label}: {len(inside):,}"
                axis.stairs(counts, edges, fill=True, color=color, label=said, alpha=0.85)
        axis.axvline(0, color=INK, lw=0.8)
        axis.set(xlabel="advantage A = R − V", ylabel="rows")

    kept = int((advantage > 0).sum())
    said = f"{kept} rows above zero, {len(advantage) - kept} at or below; median {np.median(advantage):.3f}."
    return Chart("Advantage of the training rows", draw(paint), said)


def reward_against_value(value: np.ndarray, reward: np.ndarray, bins: Sequence[Mapping[str, Any]]) -> Chart | None:
    """A point for each row (for some, if there are many), and the mean reward with its 95 % interval by value."""
    if not len(value):
        return None
    chosen = np.arange(len(value))
    if len(chosen) > _MAX_POINTS:
        chosen = np.random.default_rng(0).permutation(len(chosen))[:_MAX_POINTS]

    def paint(axis: "Axes") -> None:
        kept = reward[chosen] > value[chosen]
        for inside, color in ((~kept, NEUTRAL), (kept, SERIES[0])):
            points = value[chosen][inside], reward[chosen][inside]
            axis.plot(*points, ls="", marker="o", ms=2.2, color=color, alpha=0.45, mew=0)
        ends = [float(min(b["value"] for b in bins)), float(max(b["value"] for b in bins))]
        axis.plot(ends, ends, color=INK, lw=0.9, ls=(0, (4, 3)), label="R = V")
        errors = [1.96 * (b["error"] or 0.0) for b in bins]
        means = [b["value"] for b in bins], [b["reward"] for b in bins]
        style: dict[str, Any] = {"color": SERIES[1], "marker": "o", "ms": 4, "lw": 1.4, "capsize": 2}
        axis.errorbar(*means, yerr=errors, label="mean of rows of similar V", **style)
        axis.set(xlabel="value V(x)", ylabel="reward R(x, y)")
        axis.grid(color=GRID)

    said = "; ".join(f"V {b['value']:.3f}: R {b['reward']:.3f} of {b['count']} rows" for b in bins)
    return Chart("Reward against value", draw(paint), f"Mean reward by value. {said}.")


def weight_curve(advantage: np.ndarray) -> Chart | None:
    """The share of the weight max(A, 0)^2 that the heaviest rows carry, against rows of equal weight."""
    weights = np.square(np.sort(advantage[advantage > 0])[::-1])
    if len(weights) < 2:
        return None
    rows, at = np.linspace(0, 1, 101), np.arange(len(weights) + 1) / len(weights)
    carried = np.interp(rows, at, np.append(0, np.cumsum(weights) / weights.sum()))

    def paint(axis: "Axes") -> None:
        axis.plot(rows, carried, color=SERIES[0], label="drawn and weighted by advantage")
        axis.fill_between(rows, rows, carried, color=SERIES[0], alpha=0.15, lw=0)
        axis.plot([0, 1], [0, 1], color=INK, lw=0.9, ls=(0, (4, 3)), label="all alike")
        axis.set(xlabel="share of the leftover rows, heaviest first", ylabel="share of the weight")

    said = f"The heaviest half of rows has {carried[50]:.0%} of the weight."
    return Chart("How evenly rows carry the run", draw(paint), said)


def _edges(values: np.ndarray, num_bins: int = 24) -> np.ndarray:
    """Bin edges; each whole number gets its own bin."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    if high - low <= num_bins and np.allclose(values, np.round(values)):
        return np.arange(round(low), round(high) + 2) - 0.5
    return np.linspace(low, high, num_bins + 1)
