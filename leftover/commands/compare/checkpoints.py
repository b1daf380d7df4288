"""What policies wrote for the selection prompts while they trained, with judges' scores; samples of the reference."""

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.evaluation.frontier import COUNTS
from leftover.evaluation.gather import REFERENCE
from leftover.evaluation.policy import evaluated_prompts, score_columns
from leftover.evaluation.run import judge_columns
from leftover.models.engines.choice import engine_fact
from leftover.models.generate import generate, have_ended
from leftover.models.reference import model_identity
from leftover.prepare.readers import selection_rows
from leftover.runs.names import evaluations_path, policy_artifact, policy_folder, policy_subject, slug
from leftover.runs.records import Records, completion_records
from leftover.runs.run import Run
from leftover.store.files import read_lines, write_lines
from leftover.store.manifest import Key


class Checkpoints:
    """Subjects of a frontier: every trained policy, whose evaluations are already on disk, and the reference.

    What is read and written is on the prompts of the validation split: nothing is chosen on them here.
    """

    def __init__(self, run: Run):
        self.run = run
        self._engine: dict[str, str] = {}  # that wrote the samples of the reference
        pairs = product(run.recipe.policies, run.recipe.seeds)
        self.subjects = {policy_subject(name, seed): (name, seed) for name, seed in pairs}

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return list(selection_rows(self.run.recipe, self.run.table))

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """A row for each of the selection prompts."""
        return evaluated_prompts(self._rows)

    def path(self, subject: str) -> Path:
        return self.run.folder / "frontier" / f"{slug(subject)}.jsonl"

    def key(self, subject: str) -> Key:
        """What the scored completions of a subject depend on."""
        run, recipe = self.run, self.run.recipe
        judges = {"judges": run.judges.identity() if run.judges else None}
        if subject != REFERENCE:
            return judges | {"policy": run.manifest.digest(policy_artifact(*self.subjects[subject]))}
        return (judges | recipe.unfinished_key | recipe.engine.key) | {
            "from": {block: run.table.digest(block) for block in ("tokens", "split", "reward")},
            "model": model_identity(run.reference_path, run.hashes),
            "prompts": recipe.selection_prompts,
            "completions": max(COUNTS),
            "max_new_tokens": self._max_new_tokens,
            "seed": run.seed,
        }

    def is_done(self, subject: str) -> bool:
        return self.run.manifest.status(_artifact(subject), self.key(subject)).finished

    def of(self, subject: str) -> None:
        """Write the scored completions of one subject, unless that is done already."""
        manifest = self.run.manifest
        if manifest.begin(_artifact(subject), self.key(subject)).finished:
            return
        self._engine = {}
        records = self._samples() if subject == REFERENCE else self._written(*self.subjects[subject])
        self._judge(records)
        write_lines(self.path(subject), records)
        manifest.finish(_artifact(subject), wrote=[self.path(subject)], **self._engine)

    def read(self, subject: str) -> Records:
        return read_lines(self.path(subject))

    @property
    def _max_new_tokens(self) -> int:
        """As policies have it while they train."""
        return self.run.recipe.train.get("max_completion_length", self.run.recipe.max_new_tokens)

    def _written(self, name: str, seed: int) -> Records:
        path = evaluations_path(policy_folder(self.run.folder, name, seed))
        if not path.is_file():
            raise UserError(f"{path} is missing, which its training wrote: put it back, or set another output_dir")
        return read_lines(path)

    def _samples(self) -> Records:
        """As many completions of every prompt as the largest n of best-of-n."""
        run, copies = self.run, max(COUNTS)
        model, rows = run.models.reference(), [row for row in self.prompts for _ in range(copies)]
        written = generate(
            model,
            run.models.tokenizer,
            [row["prompt_ids"] for row in rows],
            max_new_tokens=self._max_new_tokens,
            sample=True,
            seed=run.seed,
            compute_dtype=run.recipe.compute_dtype,
            description=f"{REFERENCE}, {copies} completions a prompt",
            **run.recipe.generation,
        )
        self._engine = engine_fact(model)
        ended = have_ended(model, written.ids)
        columns = score_columns(run.reward, _asked(rows), written.texts, ended, run.recipe.evaluate.unfinished)
        return completion_records(rows, "sampled", written.texts, written.ids, ended, columns)

    def _judge(self, records: Records) -> None:
        """Add the judges' scores to records of any of the prompts."""
        # Of two groups whose prompts are the same tokens a policy has completed either, by the rows that it had.
        rows = {row["group"]: row for row in self._rows}
        asked = _asked([rows[record["group"]] for record in records])
        columns = judge_columns(self.run.judges, asked, [record["text"] for record in records])
        for i, record in enumerate(records):
            record.update({name: float(values[i]) for name, values in columns.items()})  # type: ignore[typeddict-item]


def _asked(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return [as_prompt(row["prompt"], row["conversational"]) for row in rows]


def _artifact(subject: str) -> str:
    return f"checkpoints of {subject}"
