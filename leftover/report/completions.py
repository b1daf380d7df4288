"""Completions of the test prompts side by side, as the page embeds them and as report.md shows some."""

from collections.abc import Mapping, Sequence
from typing import Any

from leftover.data.chat import readable
from leftover.evaluation.measures import part_names
from leftover.monitoring.terminal import visible
from leftover.runs.records import BySeed

DATA = "data"


def _apart(policy: str) -> str:
    """A policy's name beside the data's completions; runs of earlier versions may have called one so."""
    return "data (policy)" if policy == DATA else policy


def side_by_side(
    rows: Sequence[dict[str, Any]], records: BySeed, main: str, decodings: Sequence[str], seed: int
) -> dict[str, Any]:
    """The data of the completions section, as plain JSON values for page.js.

    Args:
        rows: the test rows, one a prompt.
        decodings: those that are shown, in this order.
        seed: whose completions are shown; of a subject that lacks it, those of its first seed.

    Returns:
        names: the data first, then reference and policies.
        prompts: each `id`, `source`, `prompt`, `data` [text, reward], and a decoding -> name ->
            [text, reward, tokens, ended, components].
        note: what the page has shortened; empty here.
    """
    shown = {_apart(n): seeds[seed] if seed in seeds else seeds[min(seeds)] for n, seeds in records.items()}
    parts = _components(shown["reference"])
    prompts: dict[Any, dict[str, Any]] = {
        row["group"]: {
            "id": int(row["group"]),
            "source": row["source"] and visible(row["source"]),
            "prompt": readable(row, "\n\n"),
            "data": [row["completion"], row.get("reward")],
            **{decoding: {} for decoding in decodings},
        }
        for row in rows
    }
    for name, lines in shown.items():
        for record in lines:
            if record["group"] in prompts and record["decoding"] in decodings:
                scores = [record.get(part) for part in parts]
                cell = [record["text"], record.get("reward"), record["tokens"], record.get("ended", True), scores]
                prompts[record["group"]][record["decoding"]][name] = cell
    return {
        "names": [DATA, *shown],
        "main": _apart(main),
        "decodings": list(decodings),
        "components": parts,
        "prompts": list(prompts.values()),
        "note": "",
    }


def _components(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of components and judges; a single component that equals the reward is skipped."""
    names = part_names(records[0]) if records else []
    alone = [n for n in names if n.startswith("reward/")]
    if len(alone) == 1 and all(r[alone[0]] == r["reward"] for r in records):
        names.remove(alone[0])
    return names
