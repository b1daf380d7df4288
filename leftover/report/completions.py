"""Completions of every test prompt side by side, as the page embeds them."""

from collections.abc import Sequence
from typing import Any

from leftover.data.chat import readable
from leftover.evaluation.results import Records
from leftover.runs.finished import FinishedRun
from leftover.runs.names import DECODINGS, policy_subject, read_completions

BySeed = dict[str, dict[int, Records]]


def read_records(run: FinishedRun, results: dict[str, Any]) -> BySeed:
    """What the reference and every policy wrote, by seed; the reference under the run's own seed."""
    found: BySeed = {"reference": {run.recipe.seed: read_completions(run.folder, "reference")}}
    for policy, seeds in results["training"].items():
        found[policy] = {int(seed): read_completions(run.folder, policy_subject(policy, int(seed))) for seed in seeds}
    return found


def side_by_side(rows: list[dict[str, Any]], records: BySeed, main: str, primary: str) -> dict[str, Any]:
    """The data of the completions section, JSON through and through.

    rows: the test rows, one a prompt.
    names: whose completions, the data's own first; of a policy those of its first seed. main: which of them the gain
    is of. decodings: the primary one first. components: names of the parts of the reward. prompts: each `id`,
    `source`, `prompt`, `data` [text, reward], and a decoding -> name -> [text, reward, tokens, ended, components].
    note: what a page has shortened; empty here.
    """
    firsts = {name: seeds[min(seeds)] for name, seeds in records.items()}
    parts = _components(firsts["reference"])
    decodings = [primary, *(d for d in DECODINGS if d != primary)]
    by_prompt = {
        decoding: {name: {r["group"]: r for r in lines if r["decoding"] == decoding} for name, lines in firsts.items()}
        for decoding in decodings
    }
    prompts = [
        {
            "id": int(row["group"]),
            "source": row["source"],
            "prompt": readable(row, "\n\n"),
            "data": [row["completion"], _number(row.get("reward"))],
        }
        | {
            decoding: {name: _cell(of[row["group"]], parts) for name, of in names.items() if row["group"] in of}
            for decoding, names in by_prompt.items()
        }
        for row in rows
    ]
    return {
        "names": ["data", *firsts],
        "main": main,
        "decodings": decodings,
        "components": parts,
        "prompts": prompts,
        "note": "",
    }


def _components(records: Records) -> list[str]:
    """Names of components and judges; a single component that is the reward itself says nothing new."""
    names = [n for n in records[0] if n.startswith(("reward/", "judge/"))] if records else []
    alone = [n for n in names if n.startswith("reward/")]
    if len(alone) == 1 and all(r[alone[0]] == r["reward"] for r in records):
        names.remove(alone[0])
    return names


def _cell(record: dict[str, Any], parts: Sequence[str]) -> list[Any]:
    return [
        record["text"],
        _number(record.get("reward")),
        record["tokens"],
        record.get("ended", True),
        [_number(record.get(part)) for part in parts],
    ]


def _number(value: Any) -> float | None:
    """Rounded to what a reader sees, so that the page stays small; None for what is not a number."""
    return round(float(value), 4) if value is not None and value == value else None
