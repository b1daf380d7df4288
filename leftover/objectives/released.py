"""The objectives in which the released code differs from ours (github.com/abaheti95/LoL-RL), for `released_code: true`.

Two scripts were released: `assistant` (lolrl_qlora_llama_hh.py) and `tasks`
(train_generation_task_with_off_policy_PG.py). docs/paper.md lists what they do and ours does not.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from leftover.objectives import pointwise
from leftover.objectives.batch import CompletionBatch, NoSettings, Objective, log_ratio, positive, sequence_logprobs
from leftover.objectives.pointwise import ClipSettings, sequence_importance
from leftover.objectives.settings import CHECKED, NonNegative, dataclass


@dataclass(frozen=True, config=CHECKED)
class NoClipSettings(ClipSettings):
    clip: NonNegative | None = None


@dataclass(frozen=True, config=CHECKED)
class AssistantKLSettings:
    beta: NonNegative = 0.0
    clip: NonNegative | None = 0.9  # used where beta is 0; the script stops where both are 0


@dataclass(frozen=True, config=CHECKED)
class TasksKLSettings:
    beta: NonNegative = 0.2  # the script has no default; its README's


def _zero_is_no_clip(settings: ClipSettings) -> ClipSettings:
    return ClipSettings(settings.clip or None)


def assistant_r_lol(batch: CompletionBatch, settings: ClipSettings) -> Float[Tensor, " B"]:
    """r_lol, where a clip of 0 means no clipping: the script clips sequence weights only where ppo_clip > 0."""
    return pointwise.r_lol(batch, _zero_is_no_clip(settings))


def assistant_a_lol(batch: CompletionBatch, settings: ClipSettings) -> Float[Tensor, " B"]:
    """a_lol, but a clip of 0 means no clipping."""
    return pointwise.a_lol(batch, _zero_is_no_clip(settings))


def assistant_a_lol_ref_free(batch: CompletionBatch, settings: NoSettings) -> Float[Tensor, " B"]:
    """a_lol_ref_free without max(A, 0): rows of negative advantage are pushed down.

    loss = -A lp
    """
    return -batch.advantage * sequence_logprobs(batch.logprobs, batch.mask)


def released_a_lol_kl(batch: CompletionBatch, settings: TasksKLSettings) -> Float[Tensor, " B"]:
    """a_lol_kl with the divergence on every row, leftover or not.

    loss = -max(A, 0) lp + beta (lp - lq)
    """
    penalty = settings.beta * log_ratio(batch)
    return -positive(batch.advantage) * sequence_logprobs(batch.logprobs, batch.mask) + penalty


def assistant_a_lol_kl(batch: CompletionBatch, settings: AssistantKLSettings) -> Float[Tensor, " B"]:
    """The script has no branch a_lol_kl: it is a_lol with --kl_beta, and with the default of 0 a_lol itself."""
    if settings.beta > 0:
        return released_a_lol_kl(batch, TasksKLSettings(settings.beta))
    return assistant_a_lol(batch, ClipSettings(settings.clip))


def released_metrics(batch: CompletionBatch, settings: TasksKLSettings) -> dict[str, Tensor]:
    """The share of rows that the divergence outweighs."""
    return {"advantage/frac_below_beta": (torch.clamp(batch.advantage, min=0) < settings.beta).float()}


def released_objectives(ours: dict[str, Objective]) -> dict[str, dict[str, Objective]]:
    """script -> name -> the entry in place of ours; objectives that do not differ are absent."""
    kl = replace(ours["a_lol_kl"], metrics=released_metrics)
    return {
        "assistant": {
            "r_lol": replace(ours["r_lol"], loss=assistant_r_lol),
            "a_lol": replace(ours["a_lol"], loss=assistant_a_lol),
            "a_lol_ref_free": replace(ours["a_lol_ref_free"], loss=assistant_a_lol_ref_free),
            "a_lol_kl": replace(
                kl, loss=assistant_a_lol_kl, settings=AssistantKLSettings, importance_weights=sequence_importance
            ),
        },
        "tasks": {name: replace(ours[name], settings=NoClipSettings) for name in ("r_lol", "a_lol", "a_lol_seq")}
        | {"a_lol_kl": replace(kl, loss=released_a_lol_kl, settings=TasksKLSettings, importance_weights=None)},
    }
