"""The completions that are compared: two sides of a finished evaluation, matched by prompt."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.runs.finished import FinishedRun
from leftover.runs.names import completions_path, evaluation_artifact, policy_subject, read_completions
from leftover.runs.records import Records
from leftover.store.manifest import digest
from leftover.store.table import Table, column, equals

log = logging.getLogger(__name__)

DATA, REFERENCE = "data", "reference"


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, as texts. `prompt_id` is a digest of the prompt, the same in every run."""

    prompt_id: str
    prompt: str
    ours: str
    theirs: str
    family: Any
    source: str
    seed: int

    @property
    def identical(self) -> bool:
        return self.ours == self.theirs


@dataclass(frozen=True)
class Comparison:
    """A policy over its seeds against another side, on `max_prompts` of the prompts that both completed."""

    ours: str
    theirs: str
    decoding: str
    pairs: tuple[Pair, ...]
    characters_per_token: float  # of our completions, under our tokenizer
    unended: float  # share of our completions that were cut at the limit of new tokens
    # Evaluations of the run itself that the texts are of -> digests of their keys: what is made anew has another.
    evaluations: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.ours} against {self.theirs}, {self.decoding}"


def evaluated_completions(run: FinishedRun, subject: str, decoding: str) -> Records:
    """The records of a subject. Raises UserError where it was not evaluated, or on other rows than these."""
    artifact = evaluation_artifact(subject)
    evaluate = f"run `leftover evaluate {run.folder}` first"
    if not run.manifest.is_complete(artifact):
        start = evaluation_artifact("")
        done = [n for n in run.manifest.entries if n.startswith(start) and run.manifest.is_complete(n)]
        listed = ", ".join(name.removeprefix(start) for name in done) or "none"
        raise UserError(f"'{subject}' of '{run.folder}' is not evaluated (evaluated: {listed}): {evaluate}")
    used = run.manifest.entries[artifact]["key"]["from"]
    if any(not run.table.has(block) or run.table.digest(block) != of for block, of in used.items()):
        raise UserError(f"the rows of '{run.folder}' have changed since '{subject}' was evaluated: {evaluate}")
    path = completions_path(run.folder, subject)
    if not path.is_file():
        raise UserError(f"{path} is missing: put it back, or run the recipe again with another output_dir")
    return [record for record in read_completions(run.folder, subject) if record["decoding"] == decoding]


