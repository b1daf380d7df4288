"""report.html: one file that opens from disk and loads nothing else."""

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from leftover.errors import counted
from leftover.evaluation.gather import gather_unfinished, read_records
from leftover.evaluation.measures import number
from leftover.evaluation.tables import training_grid
from leftover.monitoring.terminal import visible
from leftover.prepare.readers import test_rows, unique_prompts
from leftover.prepare.value.described import described
from leftover.report import completions
from leftover.report.analysis.advice import advice
from leftover.report.analysis.analysis import analyse
from leftover.report.analysis.rows import ScoredRows, rows_of_run
from leftover.report.analysis.table import TABLE_COLUMNS, table_rows
from leftover.report.curves import training_view
from leftover.report.embedded import Embedded, embed, shorten
from leftover.report.frontier import frontier_of
from leftover.report.judge import judge_view
from leftover.report.reproduce import reproduce_view
from leftover.report.rounds import rounds_view
from leftover.report.several import SideBySide, side_by_side, titles
from leftover.report.terms import meaning_of, names_explained, parts
from leftover.report.views import leftover_view, results_view, verdict_view, with_main
from leftover.runs.finished import FinishedRun
from leftover.runs.going import at_work
from leftover.runs.names import decodings, policy_artifact
from leftover.store.files import write_text
from leftover.store.folders import check_page
from leftover.store.sealed import digest

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


TEMPLATES = Path(__file__).parent / "templates"
_MISSING_SHOWN = 8
_SHOWN = 420  # characters of a text in a table
_MAX_ROWS = 50_000  # of the table of an inspection
_MAX_PAGE_BYTES = 2_900_000  # unless the completions need more with _MIN_BYTES
_MAX_BYTES, _MIN_BYTES = 2_200_000, 200_000  # of the completions of a run


class Live(NamedTuple):
    """Of a page that `leftover watch` serves: the state of the run that it shows, when that was read, its head line."""

    state: str
    time: str
    doing: str


def write_report_page(folders: Sequence[str | Path], output: Path | None = None) -> Path:
    """One page of runs; default: report.html in the folder of the only run, or in the current one.

    Of a run that is not finished the page shows what there is. Raises UserError for a folder without a run.
    """
    if output is not None:
        check_page(output)
    views = [view_of(folder, f"run-{number}") for number, folder in enumerate(folders, start=1)]
    default = Path(folders[0]) if len(folders) == 1 else Path()
    beside = None
    if len(folders) > 1:
        names, recipes = titles(folders), [view["about"] for view in views]
        beside = side_by_side(names, recipes, [view["gathered"] for view in views])
        views = [view | {"name": name} for view, name in zip(views, names, strict=True)]
    return write_page(views, output or default / "report.html", beside)


def view_of(folder: str | Path, name: str = "run-1", live: bool = False) -> dict[str, Any]:
    """What a page shows of the run in a folder, finished or not; `live`: the page loads itself anew."""
    run = FinishedRun(folder)
    missing = run.unfinished()
    results = gather_unfinished(run) if missing else run.results()
    if results and not missing:
        return run_view(run, results, name)
    return unfinished_view(run, results, missing, name, live)


def run_view(run: FinishedRun, results: Mapping[str, Any], name: str = "run-1") -> dict[str, Any]:
    """All sections of one run; `name` is the id of its part of the page."""
    recipe, records = run.recipe, read_records(run.folder, results["training"], run.recipe.seed)
    results = with_main(results, records)
    prompts = unique_prompts(test_rows(recipe, run.table))
    return _sections(run, name) | {
        "gathered": results,
        "name": results["name"],
        "is_comparison": results.get("is_comparison", False),
        "verdict": verdict_view(results),
        "results": results_view(results, records),
        "training": training_view(run.folder, recipe, results) | {"table": training_grid(results["training"])},
        "completions": completions.side_by_side(prompts, records, results["main"], decodings(results), recipe.seeds[0]),
    }


