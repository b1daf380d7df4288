"""Every objective, declared once: `OBJECTIVES[name]` has its loss, settings, needs and unit."""

from leftover.objectives import groups, groupwise, offline, pointwise
from leftover.objectives.batch import Columns, CompletionBatch, NoSettings, Objective
from leftover.objectives.released import released_objectives

_REWARD = frozenset({"reward"})
_WEIGHT = frozenset({"reward", "nonnegative_reward"})
_ADVANTAGE = frozenset({"reward", "value", "advantage"})
_REFERENCE = frozenset({"reference_logprobs"})

# The paper's, and its controls by the same rows.
_PAPER: dict[str, Objective] = {
    "nll": Objective(pointwise.nll),
    "nll_top": Objective(pointwise.nll, requires=_REWARD, rows="top"),
    "wbc": Objective(pointwise.wbc, requires=_WEIGHT, draw_by="reward"),
    "r_gold": Objective(pointwise.r_gold, pointwise.FloorSettings, _WEIGHT, draw_by="reward"),
    "r_lol": Objective(
        pointwise.r_lol,
        pointwise.ClipSettings,
        _WEIGHT | _REFERENCE,
        draw_by="reward",
        importance_weights=pointwise.sequence_importance,
    ),
    "a_lol": Objective(
        pointwise.a_lol,
        pointwise.ClipSettings,
        _ADVANTAGE | _REFERENCE,
        rows="leftover",
        draw_by="advantage",
        importance_weights=pointwise.sequence_importance,
    ),
    "a_lol_ref_free": Objective(pointwise.a_lol_ref_free, requires=_ADVANTAGE, rows="leftover", draw_by="advantage"),
    "a_lol_seq": Objective(
        pointwise.a_lol_seq,
        pointwise.ClipSettings,
        _ADVANTAGE | _REFERENCE,
        rows="leftover",
        draw_by="advantage",
        importance_weights=pointwise.token_importance,
    ),
    "a_lol_kl": Objective(
        pointwise.a_lol_kl,
        pointwise.KLSettings,
        _ADVANTAGE | _REFERENCE,
        rows="leftover",
        draw_by="advantage",
        importance_weights=pointwise.sequence_importance,
        metrics=pointwise.kl_metrics,
    ),
}

_GROUPWISE: dict[str, Objective] = {
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
        importance_weights=groupwise.grpo_importance,
    ),
}

_OFFLINE: dict[str, Objective] = {
    "awr": Objective(offline.awr, offline.AWRSettings, _ADVANTAGE | {"advantage_scale"}, metrics=offline.awr_metrics),
    "kto": Objective(
        offline.kto,
        offline.KTOSettings,
        _REWARD | _REFERENCE | {"mismatched_logratio"},
        also_requires=lambda settings: _ADVANTAGE if settings.threshold is None else frozenset(),
        metrics=offline.kto_metrics,
    ),
    "dro": Objective(
        offline.dro, offline.DROSettings, _REWARD | _REFERENCE | {"soft_value"}, metrics=offline.dro_metrics
    ),
    "qrpo": Objective(
        offline.qrpo, offline.QRPOSettings, _REWARD | _REFERENCE | {"reward_quantile"}, metrics=offline.qrpo_metrics
    ),
    "var": Objective(offline.var, offline.VARSettings, _REWARD | {"log_normaliser"}),
}

OBJECTIVES: dict[str, Objective] = _PAPER | _GROUPWISE | _OFFLINE

# What the released scripts have in the place of ours, for `released_code: true`: script -> name -> objective.
RELEASED: dict[str, dict[str, Objective]] = released_objectives(OBJECTIVES)

__all__ = ["OBJECTIVES", "RELEASED", "Columns", "CompletionBatch", "NoSettings", "Objective"]
