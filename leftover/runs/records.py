"""What one evaluated completion is on disk, and what a row of results holds."""

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict, cast

import numpy as np

# Of completions sampled at a temperature other than 1: their log-probability at it, under the policy and the reference.
SAMPLER_COLUMNS = ("sampler_logprob", "sampler_reference_logprob")
ORIGIN = "origin_logprob"  # under `reference.origin`, and with `sampler_` before it at the temperature


class CompletionRecord(TypedDict, total=False):
    """One completion, a line of `evaluation/<subject>.jsonl` (test prompts) or of a policy's `evaluations.jsonl`.

    Beside these keys it has a number for each `reward/<component>` and `judge/<name>`. Log-probabilities are sums over
    the completion, under the policy itself, the reference and the pretrained base.
    """

    group: Required[int]  # the prompt
    family: Required[int]  # of prompts that are alike; bootstraps resample these
    source: str | None
    decoding: Required[str]
    text: Required[str]
    tokens: Required[int]
    ended: bool  # False: it ran into the length limit
    reward: float | None  # None: it has none (`evaluate.unfinished: drop`)
    raw_reward: float | None  # with `reward.length`: before length was taken off, otherwise made alike
    logprob: float
    reference_logprob: float
    base_logprob: float
    sampler_logprob: float
    sampler_reference_logprob: float
    origin_logprob: float
    sampler_origin_logprob: float
    step: int  # of a policy in training


def completion_records(
    rows: Sequence[Mapping[str, Any]],
    decoding: str,
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    ended: np.ndarray,
    columns: Mapping[str, Sequence[float] | np.ndarray],
) -> list[CompletionRecord]:
    """The records of the completions of the rows' prompts, one each; `columns` are their numbers."""
    return [
        cast(
            CompletionRecord,
            {
                "group": row.get("group"),
                "family": row.get("family_id"),
                "source": row.get("source"),
                "decoding": decoding,
                "text": texts[i],
                "tokens": len(completion_ids[i]),
                "ended": bool(ended[i]),
                **{name: float(values[i]) for name, values in columns.items()},
            },
        )
        for i, row in enumerate(rows)
    ]


class IntervalRecord(TypedDict, total=False):
    """A mean with its 95 % interval, as JSON holds it."""

    mean: Required[float]
    low: Required[float]
    high: Required[float]
    prompts: int  # that the mean is of, only if others lack the number
    families: int  # of prompts, only if they are too few (`leftover.metrics.FEW_CLUSTERS`) for the interval to tell


class Difference(TypedDict):
    """Two policies compared prompt by prompt: the first minus the second."""

    difference: IntervalRecord
    by_seed: dict[int, float]
    win_rate: float


Records = list[CompletionRecord]
BySeed = dict[str, dict[int, Records]]  # subject (a policy or "reference") -> seed -> completions
# A subject's row of results: name of a `leftover.evaluation.measures.Measure` -> number or IntervalRecord, and beside
# them `seeds`, `reward_by_seed`, and `reward/<component>` and `judge/<name>`, which differ from run to run.
ResultRow = dict[str, Any]