def unfinished_view(
    run: FinishedRun, results: Mapping[str, Any] | None, missing: Sequence[str], name: str = "run-1", live: bool = False
) -> dict[str, Any]:
    """What there is of a run that is not finished; `results` are those of the policies that are evaluated."""
    recipe, keys = run.recipe, product(run.recipe.policies, run.recipe.seeds)
    training: dict[str, dict[int, Any]] = {}
    for policy, seed in keys:
        if (artifact := policy_artifact(policy, seed)) in run.manifest.entries:
            training.setdefault(policy, {})[seed] = run.manifest.facts(artifact)
    about = {"training": training, "can_score_new_completions": bool(results and results["can_score_new_completions"])}
    view = _sections(run, name) | {"name": recipe.name, "is_comparison": False, "results": None, "completions": None}
    view["gathered"] = None
    view["verdict"] = {"sentence": "", "caveats": [], "tiles": []}
    if results:
        view |= run_view(run, results, name)
    view["training"] = training_view(run.folder, recipe, about) | {"table": training_grid(training)}
    doing = at_work(run)
    going = "" if doing is None else ", and still going"
    view["verdict"]["sentence"] = f"Unfinished{going}. {view['verdict']['sentence']}".strip()
    shown = [*missing[:_MISSING_SHOWN], *([f"{len(missing) - _MISSING_SHOWN} more"] * (len(missing) > _MISSING_SHOWN))]
    if doing is None:
        state = f"this run is not finished; missing: {', '.join(shown)}. It is continued by: leftover run {run.folder}"
    else:
        refreshes = "this page refreshes itself" if live else "this page shows what there was when it was made"
        state = f"this run is still going ({doing}); {refreshes}. To come: {', '.join(shown)}"
    view["verdict"]["caveats"] = [
        state,
        *view["verdict"]["caveats"],
    ]
    return view


def _sections(run: FinishedRun, name: str) -> dict[str, Any]:
    """What a page shows of a run with or without results."""
    state = digest({"table": run.table.manifest.entries, "prepared": run.prepared, "recipe": run.recipe.model_dump()})
    return {
        "id": name,
        "about": run.recipe,
        "named": names_explained(run.recipe.policies),
        "frontier": frontier_of(run),
        "rounds": rounds_view(run.rounds) if run.rounds else None,
        "judge": judge_view(run.folder, run.manifest),
        "leftover": _leftover(run.folder, state),
        "num_examples": run.recipe.evaluate.num_examples,
        "folder": run.folder,
        "reproduce": reproduce_view(run),
    }


@lru_cache(maxsize=4)
def _leftover(folder: Path, state: str) -> dict[str, Any] | None:
    """The section on the rows of a run; made once for every `state` of them, since it takes longest."""
    rows = rows_of_run(FinishedRun(folder))
    return leftover_view(analyse(rows)) if rows else None


def write_page(runs: list[dict[str, Any]], path: Path, beside: SideBySide | None = None) -> Path:
    """Write the report of runs, of several with a table of all."""
    return _write(path, page_text(runs, path.parent, beside=beside))


