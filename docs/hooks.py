"""What the documentation takes from the code when it is built (mkdocs.yml names this file), and what it may not load.

A line `<!-- NAME: ARGUMENTS -->` of a page stands for what the function of `GENERATED` under that name gives. Pages of
`reproductions/` and `benchmarks/` become pages of the site, and links to files outside it become their plain text.
"""

import dataclasses
import logging
import posixpath
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]

log = logging.getLogger("mkdocs.hooks")

FURTHER = ("reproductions/*.md", "benchmarks/results.md")
_WIDTH = 76  # characters that fit beside navigation and contents
_MARKER = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def metrics() -> str:
    """Every number of a result row: its name in files, what tables call it, which way is better, what it means."""
    from leftover.evaluation.measures import MEASURES

    rows = [(m.heading, f"`{m.name}`", m.better or "–", m.meaning or "–") for m in MEASURES.values()]
    return table(("in tables", "in `results.json`", "better", "meaning"), rows)


def settings(name: str) -> str:
    """The fields of a configuration that are its own, beside those of transformers' TrainingArguments."""
    import leftover

    own = [entry for entry in dataclasses.fields(getattr(leftover, name)) if "help" in entry.metadata]
    rows = [
        (f"`{entry.name}`", f"`{_default(entry)!r}`", entry.metadata["help"])
        for entry in own
        if entry.name in _names_of_ours(getattr(leftover, name))
    ]
    return table(("setting", "default", "what it is"), rows)


def _names_of_ours(config: type) -> set[str]:
    from transformers import TrainingArguments

    return {entry.name for entry in dataclasses.fields(config)} - {
        entry.name for entry in dataclasses.fields(TrainingArguments)
    }


def _default(entry: Any) -> object:
    made = entry.default_factory is not dataclasses.MISSING
    return entry.default_factory() if made else entry.default


def api(names: str) -> str:
    """The named exports of the package, for mkdocstrings; `others`: those that no other line of the page names."""
    from leftover import _EXPORTS

    if names == "others":
        page = (ROOT / "docs/api.md").read_text("utf-8")
        said = {name for kind, given in _MARKER.findall(page) if kind == "api" for name in given.split()}
        chosen = sorted(_EXPORTS.keys() - said)
    else:
        chosen = names.split()
    # The signature of a configuration is the table of its settings.
    plain = "\n    options: {show_signature: false, merge_init_into_class: false}"
    return "\n\n".join(f"::: {_EXPORTS[name]}.{name}{plain * name.endswith('Config')}" for name in chosen)


def evaluation() -> str:
    """What an evaluation of a trainer measures: name, and which way is better."""
    from leftover.recipe.eval_metrics import (
        COMPLETION_METRICS,
        DIVERGENCE_METRICS,
        PAIR_METRICS,
        ROW_METRICS,
        higher_is_better,
    )

    of = {
        "held-out rows": ROW_METRICS,
        "held-out pairs": PAIR_METRICS,
        "new completions, where there is a reward function": COMPLETION_METRICS,
        "new completions, where they are sampled": DIVERGENCE_METRICS,
    }
    better = {True: "higher", False: "lower", None: "–"}
    rows = [(f"`{name}`", what, better[higher_is_better(name)]) for what, names in of.items() for name in names]
    return table(("metric", "of", "taken as better"), rows)


def words() -> str:
    """The words that a report explains under the pointer."""
    from leftover.report.terms import WORDS

    return table(("word", "meaning"), WORDS.items())


GENERATED = {"evaluation": evaluation, "words": words, "metrics": metrics, "settings": settings, "api": api}


def generated(markdown: str) -> str:
    """A page with what its marked lines stand for; other comments stay."""

    def fill(found: re.Match[str]) -> str:
        name, given = found[1], found[2]
        return (GENERATED[name](given) if given else GENERATED[name]()) if name in GENERATED else found[0]

    return _MARKER.sub(fill, markdown)


def place(uri: str) -> str:
    """Where a page of the site stands in the repository."""
    return uri if uri.startswith(("reproductions/", "benchmarks/")) else f"docs/{uri}"


def page_of(path: str) -> str | None:
    """The page of the site that a file of the repository is, or None."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if any(Path(path).match(pattern) for pattern in FURTHER) else None


def relinked(markdown: str, uri: str) -> str:
    """A page's text with links between pages as the site has them; of links to other files of ours the text is left.

    A link to a file that is not there is warned of, which ends a strict build.
    """

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if urlsplit(target).scheme or target.startswith("/"):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place(uri)), target))
        page = page_of(path)
        if page is not None:
            return f"{image}[{text}]({posixpath.relpath(page, posixpath.dirname(uri) or '.')}{anchor})"
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which is not there", place(uri), target)
        return text

    parts = _FENCE.split(markdown)  # every second one is a block of code
    return "".join(part if i % 2 else _LINK.sub(link, part) for i, part in enumerate(parts))


class Loads(HTMLParser):
    """Addresses of other hosts that a page would load: scripts, styles, pictures, frames; not links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" or (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            return
        addresses = [given.get("src"), given.get("href"), given.get("data"), given.get("srcset")]
        self.found += [address for address in addresses if address and re.match(r"(?:https?:)?//", address)]


def loads(html: str) -> list[str]:
    """What a page would load from other hosts."""
    reader = Loads()
    reader.feed(html)
    return reader.found + re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", html)


# What follows is called by mkdocs.


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for pattern in FURTHER:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return generated(relinked(markdown, page.file.src_uri))


def on_post_build(config: Any) -> None:
    site = Path(config.site_dir)
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for address in loads(path.read_text("utf-8")):
            log.warning("%s loads %s: pages load nothing from elsewhere", path.relative_to(site), address)
