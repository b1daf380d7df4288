"""TODO."""

import json
import re
from pathlib import Path
from typing import Any

from leftover.runs.run import Run
from leftover.store.manifest import read_json


def policy_folder(run: Run, name: str, seed: int) -> Path:
    return run.folder / "policies" / name / f"seed-{seed}"


DECODINGS = ("sampled", "greedy")


def policy_subject(name: str, seed: int) -> str:
    """The subject that is one policy with one seed."""
    return f"{name}-seed-{seed}"


def evaluation_artifact(name: str) -> str:
    """What the manifest calls the evaluation of a subject."""
    return f"evaluation of {name}"


def read_completions(run: Run, subject: str) -> list[dict[str, Any]]:
    """The records that `evaluate_all` wrote for a subject."""
    path = run.folder / "evaluation" / f"{subject}.jsonl"
    # Not `splitlines`, which also parts at characters that JSON leaves in texts, such as U+2028.
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def read_metrics(run: Run, subject: str) -> dict[str, Any]:
    """The metrics of rows that were written beside them."""
    return read_json(run.folder / "evaluation" / f"{subject}.json")


def policy_artifact(name: str, seed: int) -> str:
    """What the manifest calls a trained policy."""
    return f"policy {name}, seed {seed}"


def judge_folder(run_folder: Path) -> Path:
    """Where a run keeps verdicts, rating pages and their results."""
    return run_folder / "judge"


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]", "_", name)
