"""The frontier of a comparison, from its frontier.json: pictures, tables, sentences, the section of the page."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.errors import UserError
from leftover.evaluation.frontier import BEST_OF_N
from leftover.evaluation.measures import interval, number
from leftover.evaluation.tables import Grid
from leftover.report.charts import Chart
from leftover.report.figures import paint_reference
from leftover.report.svg import GRID, INK, SERIES, draw, printable, standalone, style_of
from leftover.runs.finished import FinishedRun
from leftover.store.sealed import read_sealed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

FRONTIER = "frontier.json"
_FARTHEST = 20.0  # nats that a picture shows
_TICKS = (0, 1, 2, 4, 8, 16)
# Of more methods than there are colours these stand out.
_MAIN = ("a_lol_seq", "nll", "nll_top10", "dpo", "kto", "ppo")
_SHARE_OF_AXIS = 0.75  # of the height of a picture; the rest are labels and legend
_LINE_HEIGHT = 0.18  # inches, between two names


def frontier_svg(results: Mapping[str, Any]) -> str:
    """The content of frontier.svg: all measures against KL."""
    height = _height(results, 3.4)
    painted = [_painter(results, measure, height) for measure in results["measures"]]
    return standalone(draw(*painted, width=5.0, height=height))


def frontier_of(run: FinishedRun) -> dict[str, Any] | None:
    """The section of the page; None without a frontier, or if completions are scored otherwise since."""
    path = run.folder / FRONTIER
    try:
        results = read_sealed(path)
    except UserError as error:
        log.warning("report: %s; `leftover compare %s --frontier` makes it anew", error, run.folder)
        return None
    if results is None:
        return None
    scored_by = run.scored_by()
    if results.get("scored_by", scored_by) != scored_by:  # of earlier versions it is not known
        log.warning("report: %s is of other rewards or judges: `leftover compare %s --frontier`", path, run.folder)
        return None
    return frontier_view(results)


def frontier_view(results: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures, tables and sentences."""
    measures = results["measures"]
    return {
        "charts": [_chart(results, measure) for measure in measures],
        "tables": [(_title(measure), level_grid(results, measure)) for measure in measures],
        "turns": turns(results),
        "prompts": results["prompts"],
        "caveats": list(_caveats(results)),
    }


def level_grid(results: Mapping[str, Any], measure: str) -> Grid:
    """A measure at each KL, one line a method."""
    cells = []
    for name, found in results["table"][measure].items():
        farthest = number(max(results["curves"][name]["kl"]), ".1f")
        cells.append([name, *(interval(one, ".1f" if measure == "length" else ".3f") for one in found), farthest])
    return Grid(["method", *(f"KL {level:g}" for level in results["levels"]), "farthest KL"], cells)


def turns(results: Mapping[str, Any]) -> list[str]:
    """A sentence for every method and judge where the method over-optimises."""
    return [
        f"{name} over-optimises from KL {turn['kl']:.1f} on: since {judge} was highest, at KL {turn['best_kl']:.1f}, "
        f"it has changed by {interval(turn['judge'], '+.3f')} and the reward by {interval(turn['reward'], '+.3f')}"
        for judge, found in results["over_optimised"].items()
        for name, turn in found.items()
    ]


def _caveats(results: Mapping[str, Any]) -> list[str]:
    found = list(results["scoring_caveats"])
    if results["prompts"] < 100:
        found.append(f"only {results['prompts']} prompts, of {results['families']} families")
    if len(results["seeds"]) == 1:
        found.append(f"seed {results['seeds'][0]} alone: what another would change is unknown")
    if beyond := [name for name, curve in results["curves"].items() if max(curve["kl"]) > _FARTHEST]:
        found.append(f"{', '.join(beyond)}: points beyond KL {_FARTHEST:g} are in frontier.csv and in no picture")
    return found


def _chart(results: Mapping[str, Any], measure: str) -> Chart:
    said = "; ".join(
        f"{name} from {curve[measure][0]:.3g} to {curve[measure][-1]:.3g} at KL {curve['kl'][-1]:.1f}"
        for name, curve in results["curves"].items()
        if None not in (curve[measure][0], curve[measure][-1])
    )
    height = _height(results, 3.1)
    picture = draw(_painter(results, measure, height, title=False), height=height)
    return Chart(f"{_title(measure)} against KL", picture, f"{_title(measure)} against KL to the reference: {said}.")


