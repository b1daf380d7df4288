"""Is it better, by how much, and should one believe it? The outcome of a run or comparison in a few sentences.

Terminal, page, Markdown and model card say what is said here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from leftover.evaluation.caveats import caveats
from leftover.evaluation.measures import MEASURES, MISSING, excludes_zero, interval, number
from leftover.runs.records import Difference, IntervalRecord, ResultRow

NO_SCORER = (
    "Nothing here can score new answers, so this run cannot say whether they are better. Three ways to find out: a "
    "scorer on the same scale (new_completions of the column reward), `leftover judge` with a language model, or "
    "`leftover judge --human` with people."
)
_BETTER = "Better"


def verdict(results: Mapping[str, Any]) -> str:
    """The headline, and what to know before one believes it."""
    found = caveats(results)
    return headline(results) + (f" Before you believe it: {'; '.join(found)}." if found else "")


def headline(results: Mapping[str, Any]) -> str:
    """The outcome of a run's main policy beside its controls, or of a comparison, in a few sentences with numbers."""
    own, main = results[results["primary"]], results.get("main")
    if not results["can_score_new_completions"]:
        policies = [name for name in results["training"] if name in own["table"]]
        return f"{NO_SCORER} {_recorded(own['table'], sorted(policies, key=lambda name: name != main))}"
    if main is None or "marks" in own:
        return winner(results)
    against = {name: found for name, found in own.get("main_against", {}).items() if found}
    return " ".join([outcome(results, main), *_against_controls(against)])


def is_better(results: Mapping[str, Any]) -> bool:
    """Whether the headline says that the main policy is better than the model that it started from."""
    return headline(results).startswith(_BETTER)


def outcome(results: Mapping[str, Any], name: str) -> str:
    """Whether one policy is better than the reference, the model that it started from."""
    table = results[results["primary"]]["table"]
    row, reference = table[name], table["reference"]
    if not results["can_score_new_completions"]:
        return f"{NO_SCORER} {_recorded(table, [name])}"
    if "reward" not in row:
        return f"{name} has no reward on any held-out prompt: none of its completions came to an end."
    gain, rate = row["difference_from_reference"], number(row["win_rate"], ".0%")
    wins = "" if rate == MISSING else f"; they win on {rate} (ties count half)"
    return (
        f"{_word(gain)}: on {_prompts(row)} held-out prompts the answers of the tuned model ({name}) score "
        f"{_score(row)}, those of the reference, from which it started, {_score(reference)} "
        f"({interval(gain, '+.3f')}){wins}."
    )


def winner(results: Mapping[str, Any]) -> str:
    """Which method of a comparison is the best, or that none is."""
    own = results[results["primary"]]
    known = {n: row for n, row in own["table"].items() if row.get("reward", {}).get("mean") is not None}
    scored = {name: row for name, row in known.items() if name != "data"}
    if len(scored) < 2:
        return "No method was scored on the held-out prompts."
    first, second = sorted(scored, key=lambda name: -scored[name]["reward"]["mean"])[:2]
    asked = f"On {_prompts(scored[first])} held-out prompts"
    best, lead = _called(first), own.get("lead")
    if own["marks"].get("reward", {}).get(first) == "best":
        by = f", by {interval(lead['difference'], '+.3f')}" if lead else ""
        said = (
            f"Best: {best}. {asked} its answers score {_score(scored[first])}, those of the next, {_called(second)}, "
            f"{_score(scored[second])}{by}"
        )
    else:
        by = f" (they differ by {interval(lead['difference'], '+.3f')})" if lead else ""
        said = (
            f"No winner. {asked} the two highest, {best} with {_score(scored[first])} and {_called(second)} with "
            f"{_score(scored[second])}, cannot be told apart{by}"
        )
    start = (
        ""
        if "reference" in (first, second)
        else f"; the reference, from which all started, has {_score(scored['reference'])}"
    )
    return f"{said}{start}."


def _word(gain: IntervalRecord) -> str:
    if "families" in gain:
        return "Too few prompts to tell"
    if gain["low"] is None or not excludes_zero(gain):
        return "No clear difference"
    return _BETTER if gain["low"] > 0 else "Worse"


def _against_controls(against: Mapping[str, Difference]) -> list[str]:
    """A sentence on the controls, if there are any."""
    said: dict[str, list[str]] = {}
    for name, found in against.items():
        gap = found["difference"]
        verb = "is not clearly apart from"
        if excludes_zero(gap):
            verb = "beats" if gap["low"] > 0 else "is below"
        said.setdefault(verb, []).append(f"{name} ({interval(gap, '+.3f')})")
    parts = [f"{verb} {_listed(names)}" for verb, names in said.items()]
    return [f"Against the controls it {_listed(parts)}."] if parts else []


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _recorded(table: Mapping[str, ResultRow], names: list[str]) -> str:
    """How well log-ratios order the recorded rewards of held-out rows."""
    parts = []
    for name in names:
        row = table[name]
        found = [
            f"{m.heading} {cell}{_count(row, m.name)}"
            for m in (MEASURES["logratio/rank_correlation"], MEASURES["logratio/pair_accuracy"])
            if (cell := m.cell(row)) != MISSING
        ]
        parts.append(f"{name} {' and '.join(found)}" if found else f"{name}: no held-out row has a score")
    return (
        "What it can say: whether answers that scored higher have become likelier (0 and 0.5 are chance). "
        f"{'; '.join(parts)}."
    )


def _count(row: ResultRow, name: str) -> str:
    found = row.get(name)
    counts = (
        [f"{found[kind]:,.0f} {kind}" for kind in ("rows", "pairs") if kind in found] if isinstance(found, dict) else []
    )
    return f" ({counts[0]})" if counts else ""


def _prompts(row: ResultRow) -> int:
    return row["reward"].get("prompts", row["prompts"])


def _score(row: ResultRow) -> str:
    return number(row["reward"]["mean"], ".3f")


def _called(name: str) -> str:
    return "the reference (from which all started)" if name == "reference" else name
