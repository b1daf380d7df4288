"""Completions of the test prompts side by side, as the page embeds them and as report.md shows some."""

from collections.abc import Mapping, Sequence
from typing import Any

from leftover.data.chat import readable
from leftover.evaluation.measures import part_names
from leftover.runs.names import decodings
from leftover.runs.records import BySeed, CompletionRecord, Records


def side_by_side(rows: Sequence[dict[str, Any]], records: BySeed, main: str, primary: str) -> dict[str, Any]:
    """The data of the completions section, as plain JSON values for page.js; `rows`: the test rows, one a prompt.

    names: the data first, then reference and policies, each of its first seed. prompts: each `id`, `source`, `prompt`,
    `data` [text, reward], and a decoding -> name -> [text, reward, tokens, ended, components]. note: what the page
    has shortened; empty here.
    """
    firsts = {name: seeds[min(seeds)] for name, seeds in records.items()}
    parts = _components(firsts["reference"])
    found = {decoding: by_prompt(firsts, decoding) for decoding in decodings(primary)}
    prompts = [
        {
            "id": int(row["group"]),
            "source": row["source"],
            "prompt": readable(row, "\n\n"),
            "data": [row["completion"], _rounded(row.get("reward"))],
            **{
                decoding: {name: _cell(of[row["group"]], parts) for name, of in names.items() if row["group"] in of}
                for decoding, names in found.items()
            },
        }
        for row in rows
    ]
    return {
        "names": ["data", *firsts],
        "main": main,
        "decodings": list(found),
        "components": parts,
        "prompts": prompts,
        "note": "",
    }


def examples(rows: Sequence[dict[str, Any]], records: BySeed, decoding: str, seed: int) -> list[dict[str, Any]]:
    """For report.md: each `prompt` with its `completions` (who, text, reward or None), those of `seed` if trained."""
    chosen = {name: seeds[seed] if seed in seeds else seeds[min(seeds)] for name, seeds in records.items()}
    found = by_prompt(chosen, decoding)
    return [
        {
            "prompt": readable(row),
            "completions": [
                ("data", row["completion"], None),
                *((n, of[row["group"]]["text"], of[row["group"]].get("reward")) for n, of in found.items()),
            ],
        }
        for row in rows
    ]


def by_prompt(records: Mapping[str, Records], decoding: str) -> dict[str, dict[int, CompletionRecord]]:
    """Name -> id of the prompt -> its completion."""
    return {
        name: {record["group"]: record for record in lines if record["decoding"] == decoding}
        for name, lines in records.items()
    }


def _components(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of components and judges; a single component that equals the reward is skipped."""
    names = part_names(records[0]) if records else []
    alone = [n for n in names if n.startswith("reward/")]
    if len(alone) == 1 and all(r[alone[0]] == r["reward"] for r in records):
        names.remove(alone[0])
    return names


def _cell(record: Mapping[str, Any], parts: Sequence[str]) -> list[Any]:
    return [
        record["text"],
        _rounded(record.get("reward")),
        record["tokens"],
        record.get("ended", True),
        [_rounded(record.get(part)) for part in parts],
    ]


def _rounded(value: float | None) -> float | None:
    """Rounded to what a reader sees, so that the page stays small; None if it is not a number."""
    return round(float(value), 4) if value is not None and value == value else None
