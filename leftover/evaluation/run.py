"""Policies against the reference on held-out prompts: completions, their rewards, and what they cost."""

import logging
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.evaluation.policy import likelihood_metrics, row_metrics, score_columns
from leftover.models.engines.choice import engine_fact
from leftover.models.generate import generate, have_ended
from leftover.models.reference import model_identity, sequence_logprobs
from leftover.prepare.readers import available_blocks, rows_of_a_prompt, test_rows, test_set, unique_prompts
from leftover.rewards.base import Prompt
from leftover.rewards.sum import SumReward, as_array
from leftover.runs.names import (
    completions_path,
    evaluation_artifact,
    metrics_path,
    policy_artifact,
    policy_folder,
    policy_subject,
    scorer_paths,
)
from leftover.runs.records import ORIGIN, SAMPLER_COLUMNS, CompletionRecord, completion_records
from leftover.runs.run import Run
from leftover.store.files import write_json, write_lines
from leftover.store.manifest import Key

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

    @property
    def _most_of_a_prompt(self) -> int:
        """Rows whose likelihood is measured."""
        return rows_of_a_prompt(self.run.reward.scores_new_completions)

    @cached_property
    def _rows_read(self) -> list[dict[str, Any]]:
        return test_rows(self.run.recipe, self.run.table, self._most_of_a_prompt)

    @cached_property
    def _reads_all(self) -> bool:
        recipe, table = self.run.recipe, self.run.table
        return len(test_set(recipe, table, self._most_of_a_prompt)) == len(test_set(recipe, table))

    @cached_property
    def _scorers(self) -> "dict[str, PreTrainedModel]":
        """Column of the records -> the model whose log-probabilities it holds, beside the policy's own.

        Two of one path are one model.
        """
        load, paths = cache(self.run.models.load), scorer_paths(self.run.recipe, self.run.reference_path)
        return {column: load(path) for column, path in paths.items()}

    def key(self, subject: str) -> Key:
        """What the evaluation of a subject depends on."""
        recipe, table = self.run.recipe, self.run.table
        path, artifact, seed = self.subjects[subject]
        ignored = {"primary", "num_examples", "judges", "max_selection_prompts", "decodings", "unfinished"}
        ignored |= {"max_batch_tokens", "engine", "vllm"}
        further = {"kl": "at the temperature"} if recipe.evaluate.temperature != 1 else {}
        if not self._reads_all:  # earlier versions did
            further["rows_of_a_prompt"] = str(self._most_of_a_prompt)
        if recipe.reference.origin is not None:
            further["origin"] = model_identity(recipe.reference.origin, self.run.hashes)
        return (further | recipe.unfinished_key | recipe.engine.key) | {
            "from": {block: table.digest(block) for block in ("tokens", "split", *available_blocks(recipe, table))},
            "model": self.run.manifest.digest(artifact) if artifact else model_identity(path, self.run.hashes),
            "judges": self.run.judges.identity() if self.run.judges else None,
            "settings": recipe.evaluate.model_dump(exclude=ignored) | {"max_prompts": recipe.test_prompts},
            "decodings": sorted(recipe.decodings),
            "seed": seed,
        }

    def is_done(self, subject: str) -> bool:
        return self.run.manifest.status(evaluation_artifact(subject), self.key(subject)).finished

    def of(self, subject: str) -> None:
        """Write the completions and the metrics of one subject, unless that is done already."""
        run, (path, _, seed) = self.run, self.subjects[subject]
        artifact = evaluation_artifact(subject)
        if run.manifest.begin(artifact, self.key(subject)).finished:
            return
        model = self._scorers["reference_logprob"] if subject == "reference" else run.models.load(path)
        if subject == "reference":  # the table has its log-probabilities
            metrics = likelihood_metrics([np.array(row["reference_logprobs"]) for row in self._rows_read])
        else:
            metrics = row_metrics(
                model, run.models.tokenizer, self._rows_read, run.recipe.compute_dtype, intervals=True
            )
        ways = run.recipe.decodings
        completions = [record for decoding in ways for record in self._complete(subject, model, decoding, seed)]
        wrote = metrics_path(run.folder, subject), completions_path(run.folder, subject)
        write_json(wrote[0], metrics)
        write_lines(wrote[1], completions)
        run.manifest.finish(artifact, wrote=wrote, **engine_fact(model))

    def _complete(self, subject: str, model: "PreTrainedModel", decoding: str, seed: int) -> list[CompletionRecord]:
        """One `CompletionRecord` a prompt."""
        run, settings, sampled = self.run, self.run.recipe.evaluate, decoding == "sampled"
        prompts = unique_prompts(self._rows)
        prompt_ids = [row["prompt_ids"] for row in prompts]
        written = generate(
            model,
            run.models.tokenizer,
            prompt_ids,
            max_new_tokens=run.recipe.max_new_tokens,
            sample=sampled,
            temperature=settings.temperature,
            seed=seed,
            compute_dtype=run.recipe.compute_dtype,
            description=f"{subject}, {decoding}",
            **run.recipe.generation,
        )
        ids, texts, ended = written.ids, written.texts, have_ended(model, written.ids)
        asked = [as_prompt(row["prompt"], row["conversational"]) for row in prompts]
        columns = judge_columns(run.judges, asked, texts)
        if run.reward.scores_new_completions:
            columns = score_columns(run.reward, asked, texts, ended, settings.unfinished) | columns
        temperature = settings.temperature if sampled else 1.0
        own, start = SAMPLER_COLUMNS if temperature != 1 else ("logprob", "reference_logprob")
        scorers = self._scorers | {start: self._scorers["reference_logprob"]}
        if temperature != 1 and ORIGIN in self._scorers:
            scorers[f"sampler_{ORIGIN}"] = self._scorers[ORIGIN]
        columns[own] = np.array(written.sums)
        known = {(id(model), temperature): columns[own]}  # each model reads once at a temperature
        for column, scorer in scorers.items():
            at = temperature if column.startswith("sampler_") else 1.0
            if (id(scorer), at) not in known:
                read = sequence_logprobs(
                    scorer,
                    run.models.tokenizer,
                    prompt_ids,
                    ids,
                    run.recipe.compute_dtype,
                    temperature=at,
                    description=f"{subject}, {decoding}, {column}",
                )
                known[id(scorer), at] = np.array(read)
            columns[column] = known[id(scorer), at]
        return completion_records(prompts, decoding, texts, ids, ended, columns)


def judge_columns(judges: SumReward | None, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """`judge/NAME` -> the scores of completions, NaN where a judge has none."""
    judged = judges.score_components(prompts, texts) if judges else {}
    return {f"judge/{name}": as_array(scores) for name, scores in judged.items()}
