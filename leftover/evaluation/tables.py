"""The tables of results as texts, for terminal, Markdown, HTML and model card."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from leftover.evaluation.measures import (
    MEASURES,
    MISSING,
    Measure,
    columns,
    glossary,
    interval,
    number,
    part,
    part_names,
)
from leftover.monitoring.terminal import visible
from leftover.rewards.facts import length_text
from leftover.rewards.unfinished import unfinished_text
from leftover.runs.records import ResultRow

# What answers first whether a policy is better: all that a terminal shows, and a page before "all columns".
FIRST = ("reward", "difference_from_reference", "win_rate", "length", "kl")
# Where new completions could not be scored.
SHORT_RECORDED = ("logratio/rank_correlation", "logratio/pair_accuracy", "length", "distinct", "kl")
# An underscore inside a word, or a bracket that closes no link, is no markup.
_MARKUP = re.compile(r"([\\`*<>|#]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")


class Markdown(str):
    """Text that is Markdown already, which `escape` leaves as it is."""


def escape(text: object) -> str:
    """A text on one line, its Markdown escaped, and its control marks written out."""
    return text if isinstance(text, Markdown) else _MARKUP.sub(r"\\\1", visible(" ".join(str(text).split())))


def markdown_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table of escaped cells."""
    cells = [[escape(cell) for cell in row] for row in (header, *rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


class Grid(NamedTuple):
    """A table: names of columns, and the cells of every line."""

    header: list[str]
    cells: list[list[str]]

    def without(self, headings: Iterable[str]) -> "Grid":
        """The table without these columns."""
        kept = [i for i, name in enumerate(self.header) if name not in set(headings)]
        return Grid([self.header[i] for i in kept], [[line[i] for i in kept] for line in self.cells])


def grid(
    rows: Mapping[str, ResultRow],
    measures: Iterable[Measure],
    first: str = "policy",
    mark: Callable[[str, str, str], str] = lambda name, measure, text: text,
) -> Grid:
    """One line for each row; columns in which nothing was measured are dropped.

    Args:
        rows: name -> row, the names under the heading `first`.
        mark: (name of the row, of the measure, cell) -> cell.
    """
    used = [m for m in measures if any(set(m.cell(row)) - set(MISSING + "/") for row in rows.values())]
    lines = [[mark(name, "", name), *(mark(name, m.name, m.cell(row)) for m in used)] for name, row in rows.items()]
    return Grid([first, *(m.heading for m in used)], lines)


def result_grid(results: Mapping[str, Any], decoding: str, *, short: bool = False) -> Grid:
    """The result table of a run, with its judges; `short`: of few columns, for a terminal."""
    names = FIRST if results["can_score_new_completions"] else SHORT_RECORDED
    table = results[decoding]["table"]
    judges = sorted({name for row in table.values() for name in part_names(row, "judge/")})
    # The interval that counts is that of the difference; both are more than 80 columns.
    alone = {"reward": replace(MEASURES["reward"], heading="reward", with_interval=False)}
    first = [(MEASURES | alone)[name] for name in names]
    return grid(table, [*(first if short else columns("run")), *map(part, judges)])


def meanings(columns: Iterable[Measure]) -> dict[str, str]:
    """Heading -> what it means in a line, of the columns that have one."""
    better = {"higher": "Higher is better.", "lower": "Lower is better.", "": ""}
    return {
        m.heading: f"{m.meaning[:1].upper()}{m.meaning[1:]}. {better[m.better]}".strip() for m in columns if m.meaning
    }


def explanation(results: Mapping[str, Any], of: Literal["run", "comparison"] = "run") -> str:
    """What the columns of a result table mean, and what was done to the rewards in them, as one paragraph."""
    done = length_text(results["prepare"].get("reward", {})), unfinished_text(results.get("unfinished", "score"))
    return " ".join(filter(None, [glossary(columns(of)), *done]))


def component_grid(table: Mapping[str, ResultRow]) -> Grid | None:
    """The components of the reward; None if it has only one."""
    names = list(dict.fromkeys(name for row in table.values() for name in part_names(row, "reward/")))
    return grid(table, map(part, names)) if len(names) > 1 else None


def control_grid(results: Mapping[str, Any], decoding: str) -> Grid | None:
    """The paired differences of the main policy from every control; None if there are none."""
    against = {name: found for name, found in results[decoding].get("main_against", {}).items() if found}
    cells = [
        [
            name,
            interval(found["difference"], "+.3f"),
            ", ".join(f"{difference:+.3f}" for difference in found["by_seed"].values()),
            MEASURES["win_rate"].cell(found),
        ]
        for name, found in against.items()
    ]
    return Grid(["control", "difference [95 %]", "by seed", "win rate"], cells) if cells else None


def source_grid(results: Mapping[str, Any], decoding: str) -> Grid | None:
    """Rewards and judges for each source of the test prompts; None if there is only one."""
    by_source = results[decoding].get("by_source", {})
    sources = by_source.get("reference") or {}
    measures = [n for n in next(iter(sources.values()), {}) if n == "reward" or n.startswith("judge/")]
    cells = [
        [policy, measure, *(interval(of[source][measure]) for source in sources)]
        for policy, of in by_source.items()
        for measure in measures
    ]
    header = ["policy", "measure", *(f"{source} ({of['prompts']} prompts)" for source, of in sources.items())]
    return Grid(header, cells) if cells else None


def training_grid(training: Mapping[str, Mapping[Any, Mapping[str, Any]]]) -> Grid:
    """Which rows every run drew from, how long it trained, and which checkpoint was kept."""
    shown = {
        "rows selected": ("selected_rows", ",d"),
        "effective sample size": ("effective_sample_size", ",.0f"),
        "steps": ("steps", ",d"),
        "kept step": ("best_step", ",d"),
        "its value": ("best_metric", ".3f"),
        "seconds": ("seconds", ",.0f"),
        "of them evaluating": ("evaluation_seconds", ",.0f"),
    }
    cells = [
        [policy, str(seed), *(number(facts.get(key), form) for key, form in shown.values())]
        for policy, seeds in training.items()
        for seed, facts in seeds.items()
    ]
    return Grid(["policy", "seed", *shown], cells)
