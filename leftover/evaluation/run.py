"""Policies against the reference on held-out prompts: completions, their rewards, and what they cost."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.evaluation.policy import row_metrics
from leftover.models.generate import generate
from leftover.models.reference import model_identity, reference_pass
from leftover.prepare.readers import available_blocks, test_rows, unique_prompts
from leftover.rewards.sum import as_array
from leftover.runs.names import DECODINGS, evaluation_artifact, policy_folder, policy_subject
from leftover.runs.run import Run
from leftover.store.manifest import Key, write_json

log = logging.getLogger(__name__)


def subjects(run: Run) -> dict[str, tuple[str, int]]:
    """What is evaluated: artifact name -> (path of its model, seed of its sampling)."""
    found = {"reference": (run.reference_path, run.seed)}
    for name in run.recipe.policies:
        for seed in run.recipe.seeds:
            found[policy_subject(name, seed)] = (str(policy_folder(run, name, seed)), seed)
    return found


def evaluate_all(run: Run) -> None:
    """Write `evaluation/<subject>.jsonl` (completions) and `.json` (metrics of rows) for every subject."""
    if not run.reward.scores_new_completions:
        log.warning(
            "evaluate: the rewards are recorded, so new completions cannot be scored; the log-ratio is compared "
            "with the recorded rewards of held-out rows instead"
        )
    evaluation = Evaluation(run)
    for name in subjects(run):
        evaluation.of(name)


def evaluation_key(run: Run, name: str) -> Key:
    """What the evaluation of a subject depends on."""
    settings = run.recipe.evaluate
    return {
        "from": {block: run.table.digest(block) for block in ("tokens", "split", *available_blocks(run))},
        "model": _model_key(run, name),
        "judges": run.judges.identity() if run.judges else None,
        "settings": settings.model_dump(exclude={"primary", "num_examples", "judges", "max_selection_prompts"}),
        "seed": subjects(run)[name][1],
    }


class Evaluation:
    """Evaluates subjects of one run. What they share (rows, scoring models) is loaded once, where it is needed."""

    def __init__(self, run: Run):
        self.run = run
        self._rows: list[dict[str, Any]] = []
        self._scorers: dict[str, Any] = {}

    def of(self, name: str) -> None:
        """Write the completions and the metrics of one subject; nothing where that is done already."""
        run, (path, seed) = self.run, subjects(self.run)[name]
        artifact = evaluation_artifact(name)
        if run.manifest.begin(artifact, evaluation_key(run, name)).finished:
            return
        if not self._scorers:
            self._rows, self._scorers = test_rows(run), _scorers(run)
        scorers = self._scorers
        model = scorers["reference_logprob"] if name == "reference" else run.load(path)
        metrics = row_metrics(model, run.tokenizer, self._rows, run.compute_dtype)
        if name == "reference":  # its log-ratio against itself is 0, and the order of zeros rounding noise
            metrics = {k: v for k, v in metrics.items() if not k.startswith("logratio/")}
        prompts = unique_prompts(self._rows)
        completions = []
        for decoding in DECODINGS:
            completions += complete(run, name, model, scorers, prompts, decoding, seed)
        write_json(run.folder / "evaluation" / f"{name}.json", metrics)
        _write_lines(run.folder / "evaluation" / f"{name}.jsonl", completions)
        run.manifest.finish(artifact)


def complete(
    run: Run,
    name: str,
    model: Any,
    scorers: dict[str, Any],
    prompts: list[dict],
    decoding: str,
    seed: int,
) -> list[dict[str, Any]]:
    """One record a prompt: text, tokens, reward and components, log-probability under policy, reference, base."""
    settings = run.recipe.evaluate
    ids, texts = generate(
        model,
        run.tokenizer,
        [row["prompt_ids"] for row in prompts],
        max_new_tokens=run.max_new_tokens,
        sample=decoding == "sampled",
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        seed=seed,
        description=f"{name}, {decoding}",
    )
    records = [
        {
            "group": row["group"],
            "family": row["family_id"],
            "source": row["source"],
            "decoding": decoding,
            "text": text,
            "tokens": len(sequence),
            "ended": len(sequence) < run.max_new_tokens,
        }
        for row, sequence, text in zip(prompts, ids, texts, strict=True)
    ]
    asked = [as_prompt(row["prompt"], row["conversational"]) for row in prompts]
    if run.reward.scores_new_completions:
        components = run.reward.score_components(asked, texts)
        _add(records, "reward", run.reward.combine(components))
        for component, scores in components.items():
            _add(records, f"reward/{component}", as_array(scores))
    for judge, scores in (run.judges.score_components(asked, texts) if run.judges else {}).items():
        _add(records, f"judge/{judge}", as_array(scores))
    rows = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": sequence}
        for row, sequence in zip(prompts, ids, strict=True)
    ]
    for name_of_sum, scorer in {"logprob": model, **scorers}.items():
        if scorer is model and name_of_sum != "logprob":  # the reference against itself: one pass says both
            _add(records, name_of_sum, [record["logprob"] for record in records])
            continue
        logprobs, _ = reference_pass(
            scorer,
            run.tokenizer,
            rows,
            features=False,
            compute_dtype=run.compute_dtype,
            description=f"{name}, {decoding}, {name_of_sum}",
        )
        _add(records, name_of_sum, [float(values.sum()) for values in logprobs])
    return records


def _scorers(run: Run) -> dict[str, Any]:
    """Models that score every subject's completions beside its own: the reference, and the pretrained base."""
    scorers = {"reference_logprob": run.load_reference()}
    if run.recipe.model.path is not None:
        scorers["base_logprob"] = run.load_base()
    return scorers


def _model_key(run: Run, name: str) -> str:
    if name == "reference":
        return model_identity(run.reference_path, run.hashes)
    policy, _, seed = name.rpartition("-seed-")
    return run.manifest.digest(f"policy {policy}, seed {seed}")


def _add(records: list[dict], column: str, values: Sequence[float] | np.ndarray) -> None:
    for record, value in zip(records, values, strict=True):
        record[column] = float(value)


def _write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    temporary.replace(path)
