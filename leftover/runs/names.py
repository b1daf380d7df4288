"""The names of a run's files and artifacts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leftover.errors import UserError
from leftover.recipe.sections import Recipe, TokenizerSection
from leftover.runs.records import ORIGIN, Records
from leftover.store.files import read_json, read_lines
from leftover.store.sealed import read_sealed

DECODINGS = ("sampled", "greedy")
PREPARED = "prepare.json"  # counts of the preparation
REWARD_STATE = "reward_state.json"  # normalisations, means and transform that new completions are scored with
ROUNDS_PICTURE = "rounds.png"


def decodings(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that results hold, the primary one first."""
    held = [decoding for decoding in DECODINGS if decoding in results]
    return tuple(sorted(held, key=lambda decoding: decoding != results["primary"]))


def logprob_columns(recipe: Recipe) -> tuple[str, ...]:
    """Columns of a completion's log-probabilities: under its policy, and under those of `scorer_paths`."""
    return ("logprob", *scorer_paths(recipe, ""))


def scorer_paths(recipe: Recipe, reference: str) -> dict[str, str]:
    """Column -> the model that reads every completion: the reference at its path, and, where asked for, the base and
    the origin."""
    found = {"reference_logprob": reference}
    if recipe.evaluate.base_perplexity and recipe.model.path is not None and recipe.reference.source != "as_is":
        found["base_logprob"] = recipe.model.path
    if recipe.reference.origin is not None:
        found[ORIGIN] = recipe.reference.origin
    return found


def policy_folder(run_folder: Path, name: str, seed: int) -> Path:
    """Where a trained policy is saved."""
    return run_folder / "policies" / name / f"seed-{seed}"


def trained_policies(run_folder: Path) -> list[Path]:
    """The folders of all policies and seeds whose training came to its end: only then is a model written."""
    saved = sorted(run_folder.glob("policies/*/seed-*"))
    return [path for path in saved if (path / "config.json").is_file() or (path / "adapter_config.json").is_file()]


def policy_artifact(name: str, seed: int) -> str:
    """The name of a trained policy in the manifest."""
    return f"policy {name}, seed {seed}"


def policy_subject(name: str, seed: int) -> str:
    """The name of one policy with one seed in the evaluation; the other subject is `reference`."""
    return f"{name}-seed-{seed}"


def evaluation_artifact(subject: str) -> str:
    """The name of a subject's evaluation in the manifest."""
    return f"evaluation of {subject}"


def completions_path(run_folder: Path, subject: str) -> Path:
    """The file with one record for every completion that a subject wrote for the test prompts."""
    return run_folder / "evaluation" / f"{subject}.jsonl"


def evaluations_path(folder: Path) -> Path:
    """The file, in a policy's folder, with a record for every completion that it wrote while it trained."""
    return folder / "evaluations.jsonl"


def metrics_path(run_folder: Path, subject: str) -> Path:
    """The file with a subject's metrics on the test rows."""
    return run_folder / "evaluation" / f"{subject}.json"


def read_completions(run_folder: Path, subject: str) -> Records:
    """The records of a subject's completions."""
    return read_lines(completions_path(run_folder, subject))


def read_metrics(run_folder: Path, subject: str) -> dict[str, Any]:
    """A subject's metrics on the test rows."""
    return read_json(metrics_path(run_folder, subject))


def reference_folder(recipe: Recipe, run_folder: Path) -> str:
    """The path or Hub id of the reference."""
    reference = recipe.reference
    if reference.source == "path":
        return str(reference.path)
    if reference.source == "as_is":
        return str(recipe.model.path)
    return str(run_folder / "reference")


def tokenizer_folder(recipe: Recipe, run_folder: Path) -> str:
    """The path or Hub id of the tokenizer."""
    model = recipe.model
    if isinstance(model.tokenizer, TokenizerSection):  # trained on the rows of the run
        return str(run_folder / "tokenizer")
    return model.tokenizer or str(model.path)


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run computes: a manifest as we write it, not just any file of that name."""
    for path in (folder / "manifest.json", folder / "table" / "manifest.json"):
        try:
            entries = read_sealed(path) or {}
        except (OSError, UserError):
            continue
        if any(isinstance(e, dict) and "complete" in e for e in entries.values()):
            return True
    return False


def round_folder(folder: Path, number: int, control: str | None = None) -> Path:
    """Where a round of a run with `rounds` lies; those of a control from the second on, beside the policy's own."""
    return folder / "rounds" / (f"{number}-{control}" if control else str(number))


def judge_folder(run_folder: Path) -> Path:
    """Where a run keeps verdicts, rating pages and their results."""
    return run_folder / "judge"


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]", "_", name)


def score_block(name: str) -> str:
    """The table's block of one component's scores."""
    return f"score-{slug(name)}"
