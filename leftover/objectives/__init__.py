"""Every objective, declared once: `OBJECTIVES[name]` has its loss, its settings and what it needs of the rows.

Installed packages add theirs by an entry point (`registry.py`).
"""

from functools import partial

from leftover.objectives import groups, groupwise, offline, pointwise
from leftover.objectives.batch import Columns, CompletionBatch, NoSettings, Objective
from leftover.objectives.pointwise import ClipSettings, sequence_importance, token_importance
from leftover.objectives.registry import Registry
from leftover.objectives.released import released_objectives

_REWARD = frozenset({"reward"})
_WEIGHT = frozenset({"reward", "nonnegative_reward"})
_ADVANTAGE = frozenset({"reward", "value", "advantage"})
_REFERENCE = frozenset({"reference_logprobs"})
_A_LOL = _ADVANTAGE | _REFERENCE

_by_reward = partial(Objective, draw_by="reward")
_of_leftover = partial(Objective, rows="leftover", draw_by="advantage")

_OWN: dict[str, Objective] = {
    # The paper's, and its controls on the same rows.
    "nll": Objective(pointwise.nll),
    "nll_top": Objective(pointwise.nll, requires=_REWARD, rows="top"),
    "wbc": _by_reward(pointwise.wbc, requires=_WEIGHT),
    "r_gold": _by_reward(pointwise.r_gold, pointwise.FloorSettings, _WEIGHT),
    "r_lol": _by_reward(pointwise.r_lol, ClipSettings, _WEIGHT | _REFERENCE, importance_weights=sequence_importance),
    "a_lol": _of_leftover(pointwise.a_lol, ClipSettings, _A_LOL, importance_weights=sequence_importance),
    "a_lol_ref_free": _of_leftover(pointwise.a_lol_ref_free, requires=_ADVANTAGE),
    "a_lol_seq": _of_leftover(pointwise.a_lol_seq, ClipSettings, _A_LOL, importance_weights=token_importance),
    "a_lol_kl": _of_leftover(
        pointwise.a_lol_kl,
        pointwise.KLSettings,
        _A_LOL,
        importance_weights=sequence_importance,
        metrics=pointwise.kl_metrics,
    ),
    # Of pairs and groups.
    "dpo": Objective(
        groupwise.dpo,
        groupwise.DPOSettings,
        _REWARD,
        also_requires=lambda settings: frozenset() if settings.reference_free else _REFERENCE,
        optional=frozenset({"is_chosen"}),
        unit="group",
        usable=groups.best_and_worst,
        metrics=groupwise.dpo_metrics,
    ),
    "pro": Objective(groupwise.pro, groupwise.PROSettings, _REWARD, unit="group", usable=groups.unequal),
    "grpo_offline": Objective(
        groupwise.grpo_offline,
        groupwise.GRPOSettings,
        _REWARD | _REFERENCE,
        unit="group",
        usable=groups.unequal,
        importance_weights=token_importance,
    ),
    # Others for scored rows.
    "awr": Objective(
        offline.awr,
        offline.AWRSettings,
        _ADVANTAGE | {"advantage_mean", "advantage_scale"},
        row_weight=offline.awr_row_weight,
        metrics=offline.awr_metrics,
    ),
    "kto": Objective(
        offline.kto,
        offline.KTOSettings,
        _REWARD | _REFERENCE | {"mismatched_logratio"},
        also_requires=lambda settings: _ADVANTAGE if settings.threshold is None else frozenset(),
        optional=frozenset({"label"}),
        metrics=offline.kto_metrics,
    ),
    "dro": Objective(
        offline.dro, offline.DROSettings, _REWARD | _REFERENCE | {"soft_value"}, metrics=offline.dro_metrics
    ),
    "qrpo": Objective(
        offline.qrpo, offline.QRPOSettings, _REWARD | _REFERENCE | {"reward_quantile"}, metrics=offline.qrpo_metrics
    ),
    "var": Objective(offline.var, offline.VARSettings, _REWARD | {"log_normaliser"}, row_weight=offline.var_row_weight),
}

# The released scripts' variants, for `released_code: true`: script -> name -> objective.
RELEASED: dict[str, dict[str, Objective]] = released_objectives(_OWN)

# Online methods, the other values of a policy's `objective`: they train on their own completions.
ONLINE = ("ppo",)

OBJECTIVES = Registry(_OWN, reserved=ONLINE)

__all__ = ["OBJECTIVES", "ONLINE", "RELEASED", "Columns", "CompletionBatch", "NoSettings", "Objective"]
