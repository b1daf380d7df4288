"""What judges and people said of a run's completions, as `leftover judge` stored it, for report.html and report.md."""

from pathlib import Path
from typing import Any

from leftover.report import charts
from leftover.runs.names import evaluation_artifact, judge_folder
from leftover.store.manifest import Manifest, digest, read_json

_HEADER = ["criterion", "test set", "prompts", "win", "tie", "loss", "win rate [95 %]"]


def judge_view(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Every comparison that was judged, by models first; None where none was.

    comparisons: each `title`, `judge`, `header`, `cells`, `notes`. charts: win, tie and loss of each. outdated: names
    of comparisons that are left out, since their completions have been made anew since.
    """
    results = [read_json(path) for path in sorted((judge_folder(folder) / "results").glob("*.json"))]
    if not results:
        return None
    current = [found for found in results if _is_current(manifest, found)]
    current.sort(key=lambda found: ("raters" in found, found["comparison"], _who(found)))
    return {
        "comparisons": [comparison_view(found) for found in current],
        "charts": [picture for found in current if (picture := _chart(found)) is not None],
        "outdated": sorted({found["comparison"] for found in results if found not in current}),
    }


def judge_section(folder: Path, manifest: Manifest) -> str:
    """The same as Markdown, without pictures; empty where nothing was judged."""
    from leftover.report.markdown import quote

    view = judge_view(folder, manifest)
    if view is None:
        return ""
    parts = ["## The judge"]
    for found in view["comparisons"]:
        parts += [f"### {quote(found['title'])}", f"By {quote(found['judge'])}."]
        lines = [[quote(cell).replace("\\[", "[").replace("\\]", "]") for cell in line] for line in found["cells"]]
        table = [found["header"], ["---"] * len(found["header"]), *lines]
        parts += ["\n".join("| " + " | ".join(line) + " |" for line in table)]
        parts += ["\n".join(f"- {quote(note)}" for note in found["notes"])]
    if view["outdated"]:
        parts.append(f"{OUTDATED} {quote('; '.join(view['outdated']))}.")
    return "\n\n".join(parts)


OUTDATED = "Left out, since the completions have been made anew since they were judged:"


def _is_current(manifest: Manifest, found: dict[str, Any]) -> bool:
    """Whether the completions that were judged are those that are there."""
    entries = manifest.entries
    return all(
        digest(entries.get(evaluation_artifact(subject), {}).get("key")) == of
        for subject, of in found.get("evaluations", {}).items()
    )


def _who(found: dict[str, Any]) -> str:
    if "raters" in found:
        return f"{len(found['raters'])} {'person' if len(found['raters']) == 1 else 'people'}"
    return str(found["judge"]["model"])


def comparison_view(found: dict[str, Any]) -> dict[str, Any]:
    """One comparison: `title`, `judge`, `header`, `cells` and `notes`."""
    cells = [
        [name, source or "none", str(row["prompts"]), *(_share(row.get(m)) for m in ("win", "tie", "loss", "win_rate"))]
        for name, of in found["criteria"].items()
        for source, row in {"all": of, **of["by_source"]}.items()
    ]
    notes = [note for name, of in found["criteria"].items() for note in _notes(name, of)]
    words = found["words"]
    notes.append(
        f"Mean length: {words['ours']:.1f} words, theirs {words['theirs']:.1f}; judges are known to like more."
    )
    if "tokens" in found:
        notes.append(token_text(found["tokens"]))
    return {"title": found["comparison"], "judge": _who(found), "header": _HEADER, "cells": cells, "notes": notes}


def _notes(criterion: str, of: dict[str, Any]) -> list[str]:
    """Position bias of a model, or agreement of people; and what was left out."""
    said = []
    if of.get("first_preferred"):
        said.append(
            f"{criterion}: the completion shown first is preferred in {_share(of['first_preferred'])} of the decided "
            f"verdicts (0.50 without position bias); both orders agree on {of['orders_agree']:.0%} of the pairs."
        )
    left_out = {
        "questions without an answer": of.get("unanswered"),
        "answers without a verdict": of.get("without_verdict"),
        "pairs left out for that": of.get("pairs_without_outcome"),
        "identical pairs, tied without asking": of.get("identical_pairs"),
    }
    counts = [f"{count} {what}" for what, count in left_out.items() if count]
    said += [f"{criterion}: {'; '.join(counts)}."] if counts else []
    if "ratings" in of:
        alpha = of["krippendorff_alpha"]
        said.append(
            f"{criterion}: {of['ratings']} ratings; Krippendorff's alpha {'n/a' if alpha is None else f'{alpha:.2f}'}."
        )
        for pair in of["cohen_kappa"]:
            kappa = "n/a" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
            names = " and ".join(pair["raters"])
            said.append(f"{criterion}: {names} agree on {pair['equal']:.0%} of {pair['items']}, Cohen's kappa {kappa}.")
    return said


def token_text(tokens: dict[str, Any]) -> str:
    """How many tokens some answers took, and their cost."""
    text = f"{tokens['answers']:,} answers: {tokens['prompt_tokens']:,} tokens of questions, "
    text += f"{tokens['completion_tokens']:,} of answers"
    text += f", cost {tokens['cost']:.4f}" if "cost" in tokens else ""
    uncounted = tokens["answers_without_count"]
    return text + (f"; {uncounted:,} answers were not counted by the service: it is more." if uncounted else ".")


def _chart(found: dict[str, Any]) -> charts.Chart | None:
    measured = {name: of for name, of in found["criteria"].items() if "win" in of}
    shares = {n: (of["win"]["mean"], of["tie"]["mean"], of["loss"]["mean"]) for n, of in measured.items()}
    picture = charts.wins(shares, list(shares))
    if picture is None:
        return None
    said = "; ".join(f"{name} won {w:.0%}, tied {t:.0%}, lost {lost:.0%}" for name, (w, t, lost) in shares.items())
    title = f"{found['comparison']}, by {_who(found)}"
    return picture._replace(title=title, description=f"Shares of prompts: {said}.")


def _share(interval: dict[str, float] | None) -> str:
    return "–" if interval is None else f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
