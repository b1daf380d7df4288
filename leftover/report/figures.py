"""What the pictures of page, report and comparison share: opening a figure, styles of policies, curves over seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from leftover.runs.records import ResultRow

Curve = Mapping[int, Mapping[int, float]]  # seed -> step -> number

_MAX_STEPS = 200  # points of a curve: more than its picture can show, and each takes bytes
# The light colours of the page (page.css, --s0 to --s7). Markers and dashes differ from one colour to the next, so that
# policies are told apart in grey too.
COLORS = ("#0b7a70", "#d1631b", "#4a5fc1", "#a63d7d", "#7a8a12", "#7b5a3a", "#3b8bc4", "#b53a3a")
_MARKERS = "os^DvPX"
_LINES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
# The reference is grey, a star and a line of long dashes; the data's own answers are black.
GREY, BLACK = "#827c72", "#1f1d1a"
_REFERENCE_STYLE: dict[str, Any] = {"color": GREY, "marker": "*", "ls": (0, (8, 3))}
_DATA_STYLE: dict[str, Any] = {"color": BLACK, "marker": "d", "ls": "-"}


@contextmanager
def figure(rc: Any = None, **options: Any) -> Iterator[tuple["Figure", Any]]:
    """`plt.subplots(**options)` without a display, under the settings `rc`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(rc):
        made, axes = plt.subplots(**options)
        try:
            yield made, axes
        finally:
            plt.close(made)


def series_style(number: int) -> dict[str, Any]:
    """Colour, marker and line of policy `number`, the same in all pictures; no two of the first 120 are alike."""
    turn, color = divmod(number, len(COLORS))
    return {
        "color": COLORS[color],
        "marker": _MARKERS[(turn + color) % len(_MARKERS)],
        "ls": _LINES[(turn + color) % len(_LINES)],
    }


def policy_style(name: str, names: Iterable[str]) -> dict[str, Any]:
    """Colour, marker and line of one of `names`, which may hold the reference and the data too."""
    if name == "reference":
        return dict(_REFERENCE_STYLE)
    policies = [n for n in names if n not in ("reference", "data")]
    return series_style(policies.index(name)) if name in policies else dict(_DATA_STYLE)


def paint_reference(axis: "Axes", level: float, label: str | None = None, *, color: str = GREY) -> None:
    """A level line at what the reference has; `label` for the legend, if nothing else there stands for it."""
    axis.axhline(level, lw=1.1, label=label, zorder=1.5, color=color, ls=_REFERENCE_STYLE["ls"])


class Line(NamedTuple):
    """A curve over seeds: mean and range at every step, of the seeds that have it."""

    steps: list[int]
    means: list[float]
    lows: list[float]
    highs: list[float]


def over_seeds(curve: Curve) -> Line:
    steps = sorted({step for points in curve.values() for step in points})
    found = [[points[step] for points in curve.values() if step in points] for step in steps]
    return Line(steps, [float(np.mean(v)) for v in found], [min(v) for v in found], [max(v) for v in found])


def paint_curve(axis: "Axes", curve: Curve, chosen: Iterable[int], **style: Any) -> None:
    """Draw means over seeds (`thinned`), the range of several as a band, and a ring at every step in `chosen`."""
    line = over_seeds(curve)
    x, means, lows, highs = (thinned(values) for values in line)
    usual: dict[str, Any] = {"marker": "o", "markevery": max(1, len(x) // 8)}
    axis.plot(x, means, **(usual | style))
    if len(curve) > 1:
        axis.fill_between(x, lows, highs, color=style["color"], alpha=0.15, lw=0)
    for step in chosen:
        if line.steps[0] <= step <= line.steps[-1]:
            mean = np.interp(step, line.steps, line.means)
            axis.plot(step, mean, marker="o", ms=8, mfc="none", mec=style["color"])


def thinned(values: Sequence[float]) -> np.ndarray:
    """The values, or means of neighbouring ones if there are more than `_MAX_STEPS`."""
    array = np.asarray(values, np.float64)
    width = max(1, -(-len(array) // _MAX_STEPS))
    return np.array([array[start : start + width].mean() for start in range(0, len(array), width)])


def paint_points(axis: "Axes", points: Sequence[tuple[float, Mapping[str, Any]]], **style: Any) -> None:
    """Means with their intervals at their x, joined in order by a line."""
    means = [of["mean"] for _, of in points]
    ends = [[of["mean"] - of["low"] for _, of in points], [of["high"] - of["mean"] for _, of in points]]
    usual: dict[str, Any] = {"marker": "o", "ms": 4, "capsize": 2}
    axis.errorbar([x for x, _ in points], means, yerr=ends, **(usual | style))


def paint_reward_against_diversity(axis: "Axes", row: "ResultRow", **style: Any) -> None:
    """Draw one policy as a point: its mean reward with its interval at its relative distinct-2."""
    reward = row["reward"]
    ends = [[reward["mean"] - reward["low"]], [reward["high"] - reward["mean"]]]
    axis.errorbar([row["distinct_2_relative"]], [reward["mean"]], yerr=ends, capsize=3, **style)