def page_text(
    runs: list[dict[str, Any]], folder: Path, live: Live | None = None, beside: SideBySide | None = None
) -> str:
    """The report of runs, whose completions share what the rest leaves of `_MAX_PAGE_BYTES`.

    `folder`: where the page will lie.
    """
    title = " · ".join(dict.fromkeys(run["name"] for run in runs))
    files = [_link(run["folder"] / "evaluation", folder) for run in runs]

    def render(budget: int | None) -> str:
        embedded = [
            embed(run["completions"], budget) if budget and run["completions"] else Embedded("", "json", "")
            for run in runs
        ]
        shown = [r | {"embedded": e, "files": f} for r, e, f in zip(runs, embedded, files, strict=True)]
        return _render("report.html.j2", live=live, title=title, runs=shown, side_by_side=beside)

    rest = len(render(None).encode("utf-8", errors="replace"))
    return render(min(_MAX_BYTES, max(_MIN_BYTES, (_MAX_PAGE_BYTES - rest) // len(runs))))


def _link(target: Path, start: Path) -> str:
    """The address of a folder relative to the page's, ending in a slash."""
    try:
        path = Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()
    except ValueError:  # on another drive
        return target.resolve().as_uri() + "/"
    return quote(path) + "/"


def write_inspection(name: str, rows: ScoredRows, analysis: dict[str, Any], path: Path) -> Path:
    """Render what to do, the leftover section, and a table of the rows, as many as the page can hold."""
    some = itertools.islice(table_rows(rows, analysis["duplicates"]["pair"]), _MAX_ROWS)
    lines = [[shorten(cell, _SHOWN) if isinstance(cell, str) else cell for cell in row.values()] for row in some]
    embedded = embed({"names": list(TABLE_COLUMNS), "prompts": lines}, _MAX_BYTES, noun="rows")
    cut = [embedded.note] if embedded.note else []
    if len(lines) < len(rows.reward):
        cut.append(f"These are the first {len(lines):,} of {len(rows.reward):,} rows.")
    if cut:
        cut.append("--export writes all of them, whole, into a file.")
    values = {"advice": advice(analysis), "leftover": leftover_view(analysis), "embedded": embedded}
    return _write(path, _render("inspect.html.j2", ("page", "rows"), None, title=name, cut=" ".join(cut), **values))


def _write(path: Path, text: str) -> Path:
    write_text(path, text, errors="replace")  # half of a surrogate pair has no UTF-8 form
    return path


def _render(template: str, files: Sequence[str] = ("page",), live: Live | None = None, **values: Any) -> str:
    """`files`: names of the files of styles and scripts."""
    style, script = (
        "".join((TEMPLATES / f"{part}.{kind}").read_text("utf-8") for part in files) for kind in ("css", "js")
    )
    policy = content_policy(script, style)
    if live is not None:
        script += (TEMPLATES / "live.js").read_text("utf-8").replace("STATE", json.dumps(live.state))
        policy = f"{content_policy(script, style)}; connect-src 'self'"
    return _environment().get_template(template).render(style=style, script=script, policy=policy, live=live, **values)


def content_policy(script: str, style: str) -> str:
    """The Content-Security-Policy of a page that runs this inline script alone and loads nothing."""
    allowed = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style))
    script_hash, style_hash = (f"'sha256-{digest}'" for digest in allowed)
    return f"default-src 'none'; script-src {script_hash}; style-src {style_hash}; base-uri 'none'; form-action 'none'"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_readable)
    filters: dict[str, Callable[..., object]] = {
        "counted": counted,
        "inside": lambda embedded: Markup(embedded.text),  # made by report/embedded.py
        "drawing": Markup,  # made by report/svg.py, which escapes what it writes
        "own": Markup,  # page.css and page.js
        "short": lambda text: shorten(text.strip(), _SHOWN),
        "number": _with_minus,
        "described": described,
        "meaning": meaning_of,
        "explained": _explained,
    }
    environment.filters |= filters
    return environment


def _explained(text: str, named: Mapping[str, str] | None = None) -> "Markup":
    """The text as markup, in which terms, and the names of `named`, explain themselves."""
    from markupsafe import Markup

    term = Markup('<span class="term" tabindex="0" data-meaning="{}">{}</span>')
    pieces = ((visible(piece), meaning) for piece, meaning in parts(text, named))
    return Markup("").join(term.format(meaning, piece) if meaning else piece for piece, meaning in pieces)


def _readable(value: object) -> object:
    """Texts of data and models with invisible characters written out; our own markup unchanged."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _with_minus(value: float | None, form: str = ".3f") -> str:
    return number(value, form).replace("-", "−")
