"""The constants of a row: log pi_ref(y|x), V(x) and A(x, y), and the frozen reference that they come from."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor

from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.metrics import FEW_ROWS, effective_sample_size, mean_of_known
from leftover.models.engines.choice import engine_fact
from leftover.models.generate import generate, have_ended
from leftover.models.reference import prompt_hidden, reference_pass
from leftover.objectives.advantage import advantage, leftover_mask
from leftover.prepare.checks import needs_value, value_targets
from leftover.prepare.features import PROMPT_FEATURES, half, prompt_features
from leftover.prepare.value.estimate import RowConstants, estimate_values
from leftover.recipe.forms import Unfinished
from leftover.recipe.sections import ValueSection
from leftover.rewards.unfinished import settled
from leftover.runs.keys import logprobs_key
from leftover.runs.run import Run
from leftover.store.table import Stored, column, equals, float_lists, read_rows

log = logging.getLogger(__name__)

# Nats a token below which an instruct model plainly does not write such completions.
_ROWS_TOLD = 2048  # whose mean log-probability is told
_FAR_FROM_ROWS = -3.0


@dataclass
class Reference:
    """A model and its tokenizer, which `load` gives when they are first needed, and how it reads and samples."""

    load: Callable[[], tuple[Any, Any]]
    compute_dtype: str | None
    max_new_tokens: int
    seed: int
    generation: dict[str, Any] = field(default_factory=dict)  # further keywords of `generate`
    unfinished: Unfinished = "score"
    sampled_tokens: int = 0  # so far

    @classmethod
    def of_run(cls, run: Run) -> "Reference":
        recipe = run.recipe
        return cls(
            lambda: (run.models.reference(), run.models.tokenizer),
            recipe.compute_dtype,
            recipe.max_new_tokens,
            recipe.seed,
            recipe.generation,
            recipe.evaluate.unfinished,
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self.load()

    @property
    def engine_fact(self) -> dict[str, str]:
        return engine_fact(self._loaded[0])

    def read(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        features: bool | np.ndarray = False,
        description: str | None = None,
        where: Sequence[str] | None = None,
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """log pi_ref of every completion token, [T_i] a row, and the pooled features of the prompts, [N, 2 H]; of the
        rows of a mask [N] alone, if `features` is one."""
        places = [None] * len(prompt_ids) if where is None else where
        rows = [
            {"prompt_ids": p, "completion_ids": c, "where": w}
            for p, c, w in zip(prompt_ids, completion_ids, places, strict=True)
        ]
        return reference_pass(
            *self._loaded, rows, features=features, compute_dtype=self.compute_dtype, description=description
        )

    def hidden(self, prompt_ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """(i, last hidden states [L_i, H]) of every prompt, in any order."""
        return prompt_hidden(*self._loaded, prompt_ids, compute_dtype=self.compute_dtype)

    def sampled_rewards(
        self,
        rows: Dataset | dict[str, Any],
        chosen: np.ndarray,
        reward_func: Callable,
        settings: ValueSection,
        seed: int | None = None,
    ) -> np.ndarray:
        """Rewards of the reference's own completions of the chosen rows' prompts, [n, samples a prompt].

        NaN: a completion without an end, which `unfinished: drop` leaves without one.

        rows: columns `prompt`, `conversational` and `prompt_ids`.
        """
        found = read_rows(rows, ["prompt_ids", "prompt", "conversational"], chosen)
        prompt_ids = found["prompt_ids"]
        prompts = [as_prompt(*one) for one in zip(found["prompt"], found["conversational"], strict=True)]
        repeats = settings.num_samples
        rewards = np.empty((len(chosen), repeats))
        for repeat in range(repeats):
            written = generate(
                *self._loaded,
                prompt_ids,
                max_new_tokens=self.max_new_tokens,
                sample=settings.decoding == "sample",
                seed=(self.seed if seed is None else seed) + repeat,
                compute_dtype=self.compute_dtype,
                description=f"reference samples {repeat + 1}/{repeats}",
                **self.generation,
            )
            ended = have_ended(self._loaded[0], written.ids)
            rewards[:, repeat] = settled(reward_func(prompts, written.texts), ended, self.unfinished)
            self.sampled_tokens += sum(map(len, written.ids))
        return rewards


def reference_columns(run: Run) -> None:
    """Block `reference`: log-probabilities of completion tokens, and in the first kept row of every prompt its pooled
    features, in one pass."""
    key = {"from": {"tokens": run.table.digest("tokens")}} | logprobs_key(run)
    reference, description = Reference.of_run(run), "reference log-probabilities"
    table = run.table.open("tokens", "rows", "split")
    first = _first_of_prompts(table)

    def compute(shard: Dataset, _: Path, start: int) -> dict[str, Any]:
        where = np.flatnonzero(equals(shard, "kept", True))
        *ids, places = (shard.select(where)[name][:] for name in ("prompt_ids", "completion_ids", "where"))
        new = first[start : start + len(shard)]
        logprobs, features = reference.read(*ids, features=new[where], description=description, where=places)
        by_row: list[Any] = [[]] * len(shard)
        for i, values in zip(where, logprobs, strict=True):
            by_row[i] = values
        of_prompt: list[Any] = [[]] * len(shard)
        if features is not None:
            for i, values in zip(np.flatnonzero(new), half(features), strict=True):
                of_prompt[i] = values
        halves = pa.array(of_prompt, type=pa.list_(pa.float16()))
        return {"reference_logprobs": float_lists(by_row), PROMPT_FEATURES: halves}

    def conclude(block: Dataset) -> None:
        first = np.flatnonzero(equals(source, "kept", True))[:_ROWS_TOLD]
        per_token = float(np.mean(np.concatenate(block.select(first).with_format("numpy")[:]["reference_logprobs"])))
        run.note(reference={"mean_logprob_per_token": per_token})
        log.info("reference: %.3f nats per completion token on the first rows", -per_token)
        if run.recipe.reference.source == "as_is" and per_token < _FAR_FROM_ROWS:
            log.warning(
                "reference: the rows are far from the model as it is (%.2f nats a token); importance weights will be "
                "mostly clipped. Consider reference.source: fit",
                -per_token,
            )

    source = table.select_columns(["kept", "prompt_ids", "completion_ids", "where"])
    run.table.write_columns("reference", key, source, compute, description=description, conclude=conclude)


def _first_of_prompts(table: Dataset) -> np.ndarray:
    """[N] bool: the first kept row of every prompt."""
    kept = np.flatnonzero(equals(table, "kept", True))
    first = np.zeros(len(table), bool)
    first[kept[np.unique(column(table, "group")[kept], return_index=True)[1]]] = True
    return first


def value(run: Run) -> None:
    """Block `value`: V(x) and A = R - V, if a policy of the recipe uses them."""
    if not needs_value(run.recipe):
        if run.table.has("value"):  # of an earlier recipe of this folder
            run.note(value=None, leftover=None)
        return
    table = run.table.open("rows", "split", "tokens", "reference", "reward")
    targets = value_targets(run.recipe, run.reward)
    key = {
        "from": {name: run.table.digest(name) for name in ("reference", "reward", "split")},
        "targets": targets,
        "settings": run.recipe.value_settings.model_dump(exclude={"targets"}),
        "seed": run.seed,
    }
    if targets == "reference_samples":
        key |= {"max_new_tokens": run.recipe.max_new_tokens} | run.recipe.unfinished_key | run.recipe.engine.key

    def compute() -> dict[str, Any]:
        kept = np.flatnonzero(equals(table, "kept", True))
        inside = table.select(kept)
        rows = RowConstants(
            column(inside, "group"),
            column(inside, "family_id"),
            column(inside, "reward"),
            equals(inside, "split", "train"),
            prompt_features(inside),
            Stored(inside, "prompt_ids"),
        )
        if not np.isfinite(rows.reward).any():
            raise UserError("no row has a score: there is no value to fit (such rows can train the reference only)")
        reference = Reference.of_run(run)
        values, advantages, report = values_and_advantages(
            rows, inside, reference, run.recipe.value_settings, targets, run.reward
        )
        if reference.sampled_tokens:
            report |= {"sampled_tokens": reference.sampled_tokens} | reference.engine_fact
        run.note(value=report, leftover=leftover_facts(advantages[rows.is_train]))
        whole = {name: np.full(len(table), np.nan) for name in ("value", "advantage")}
        whole["value"][kept], whole["advantage"][kept] = values, advantages
        return whole

    run.table.write_whole("value", key, compute)


def values_and_advantages(
    constants: RowConstants,
    rows: Dataset | dict[str, Any],
    reference: Reference,
    settings: ValueSection,
    targets: str,
    reward_func: Callable | None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """V and A = R - V of every row, [N] each, and the report of `estimate_values`.

    rows: columns `prompt`, `conversational` and `prompt_ids`; the reference samples for these prompts if the
    targets are its own completions, which `reward_func` scores.
    """

    def sample_rewards(chosen: np.ndarray) -> np.ndarray:
        assert reward_func is not None
        return mean_of_known(reference.sampled_rewards(rows, chosen, reward_func, settings), 1)

    values, report = estimate_values(
        constants, settings, targets, seed=reference.seed, hidden=reference.hidden, sample_rewards=sample_rewards
    )
    return values, advantage(constants.reward, values), report


def leftover_facts(advantages: np.ndarray) -> dict[str, Any]:
    """How many training rows are left over, how large their advantages are, how evenly they carry the run.

    The effective sample size is that of A^2: by default rows are drawn in proportion to A and multiplied by it.
    """
    scored = advantages[np.isfinite(advantages)]
    positive = scored[leftover_mask(scored)]
    quantiles = np.quantile(scored, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist() if len(scored) else []
    ess = effective_sample_size(np.square(positive))
    if ess < FEW_ROWS * len(positive):
        log.warning("leftover: few rows carry the run (effective sample size %.0f of %d)", ess, len(positive))
    log.info(
        "leftover: %d of %d training rows are better than what the reference would answer; they count as much as "
        "%.0f rows of equal weight",
        len(positive),
        len(scored),
        ess,
    )
    return {
        "training_rows": len(scored),
        "leftover_rows": len(positive),
        "share": len(positive) / max(len(scored), 1),
        "effective_sample_size": ess,
        "advantage_quantiles": quantiles,
    }
