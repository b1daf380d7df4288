"""The verdicts of models and people on a run's completions, from `leftover judge`, for report.html and report.md."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.evaluation.measures import interval, number
from leftover.evaluation.tables import Grid
from leftover.report import charts
from leftover.runs.names import evaluation_artifact, judge_folder
from leftover.store.manifest import Manifest
from leftover.store.sealed import digest, read_sealed

log = logging.getLogger(__name__)

_SHARES = ("win", "tie", "loss", "win_rate")
_HEADER = ["criterion", "test set", "prompts", "win", "tie", "loss", "win rate [95 %]"]


def _whole_results(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((judge_folder(folder) / "results").glob("*.json")):
        try:
            found = read_sealed(path)
        except UserError as error:
            log.warning("report: %s; the same `leftover judge` makes it anew, and asks nothing again", error)
            continue
        if found:
            yield found


def judge_view(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Every comparison that was judged, those by models first; None if there are none.

    `outdated` names those that are skipped because their completions have been regenerated since.
    """
    results = list(_whole_results(folder))
    if not results:
        return None
    now = {name: digest(entry["key"]) for name, entry in manifest.entries.items()}
    current = [
        found
        for found in results
        if all(now.get(evaluation_artifact(subject)) == of for subject, of in found.get("evaluations", {}).items())
    ]
    current.sort(key=lambda found: ("raters" in found, found["comparison"], _who(found)))
    return {
        "comparisons": [comparison_view(found) for found in current],
        "charts": [picture for found in current if (picture := _chart(found)) is not None],
        "outdated": sorted({found["comparison"] for found in results if found not in current}),
    }


def _who(found: Mapping[str, Any]) -> str:
    if "raters" in found:
        return f"{len(found['raters'])} {'person' if len(found['raters']) == 1 else 'people'}"
    return str(found["judge"]["model"])


def comparison_view(found: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison: `title`, `judge`, `table` and `notes`."""
    criteria, words = found["criteria"], found["words"]
    cells = [
        [name, source or "none", str(row["prompts"]), *(interval(row.get(share), ".2f") for share in _SHARES)]
        for name, of in criteria.items()
        for source, row in {"all": of, **of["by_source"]}.items()
    ]
    notes = [f"{name}: {note}" for name, of in criteria.items() for note in _notes(of)]
    notes.append(
        f"Mean length: {words['ours']:.1f} words, theirs {words['theirs']:.1f}; judges tend to prefer long texts."
    )
    if "tokens" in found:
        notes.append(token_text(found["tokens"]))
    return {"title": found["comparison"], "judge": _who(found), "table": Grid(_HEADER, cells), "notes": notes}


def _notes(of: Mapping[str, Any]) -> list[str]:
    """Position bias of a model, or agreement of people; and what was not counted."""
    said = []
    if of.get("first_preferred"):
        said.append(
            f"the completion shown first is preferred in {interval(of['first_preferred'], '.2f')} of the decided "
            f"verdicts (0.50 without position bias); both orders agree on {of['orders_agree']:.0%} of the pairs."
        )
    left_out = {
        "questions without an answer": of.get("unanswered"),
        "answers without a verdict": of.get("without_verdict"),
        "pairs skipped because of these": of.get("pairs_without_outcome"),
        "identical pairs, tied without asking": of.get("identical_pairs"),
    }
    if any(left_out.values()):
        said.append("; ".join(f"{count} {what}" for what, count in left_out.items() if count) + ".")
    if "ratings" in of:
        said.append(f"{of['ratings']} ratings; Krippendorff's alpha {_agreement(of['krippendorff_alpha'])}.")
        said += [
            f"{' and '.join(pair['raters'])} agree on {pair['equal']:.0%} of {pair['items']}, "
            f"Cohen's kappa {_agreement(pair['kappa'])}."
            for pair in of["cohen_kappa"]
        ]
    return said


def _agreement(value: float | None) -> str:
    return "n/a" if value is None else number(value, ".2f")


def token_text(tokens: Mapping[str, Any]) -> str:
    """The tokens and cost of a judge's answers."""
    cost = f", cost {tokens['cost']:.4f}" if "cost" in tokens else ""
    uncounted = tokens["answers_without_count"]
    more = f"; more in fact, since {uncounted:,} answers came without a count" if uncounted else ""
    return (
        f"{tokens['answers']:,} answers: {tokens['prompt_tokens']:,} tokens of questions, "
        f"{tokens['completion_tokens']:,} of answers{cost}{more}."
    )


def _chart(found: Mapping[str, Any]) -> charts.Chart | None:
    measured = {name: of for name, of in found["criteria"].items() if "win" in of}
    shares = {n: (of["win"]["mean"], of["tie"]["mean"], of["loss"]["mean"]) for n, of in measured.items()}
    picture = charts.wins(shares, list(shares))
    if picture is None:
        return None
    said = "; ".join(f"{name} won {w:.0%}, tied {t:.0%}, lost {lost:.0%}" for name, (w, t, lost) in shares.items())
    title = f"{found['comparison']}, by {_who(found)}"
    return picture._replace(title=title, description=f"Shares of prompts: {said}.")
