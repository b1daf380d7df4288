"""The tables of a comparison, from the flat rows of `gather.flat_rows`, in Markdown and for a terminal."""

from collections.abc import Callable
from typing import Any

from leftover.commands.compare.gather import DATA, REFERENCE, flat_rows
from leftover.evaluation.tables import measured, rate_of_pairs
from leftover.evaluation.verdict import completion_caveats
from leftover.monitoring.terminal import size_text
from leftover.report.write import markdown_table

Row = dict[str, Any]
_MISSING = "–"


def result_columns() -> dict[str, Callable[[Row], str]]:
    return {
        "method": lambda row: code(row["method"]),
        "reward [95 %]": lambda row: _marked(row, "reward"),
        "range over seeds": lambda row: _range(row, "reward lowest seed", "reward highest seed"),
        "− reference [95 %]": lambda row: _interval(row, "difference_from_reference", "+"),
        "win rate, reference": lambda row: _number(row, "win_rate", 2),
        "win rate, equal length": lambda row: rate_of_pairs(row),
        "win rate, data": lambda row: _number(row, "win_rate_against_data", 2),
        "length": lambda row: _number(row, "length", 1),
        "cut at the limit": lambda row: f"{row['unended']:.0%}" if row.get("unended") else _MISSING,
        "distinct-1/2/3": lambda row: "/".join(_number(row, f"distinct_{n}", 3) for n in (1, 2, 3)),
        "distinct-2, × reference": lambda row: _number(row, "distinct_2_relative", 2),
        "perplexity of its own, base": lambda row: _number(row, "own_perplexity_under_base", 2),
        "perplexity of its own, reference": lambda row: _number(row, "own_perplexity_under_reference", 2),
        "perplexity of test rows": lambda row: _number(row, "perplexity_of_test_completions", 2),
        "KL": lambda row: _number(row, "kl", 2),
        "rank correlation": lambda row: _number(row, "logratio/rank_correlation", 3),
        "pair accuracy": lambda row: _number(row, "logratio/pair_accuracy", 3),
    }


def method_caveats(results: dict[str, Any], decoding: str) -> str:
    """What to know before believing the completions of a method, method by method."""
    table = results[decoding]["table"]
    found = {n: completion_caveats(row, table[REFERENCE]) for n, row in table.items() if n not in (DATA, REFERENCE)}
    lines = [f"- {code(name)}: {'; '.join(said)}." for name, said in found.items() if said]
    return "\n".join(["Before you believe it:", "", *lines]) if lines else ""


def parts_tables(rows: list[Row]) -> list[str]:
    """Components, and judges; a single component that is the reward itself is not told twice."""
    names = list(dict.fromkeys(n for row in rows for n in row if n.startswith(("reward/", "judge/"))))
    names = [n for n in names if not n.endswith((" low", " high"))]
    components, judges = ([n for n in names if n.startswith(kind)] for kind in ("reward/", "judge/"))
    if len(components) == 1 and not any(row[components[0]] != row["reward"] for row in rows if components[0] in row):
        components = []
    return [
        f"{title}:\n\n{_parts_table(parts, rows)}"
        for title, parts in (
            ("Components of the reward, before weights and transform", components),
            ("Judges, on which no policy was trained", judges),
        )
        if parts
    ]


def _parts_table(parts: list[str], rows: list[Row]) -> str:
    columns: dict[str, Callable[[Row], str]] = {"method": lambda row: code(row["method"])}
    for part in parts:
        columns[part.partition("/")[2]] = lambda row, part=part: _marked(row, part)  # type: ignore[misc]
    return as_table(columns, [row for row in rows if any(part in row for part in parts)])


COST: dict[str, Callable[[Row], str]] = {
    "method": lambda row: code(row["method"]),
    "rows selected": lambda row: _number(row, "selected_rows", 0),
    "effective sample size": lambda row: _number(row, "effective_sample_size", 0),
    "updates": lambda row: _number(row, "updates", 0),
    "tokens trained": lambda row: _number(row, "trained_tokens", 0),
    "rollout tokens": lambda row: _number(row, "rollout_tokens", 0),
    "seconds": lambda row: _number(row, "seconds", 0) + ("*" if row.get("resumed") else ""),
    "of them rollouts": lambda row: _number(row, "rollout_seconds", 0),
    "peak memory": lambda row: size_text(row["peak_memory_bytes"]) if "peak_memory_bytes" in row else _MISSING,
}


_SHORT = ("method", "reward [95 %]", "range over seeds", "win rate, reference", "length", "distinct-1/2/3", "KL")
_SHORT_RECORDED = ("method", "rank correlation", "pair accuracy", "length", "distinct-1/2/3", "KL")


def short_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the primary result table, for a terminal, without markup."""
    names = _SHORT if results["can_score_new_completions"] else _SHORT_RECORDED
    columns = {name: cell for name, cell in result_columns().items() if name in names}
    rows = [row for row in flat_rows(results) if row["decoding"] == results["primary"]]
    header, cells = _cells(columns, [row | {"marked reward": ""} for row in rows])
    return header, [[cell.strip("`") for cell in line] for line in cells]


def _cells(columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; columns in which nothing was measured are left out."""
    return measured(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def as_table(columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> str:
    return markdown_table(*_cells(columns, rows))


def code(name: str) -> str:
    return f"`{name}`"


def _number(row: Row, name: str, digits: int) -> str:
    value = row.get(name)
    return _MISSING if value is None or value != value else f"{value:,.{digits}f}"


def _range(row: Row, low: str, high: str) -> str:
    if low not in row or len(row["seeds"].split()) < 2:
        return _MISSING
    return f"{row[low]:.3f} to {row[high]:.3f}"


def _interval(row: Row, name: str, sign: str = "") -> str:
    if name not in row:
        return _MISSING
    return f"{row[name]:{sign}.3f} [{row[f'{name} low']:{sign}.3f}, {row[f'{name} high']:{sign}.3f}]"


def _marked(row: Row, name: str) -> str:
    before, after = {"best": ("**", "**"), "second": ("<u>", "</u>")}.get(row.get(f"marked {name}", ""), ("", ""))
    return f"{before}{_interval(row, name)}{after}"
