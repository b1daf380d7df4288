"""matplotlib figures as SVG elements for a page: real text, colours from the page's theme, no style attribute.

The page forbids inline styles (Content-Security-Policy), and one figure has to serve a light and a dark theme. So
every colour that a figure may use is a stand-in that becomes a class here, and styles become attributes.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from leftover.report.figures import BLACK, COLORS, GREY, figure, policy_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Classes of page.css: ink and grid of the theme, then one colour a series.
INK, GRID, SURFACE = "#000001", "#000002", "#000003"
SERIES = tuple(f"#0001{number:02x}" for number in range(8))
NEUTRAL = "#000004"  # the reference's
_CLASSES = {INK: "ink", GRID: "grid", SURFACE: "surface", NEUTRAL: "neutral"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES)
}
_STAND_INS = {**dict(zip(COLORS, SERIES, strict=True)), GREY: NEUTRAL, BLACK: INK}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_MANY = 9
# Points. A picture of 4 inches is shown 330 pixels wide on a phone and beside two others: 12 pixels are 10.5 points.
_TEXT = 10.6
_RC = {
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "svg.hashsalt": "leftover",  # the same numbers give the same file
    "text.parse_math": False,
    "font.size": _TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": _TEXT,
    "lines.linewidth": 1.6,
}


def draw(*paint: Callable[["Axes"], None], width: float = 4.0, height: float = 2.8) -> str:
    """The SVG of what each `paint` draws on an axis of so many inches, two side by side.

    With a legend above unless it is too long, or none has labels.
    """
    columns = min(2, len(paint))
    rows = -(-len(paint) // columns)
    size = {"nrows": rows, "ncols": columns, "figsize": (width * columns, height * rows)}
    with figure(_RC, **size, squeeze=False, layout="constrained") as (made, axes):
        for axis in axes.flat[len(paint) :]:
            axis.remove()
        for one, axis in zip(paint, axes.flat, strict=False):
            one(axis)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        if 0 < len(labels) <= _MANY:
            _legend(made, handles, labels)
        layout = made.get_layout_engine()
        assert layout is not None
        layout.execute(made)
        made.set_layout_engine("none")  # else `savefig` draws all of it twice, once for the layout alone
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    return themed(buffer.getvalue())


def _legend(made: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """The legend above, in as many columns as the picture is wide enough for."""
    for columns in range(min(4, len(labels)), 0, -1):
        legend = made.legend(
            handles, labels, loc="outside upper left", ncols=columns, handlelength=2, columnspacing=1, handletextpad=0.5
        )
        if columns == 1 or legend.get_window_extent().width <= made.bbox.width:
            return
        legend.remove()


def standalone(drawn: str) -> str:
    """What `draw` gave as a file of its own, with the page's colours, light or dark as the reader's system is."""
    css = (Path(__file__).parent / "templates" / "page.css").read_text("utf-8")
    variables = css[css.index("{") + 1 : css.index("}")]
    light, dark = (re.sub(r"light-dark\(([^,]+), ([^)]+)\)", place, variables) for place in (r"\1", r"\2"))
    classes = "\n".join(line for line in css.splitlines() if line.startswith((".fill-", ".stroke-")))
    style = (
        f"svg {{ {light} background: var(--card); font-family: var(--sans); }}\n{classes}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )
    end = drawn.index(">")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    assert size is not None  # matplotlib writes one
    return f'{drawn[:end]} width="{size[1]}pt" height="{size[2]}pt"><style>{style}</style>{drawn[end + 1 :]}'


def style_of(name: str, names: Iterable[str]) -> dict[str, Any]:
    """`policy_style` in the stand-ins of the page's colours."""
    style = policy_style(name, names)
    return style | {"color": _STAND_INS[style["color"]]}


_prefix = iter(range(10**9))


def themed(source: str) -> str:
    """matplotlib's SVG with classes for colours, attributes for styles, and ids that no other figure has."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(source)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    prefix = f"f{next(_prefix)}-"
    for element in root.iter():
        _attributes(element, prefix)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "plot", "aria-hidden": "true", "focusable": "false"}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, prefix: str) -> None:
    attributes = element.attrib
    style = (declaration.partition(":") for declaration in attributes.pop("style", "").split(";"))
    attributes |= {name.strip(): value.strip() for name, _, value in style if name.strip() in _KEPT}
    themed = [name for name in ("fill", "stroke") if attributes.get(name) in _CLASSES]
    classes = [f"{name}-{_CLASSES[attributes.pop(name)]}" for name in themed]
    if element.tag == f"{{{_SVG}}}text" and not any(c.startswith("fill-") for c in classes):
        classes.append("fill-ink")
    if classes:
        attributes["class"] = " ".join(classes)
    if "id" in attributes:
        attributes["id"] = prefix + attributes["id"]
    if _XLINK in attributes:
        attributes["href"] = "#" + prefix + attributes.pop(_XLINK).removeprefix("#")
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{prefix}")


_KEPT = {
    "fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "stroke-dashoffset",
    "stroke-linecap", "stroke-linejoin", "opacity", "text-anchor", "font-size",
}  # fmt: skip


def printable(text: str, length: int = 28) -> str:
    """A name as a figure can hold it: without control characters, which XML does not allow, and not too long."""
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return kept if len(kept) <= length else kept[: length - 1] + "…"
