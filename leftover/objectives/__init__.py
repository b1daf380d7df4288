"""Every objective, declared once: `OBJECTIVES[name]` has its loss, settings, needs and unit."""

from leftover.objectives.batch import CompletionBatch, NoSettings, Objective
from leftover.objectives.pointwise import (
    ClipSettings,
    FloorSettings,
    KLSettings,
    a_lol,
    a_lol_kl,
    a_lol_ref_free,
    a_lol_seq,
    nll,
    r_gold,
    r_lol,
    sequence_importance,
    token_importance,
    wbc,
)

_REWARD = frozenset({"reward", "nonnegative_reward"})
_ADVANTAGE = frozenset({"reward", "value", "advantage"})
_REFERENCE = frozenset({"reference_logprobs"})

OBJECTIVES: dict[str, Objective] = {
    "nll": Objective(nll),
    "wbc": Objective(wbc, requires=_REWARD, draw_by="reward"),
    "r_gold": Objective(r_gold, FloorSettings, _REWARD, draw_by="reward"),
    "r_lol": Objective(
        r_lol, ClipSettings, _REWARD | _REFERENCE, draw_by="reward", importance_weights=sequence_importance
    ),
    "a_lol": Objective(
        a_lol, ClipSettings, _ADVANTAGE | _REFERENCE, draw_by="advantage", importance_weights=sequence_importance
    ),
    "a_lol_ref_free": Objective(a_lol_ref_free, requires=_ADVANTAGE, draw_by="advantage"),
    "a_lol_seq": Objective(
        a_lol_seq, ClipSettings, _ADVANTAGE | _REFERENCE, draw_by="advantage", importance_weights=token_importance
    ),
    "a_lol_kl": Objective(
        a_lol_kl, KLSettings, _ADVANTAGE | _REFERENCE, draw_by="advantage", importance_weights=sequence_importance
    ),
}

__all__ = ["OBJECTIVES", "CompletionBatch", "NoSettings", "Objective"]
