"""The section on the rounds of a run, and their pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leftover.evaluation.rounds import rounds_grid, rounds_sentence
from leftover.report import charts
from leftover.report.figures import figure, paint_points, paint_reference, policy_style
from leftover.runs.names import ROUNDS_PICTURE

NOTE = (
    "All on the same test prompts, against the first reference. Generated tokens: of the completions that were sampled "
    "for training, those that V is fitted on among them. Seconds: of preparation, training and sampling, of this round "
    "and those before it, without evaluations."
)
_TOKENS = "generated tokens, thousands"

Lines = dict[str, list[tuple[float, Mapping[str, Any]]]]  # policy -> (x, mean with its interval) in the order of rounds


def rounds_view(rounds: Mapping[str, Any]) -> dict[str, Any]:
    """The section on the rounds, from rounds.json."""
    names = list(dict.fromkeys(row["policy"] for row in rounds["rows"]))
    pictures = [charts.points(title, lines, names, x, y) for title, x, y, lines in _pictures(rounds)]
    return {
        "sentence": rounds_sentence(rounds),
        "table": rounds_grid(rounds),
        "charts": [picture for picture in pictures if picture],
        "notes": [NOTE, *_off_policy(rounds)],
        "picture": ROUNDS_PICTURE,
    }


def draw_rounds(rounds: Mapping[str, Any], path: Path) -> None:
    """The pictures side by side, for Markdown."""
    shown = _pictures(rounds)
    with figure(ncols=len(shown), figsize=(5 * len(shown), 3.8), squeeze=False) as (made, axes):
        for axis, (title, x, y, lines) in zip(axes[0], shown, strict=True):
            for name, points in lines.items():
                paint_points(axis, points, label=name, **policy_style(name, lines))
            if "reference" in lines:
                paint_reference(axis, lines["reference"][0][1]["mean"])
            axis.set_title(title, fontsize=10)
            axis.set(xlabel=x, ylabel=y)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        made.tight_layout()
        made.savefig(path, dpi=120)


def _pictures(rounds: Mapping[str, Any]) -> list[tuple[str, str, str, Lines]]:
    """(title, label of x, label of y, curves): reward and judges by generated tokens, reward by distance."""
    judges = [name for name in rounds["rows"][0] if name.startswith("judge/")]
    by_tokens = [("Reward by round", "reward"), *((f"{name} by round", name) for name in judges)]
    found = [(title, _TOKENS, name, _lines(rounds, "generated_tokens", name)) for title, name in by_tokens]
    label = "KL to the first reference, nats a completion"
    return [*found, ("Reward against distance", label, "reward", _lines(rounds, "kl_to_origin", "reward"))]


def _lines(rounds: Mapping[str, Any], x: str, y: str) -> Lines:
    lines: Lines = {}
    for row in rounds["rows"]:
        place = row.get(x) or 0.0
        at = place["mean"] if isinstance(place, Mapping) else place / 1000
        if isinstance(row.get(y), Mapping):
            lines.setdefault(row["policy"], []).append((at, row[y]))
    return lines


def _off_policy(rounds: Mapping[str, Any]) -> list[str]:
    """How far the rows of the rounds before are from each round's reference."""
    said = [
        f"round {sampled}'s under round {number}'s reference {gap:+.2f}"
        for number, of in rounds["off_policy"].items()
        for sampled, gap in of.items()
    ]
    return [f"log π_ref − log π_sampler of the samples, nats a completion: {'; '.join(said)}."] if said else []