def rows_by_prompt(table: Table, groups: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
    """The test rows of the prompts `groups`: group -> its rows, in the order of the data."""
    rows = table.open("rows", "split", "tokens")
    keep = equals(rows, "split", "test") & equals(rows, "kept", True)
    keep &= np.isin(column(rows, "group"), sorted(set(groups)))
    names = ["prompt", "tools", "conversational", "completion", "group", "is_chosen"]
    present = [name for name in names if name in rows.column_names]
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows.select_columns(present).select(np.flatnonzero(keep)):
        found.setdefault(row["group"], []).append(row)
    return found


def compare_sides(
    run: FinishedRun,
    against: str,
    *,
    policy: str | None = None,
    seeds: tuple[int, ...] = (),
    against_policy: str | None = None,
    against_seed: int | None = None,
    decoding: str | None = None,
    max_prompts: int | None = None,
) -> Comparison:
    """The pairs of `policy` (default: the recipe's first, of its first seed) against data, reference or another run.

    Prompts are drawn by their digest, so that a larger `max_prompts` keeps those of a smaller one. Raises UserError
    where a side was not evaluated, or the sides share no prompt.
    """
    policy, seeds = run.policy(policy), seeds or (run.recipe.seeds[0],)
    decoding = decoding or run.recipe.evaluate.primary
    subjects = {seed: policy_subject(policy, seed) for seed in seeds}
    records = {seed: evaluated_completions(run, subject, decoding) for seed, subject in subjects.items()}
    every = [record for of_seed in records.values() for record in of_seed]
    if not every:
        raise UserError(f"the evaluation of '{policy}' in '{run.folder}' holds no {decoding} completion")
    prompts = {group: rows[0] for group, rows in rows_by_prompt(run.table, [r["group"] for r in every]).items()}
    ids = {group: prompt_id(row) for group, row in prompts.items()}
    if against in (DATA, REFERENCE) and (against_policy or against_seed is not None):
        raise UserError(f"--against-policy and --against-seed go with --against RUN, not with {against}")
    other = None if against in (DATA, REFERENCE) else FinishedRun(against)
    sides = [_other_side(run, other, against, seed, against_policy, against_seed, decoding, ids) for seed in records]
    pairs = [
        Pair(
            prompt_id=ids[record["group"]],
            prompt=prompt_text(prompts[record["group"]]),
            ours=record["text"].strip(),
            theirs=theirs[ids[record["group"]]].strip(),
            family=record["family"],
            source=str(record["source"]) if record.get("source") is not None else "",
            seed=seed,
        )
        for (seed, of_seed), (_, theirs) in zip(records.items(), sides, strict=True)
        for record in of_seed
        if ids[record["group"]] in theirs
    ]
    if not pairs:
        raise UserError(f"'{run.folder}' and '{against}' share no evaluated prompt: nothing can be compared")
    shared = sorted({pair.prompt_id for pair in pairs})
    if len(shared) < len(set(ids.values())):
        log.warning("judge: %d of %d prompts are in both runs; only these are compared", len(shared), len(ids))
    drawn = set(shared[:max_prompts])
    tokens = sum(record["tokens"] for record in every)
    read = [*subjects.values(), *([REFERENCE] if against == REFERENCE else [])]
    return Comparison(
        ours=_with_seeds(policy, records),
        theirs=" and ".join(dict.fromkeys(name for name, _ in sides)),
        decoding=decoding,
        pairs=tuple(sorted((p for p in pairs if p.prompt_id in drawn), key=lambda p: (p.prompt_id, p.seed))),
        characters_per_token=sum(len(record["text"]) for record in every) / max(tokens, 1),
        unended=float(np.mean([not record.get("ended", True) for record in every])),
        evaluations={subject: run.manifest.digest(evaluation_artifact(subject)) for subject in read},
    )


def _other_side(
    run: FinishedRun,
    other: FinishedRun | None,
    against: str,
    seed: int,
    policy: str | None,
    other_seed: int | None,
    decoding: str,
    ids: dict[int, str],
) -> tuple[str, dict[str, str]]:
    """What one seed is compared with: its name, and prompt id -> completion."""
    if against == DATA:
        return DATA, {ids[group]: own_row(rows)["completion"] for group, rows in rows_by_prompt(run.table, ids).items()}
    if other is None:
        return REFERENCE, {ids[r["group"]]: r["text"] for r in evaluated_completions(run, REFERENCE, decoding)}
    policy = other.policy(policy)
    if other_seed is None:  # the same seed where there is one
        other_seed = seed if seed in other.recipe.seeds else other.recipe.seeds[0]
    records = evaluated_completions(other, policy_subject(policy, other_seed), decoding)
    rows = rows_by_prompt(other.table, [record["group"] for record in records])
    name = f"{policy}-seed-{other_seed} of {other.recipe.name}"
    return name, {prompt_id(rows[record["group"]][0]): record["text"] for record in records}


def own_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row that stands for the data: the chosen one of its prompt, or else the first."""
    return next((row for row in rows if row.get("is_chosen")), rows[0])


def prompt_id(row: dict[str, Any]) -> str:
    """The digest of a prompt: its text, or its messages, and its tools."""
    return digest([as_prompt(row["prompt"], row["conversational"]), row.get("tools")])


def prompt_text(row: dict[str, Any]) -> str:
    """A prompt as text for a reader: `role: content` for the messages of a conversation."""
    value = as_prompt(row["prompt"], row["conversational"])
    if isinstance(value, str):
        return value
    turns = [f"{message['role']}: {message['content']}" for message in value]
    if row.get("tools"):
        turns.insert(0, f"tools: {row['tools']}")
    return "\n\n".join(turns)


def _with_seeds(policy: str, seeds: Iterable[int]) -> str:
    numbers = list(seeds)
    return f"{policy}-seed-{numbers[0]}" if len(numbers) == 1 else f"{policy}-seeds-{'-'.join(map(str, numbers))}"