def _title(measure: str) -> str:
    kind, _, name = measure.partition("/")
    return f"{kind} {name}".strip().capitalize() if not name else f"{kind.capitalize()} {printable(name)}"


def _height(results: Mapping[str, Any], least: float) -> float:
    """Inches of a picture in which every name has a line."""
    return max(least, 1.0 + _LINE_HEIGHT * len(results["curves"]))


def standing_out(methods: Sequence[str]) -> set[str]:
    """The methods whose lines are thick: all, if there are few enough, else the main ones."""
    if len(methods) <= len(SERIES):
        return set(methods)
    return set(sorted(methods, key=lambda name: _MAIN.index(name) if name in _MAIN else len(_MAIN))[: len(_MAIN)])


def _painter(
    results: Mapping[str, Any], measure: str, height: float, *, title: bool = True
) -> Callable[["Axes"], None]:
    """What draws a measure against KL: a line and the checkpoints of every method, its name at the line's end.

    `height`: of the picture, in inches.
    """
    curves, points = results["curves"], results["points"]
    methods = [name for name in curves if name != BEST_OF_N]
    styles = {name: style_of(name, methods) for name in methods}
    styles[BEST_OF_N] = {"color": INK, "marker": "o", "ls": (0, (4, 2))}
    thick = standing_out(methods) | {BEST_OF_N}

    def paint(axis: "Axes") -> None:
        axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        ends = {}
        starts = []
        for name in sorted(curves, key=lambda name: name in thick):  # what stands out lies on top
            x, y = (np.array(curves[name][of], np.float64) for of in ("kl", measure))
            seen, style, main = x <= _FARTHEST, styles[name], name in thick
            starts += [float(y[0])] if x[0] == 0 and np.isfinite(y[0]) else []
            own = [p for p in points if p["method"] == name and p.get(measure) is not None and p["kl"] <= _FARTHEST]
            dots = [max(p["kl"], 0) for p in own], [p[measure] for p in own]
            axis.plot(*dots, ls="", marker=".", ms=2.5, color=style["color"], alpha=0.4)
            every = max(1, int(seen.sum()) // 5)
            width: dict[str, Any] = {"lw": 1.6, "ms": 4} if main else {"lw": 0.8, "ms": 2.5, "alpha": 0.6}
            axis.plot(np.maximum(x[seen], 0), y[seen], markevery=every, **width, **style)
            if np.isfinite(y[seen][-1]):
                ends[name] = max(float(x[seen][-1]), 0), float(y[seen][-1])
        axis.set_xlim(0, 1.03 * max([2.0, *(x for x, _ in ends.values())]))
        axis.set_xticks([tick for tick in _TICKS if tick <= axis.get_xlim()[1]], minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.margins(y=0.08)
        if starts:  # all begin at the reference
            reference = style_of("reference", methods)
            paint_reference(axis, starts[0], color=reference["color"])
            axis.plot(0, starts[0], ms=9, clip_on=False, zorder=5, label="reference", **reference)
        axis.set(xlabel="KL to the reference, nats a completion", ylabel="tokens" if measure == "length" else "mean")
        if title:
            axis.set_title(_title(measure), loc="left", color=INK)
        gap = _LINE_HEIGHT / (_SHARE_OF_AXIS * height)
        _name_lines(axis, ends, {name: style["color"] for name, style in styles.items()}, gap)

    return paint


def _name_lines(axis: "Axes", ends: Mapping[str, tuple[float, float]], painted: Mapping[str, str], gap: float) -> None:
    """The names at the right, each as near to the height of its line's end as the others allow, `gap` apart."""
    low, high = axis.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [(ends[name][1] - low) / (high - low) for name in order]
    for name, height in zip(order, apart(wanted, gap), strict=True):
        axis.annotate(
            printable(name, 18),
            xy=ends[name],
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            color=painted[name],
            arrowprops={"arrowstyle": "-", "color": GRID, "lw": 0.7, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
        )


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising heights, moved until neighbours are `gap` apart: up, and where that leaves the picture down again."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = max(1.0, gap * (len(placed) - 1))
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed
