"""The completions that are compared: two sides of finished evaluations, matched by prompt."""

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from leftover.data.chat import readable
from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.runs.finished import FinishedRun
from leftover.runs.names import completions_path, evaluation_artifact, policy_subject, read_completions
from leftover.runs.records import Records
from leftover.store.sealed import digest
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
    family: object
    source: str
    seed: int

    @property
    def identical(self) -> bool:
        return self.ours == self.theirs

    def in_order(self, ours_first: bool) -> tuple[str, str]:
        return (self.ours, self.theirs) if ours_first else (self.theirs, self.ours)


@dataclass(frozen=True)
class Comparison:
    """A policy over its seeds against another side, on prompts that both completed."""

    ours: str
    theirs: str
    decoding: str
    pairs: tuple[Pair, ...]
    characters_per_token: float  # of our completions, under our tokenizer
    unended: float  # share of our completions that were cut at the limit of new tokens
    # Evaluations of the run that the texts come from -> digests of their keys: a repeated evaluation has another one.
    evaluations: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.ours} against {self.theirs}, {self.decoding}"

    @property
    def num_prompts(self) -> int:
        return len({pair.prompt_id for pair in self.pairs})

    def describe(self) -> dict[str, Any]:
        """What is compared, and how long both sides are: judges are known to like long answers (arXiv 2306.05685)."""
        return {
            "comparison": self.name,
            "ours": self.ours,
            "theirs": self.theirs,
            "decoding": self.decoding,
            "words": {
                "ours": fmean(len(pair.ours.split()) for pair in self.pairs),
                "theirs": fmean(len(pair.theirs.split()) for pair in self.pairs),
            },
            "unended": self.unended,
            "evaluations": self.evaluations,
        }


def evaluated_completions(run: FinishedRun, subject: str, decoding: str) -> Records:
    """The records of a subject. Raises UserError if it was not evaluated, or on other rows than these."""
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
        raise UserError(f"{path} is missing: put it back, or run the recipe again")
    run.manifest.check(artifact)
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

    Raises UserError if a side was not evaluated, or the sides share no prompt.
    """
    policy, seeds = run.policy(policy), seeds or (run.recipe.seeds[0],)
    decoding = decoding or run.recipe.evaluate.primary
    subjects = {seed: policy_subject(policy, seed) for seed in seeds}
    records = {seed: evaluated_completions(run, subject, decoding) for seed, subject in subjects.items()}
    every = list(itertools.chain(*records.values()))
    if not every:
        raise UserError(f"the evaluation of '{policy}' in '{run.folder}' holds no {decoding} completion")
    rows = rows_by_prompt(run.table, [record["group"] for record in every])
    ids = {group: prompt_id(of[0]) for group, of in rows.items()}
    if against in (DATA, REFERENCE) and (against_policy or against_seed is not None):
        raise UserError(f"--against-policy and --against-seed go with --against RUN, not with {against}")
    own = {ids[group]: own_row(of)["completion"] for group, of in rows.items()}
    sides = {
        s: (DATA, own) if against == DATA else _other_side(run, against, decoding, against_policy, against_seed, s)
        for s in records
    }
    pairs = [
        Pair(
            prompt_id=ids[record["group"]],
            prompt=readable(rows[record["group"]][0], "\n\n", tools=True),
            ours=record["text"].strip(),
            theirs=sides[seed][1][ids[record["group"]]].strip(),
            family=record["family"],
            source="" if record.get("source") is None else str(record["source"]),
            seed=seed,
        )
        for seed in records
        for record in records[seed]
        if ids[record["group"]] in sides[seed][1]
    ]
    if not pairs:
        raise UserError(f"'{run.folder}' and '{against}' share no evaluated prompt: nothing can be compared")
    num_shared = len({pair.prompt_id for pair in pairs})
    if num_shared < len(set(ids.values())):
        log.warning("judge: %d of %d prompts are in both runs; only these are compared", num_shared, len(ids))
    read = [*subjects.values(), *([REFERENCE] if against == REFERENCE else [])]
    return Comparison(
        ours=f"{policy}-seed{'s' if len(records) > 1 else ''}-{'-'.join(map(str, records))}",
        theirs=" and ".join(dict.fromkeys(name for name, _ in sides.values())),
        decoding=decoding,
        pairs=_draw(pairs, max_prompts),
        characters_per_token=sum(len(r["text"]) for r in every) / max(sum(r["tokens"] for r in every), 1),
        unended=float(np.mean([not record.get("ended", True) for record in every])),
        evaluations={subject: run.manifest.digest(evaluation_artifact(subject)) for subject in read},
    )


def _draw(pairs: Iterable[Pair], max_prompts: int | None) -> tuple[Pair, ...]:
    """The pairs of `max_prompts` prompts, drawn by digest: a larger number keeps the prompts of a smaller one."""
    ordered = sorted(pairs, key=lambda pair: (pair.prompt_id, pair.seed))
    drawn = set(list(dict.fromkeys(pair.prompt_id for pair in ordered))[:max_prompts])
    return tuple(pair for pair in ordered if pair.prompt_id in drawn)


def _other_side(
    run: FinishedRun, against: str, decoding: str, policy: str | None, seed: int | None, our_seed: int
) -> tuple[str, dict[str, str]]:
    """An evaluated side's name, and prompt id -> completion. `seed` None: ours, or else the first of its recipe."""
    name = subject = REFERENCE
    if against != REFERENCE:
        run = FinishedRun(against)
        policy = run.policy(policy)
        if seed is None:
            seed = our_seed if our_seed in run.recipe.seeds else run.recipe.seeds[0]
        subject = policy_subject(policy, seed)
        name = f"{subject} of {run.recipe.name}"
    records = evaluated_completions(run, subject, decoding)
    rows = rows_by_prompt(run.table, [record["group"] for record in records])
    return name, {prompt_id(rows[record["group"]][0]): record["text"] for record in records}


def own_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row that stands for the data: the chosen one of its prompt, or else the first."""
    return next((row for row in rows if row.get("is_chosen")), rows[0])


def prompt_id(row: dict[str, Any]) -> str:
    """A digest of the prompt and its tools."""
    return digest([as_prompt(row["prompt"], row["conversational"]), row.get("tools")])
