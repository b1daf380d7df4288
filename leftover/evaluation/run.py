"""Policies against the reference on held-out prompts: completions, their rewards, and what they cost."""

import logging
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.evaluation.policy import row_metrics
from leftover.models.generate import end_ids, generate
from leftover.models.reference import model_identity, reference_pass
from leftover.monitoring.finite import json_line
from leftover.prepare.readers import available_blocks, test_rows, unique_prompts
from leftover.rewards.sum import as_array
from leftover.runs.names import (
    DECODINGS,
    completions_path,
    evaluation_artifact,
    metrics_path,
    policy_artifact,
    policy_folder,
    policy_subject,
)
from leftover.runs.records import ORIGIN, SAMPLER_COLUMNS
from leftover.runs.run import Run
from leftover.store.manifest import Key, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def evaluate_all(run: Run) -> None:
    """Write `evaluation/<subject>.jsonl` (completions) and `.json` (metrics of rows) for every subject."""
    if not run.reward.scores_new_completions:
        log.warning(
            "evaluate: the rewards are recorded, so new completions cannot be scored; the log-ratio is compared "
            "with the recorded rewards of held-out rows instead"
        )
    evaluation = Evaluation(run)
    for subject in evaluation.subjects:
        evaluation.of(subject)


class Evaluation:
    """Evaluates subjects of one run. What they share (rows, scoring models) is loaded once, when it is needed."""

    def __init__(self, run: Run):
        self.run = run
        self.subjects: dict[str, tuple[str, str | None, int]] = {"reference": (run.reference_path, None, run.seed)}
        for name, seed in product(run.recipe.policies, run.recipe.seeds):
            path = str(policy_folder(run.folder, name, seed))
            self.subjects[policy_subject(name, seed)] = (path, policy_artifact(name, seed), seed)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return test_rows(self.run.recipe, self.run.table)

    @cached_property
    def _scorers(self) -> "dict[str, PreTrainedModel]":
        """Column of the records -> the model whose log-probabilities it holds; two of one path are one model."""
        recipe, load = self.run.recipe, cache(self.run.models.load)
        paths = {"reference_logprob": self.run.reference_path, "base_logprob": recipe.model.path}
        return {column: load(path) for column, path in (paths | {ORIGIN: recipe.reference.origin}).items() if path}

    def key(self, subject: str) -> Key:
        """What the evaluation of a subject depends on."""
        recipe, table = self.run.recipe, self.run.table
        path, artifact, seed = self.subjects[subject]
        ignored = {"primary", "num_examples", "judges", "max_selection_prompts"}
        further = {"kl": "at the temperature"} if recipe.evaluate.temperature != 1 else {}
        if recipe.reference.origin is not None:
            further["origin"] = model_identity(recipe.reference.origin, self.run.hashes)
        return further | {
            "from": {block: table.digest(block) for block in ("tokens", "split", *available_blocks(recipe, table))},
            "model": self.run.manifest.digest(artifact) if artifact else model_identity(path, self.run.hashes),
            "judges": self.run.judges.identity() if self.run.judges else None,
            "settings": recipe.evaluate.model_dump(exclude=ignored),
            "seed": seed,
        }

    def of(self, subject: str) -> None:
        """Write the completions and the metrics of one subject, unless that is done already."""
        run, (path, _, seed) = self.run, self.subjects[subject]
        artifact = evaluation_artifact(subject)
        if run.manifest.begin(artifact, self.key(subject)).finished:
            return
        model = self._scorers["reference_logprob"] if subject == "reference" else run.models.load(path)
        metrics = row_metrics(model, run.models.tokenizer, self._rows, run.recipe.compute_dtype)
        if subject == "reference":  # its log-ratio against itself is 0, and the order of zeros rounding noise
            metrics = {k: v for k, v in metrics.items() if not k.startswith("logratio/")}
        completions = [record for decoding in DECODINGS for record in self._complete(subject, model, decoding, seed)]
        write_json(metrics_path(run.folder, subject), metrics)
        _write_lines(completions_path(run.folder, subject), completions)
        run.manifest.finish(artifact)

    def _complete(self, subject: str, model: "PreTrainedModel", decoding: str, seed: int) -> list[dict[str, Any]]:
        """One `CompletionRecord` a prompt."""
        run, settings, limit = self.run, self.run.recipe.evaluate, self.run.recipe.max_new_tokens
        prompts, tokenizer, ends = unique_prompts(self._rows), run.models.tokenizer, end_ids(model)
        ids, texts = generate(
            model,
            tokenizer,
            [row["prompt_ids"] for row in prompts],
            max_new_tokens=limit,
            sample=decoding == "sampled",
            temperature=settings.temperature,
            batch_size=settings.batch_size,
            seed=seed,
            description=f"{subject}, {decoding}",
        )
        asked = [as_prompt(row["prompt"], row["conversational"]) for row in prompts]
        columns: dict[str, Sequence[float] | np.ndarray] = {}
        if run.reward.scores_new_completions:
            components = run.reward.score_components(asked, texts)
            columns["reward"] = run.reward.combine(components)
            columns |= {f"reward/{name}": as_array(scores) for name, scores in components.items()}
        judged = run.judges.score_components(asked, texts) if run.judges else {}
        columns |= {f"judge/{name}": as_array(scores) for name, scores in judged.items()}
        rows = [{"prompt_ids": row["prompt_ids"], "completion_ids": own} for row, own in zip(prompts, ids, strict=True)]
        columns |= self._score({"logprob": model, **self._scorers}, rows, f"{subject}, {decoding}")
        if decoding == "sampled" and settings.temperature != 1:
            scorers = dict(zip(SAMPLER_COLUMNS, (model, self._scorers["reference_logprob"]), strict=True))
            scorers |= {f"sampler_{column}": model for column, model in self._scorers.items() if column == ORIGIN}
            columns |= self._score(scorers, rows, f"{subject}, {decoding}", settings.temperature)
        return [
            {
                "group": row["group"],
                "family": row["family_id"],
                "source": row["source"],
                "decoding": decoding,
                "text": texts[i],
                "tokens": len(ids[i]),
                "ended": ids[i][-1] in ends,
                **{column: float(values[i]) for column, values in columns.items()},
            }
            for i, row in enumerate(prompts)
        ]

    def _score(
        self,
        scorers: "dict[str, PreTrainedModel]",
        rows: list[dict[str, Any]],
        description: str,
        temperature: float = 1.0,
    ) -> dict[str, list[float]]:
        """Column -> the log-probability of every completion under its model; a model reads the rows once."""
        found: dict[int, list[float]] = {}
        for column, scorer in scorers.items():
            if id(scorer) not in found:
                logprobs, _ = reference_pass(
                    scorer,
                    self.run.models.tokenizer,
                    rows,
                    features=False,
                    compute_dtype=self.run.recipe.compute_dtype,
                    temperature=temperature,
                    description=f"{description}, {column}",
                )
                found[id(scorer)] = [float(values.sum()) for values in logprobs]
        return {column: found[id(scorer)] for column, scorer in scorers.items()}


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json_line(record, ensure_ascii=False) + "\n" for record in records))
