"""What an evaluation measures, by the names that `metric_for_best_model` takes."""

import re
from collections.abc import Sequence

from leftover.errors import UserError, nearest

ROW_METRICS = ("nll", "perplexity", "logratio/rank_correlation", "logratio/pair_accuracy")
# Of pairs, under TRL's names: implicit rewards are log-ratios with the reference, times beta.
PAIR_METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
)  # fmt: skip
COMPLETION_METRICS = ("reward/mean", "reward/std", "completions/distinct_2", "completions/mean_length")
DIVERGENCE_METRICS = ("kl", "entropy", "kl/standard_error")
# Of new completions with rewards, of rows with recorded ones, of other rows.
DEFAULTS = ("reward/mean", "logratio/rank_correlation", "nll")

_ALL = (*ROW_METRICS, *PAIR_METRICS, *COMPLETION_METRICS, "completions/ended", *DIVERGENCE_METRICS)
_LOWER_IS_BETTER = ("nll", "perplexity", "kl", "kl/standard_error", "rewards/rejected", "logps/rejected")


def higher_is_better(metric: str) -> bool | None:
    """Which way a metric is better, also of one of several data sets (`eval_mine_nll`); None if it is none of ours."""
    asked = metric.removeprefix("eval_")
    known = [name for name in _ALL for written in (name, _short(name)) if f"_{asked}".endswith(f"_{written}")]
    return known[0] not in _LOWER_IS_BETTER if known else None


def produced_metric(metric: str, names: Sequence[str], key: str = "metric_for_best_model") -> str:
    """The one of `names` that is asked for, with or without `eval_` and its group (`logratio/`, `rewards/`).

    Raises UserError with the names, which begins with `key`, if it is not among them.
    """
    meant = _meant(metric, names)
    if len(meant) == 1:
        return meant[0]
    asked = metric.removeprefix("eval_")
    listed = ", ".join(f"eval_{name}" for name in names) or "none"
    close = nearest(asked, names)
    raise UserError(f"{key}: an evaluation of these rows gives no '{metric}'{close or ';'} it gives {listed}")


def is_of_rows(metric: str | None) -> bool:
    """Whether a metric tells of given completions, not of new ones."""
    return metric is not None and bool(_meant(metric, ROW_METRICS))


def _meant(metric: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that `metric` may stand for, with or without `eval_` and their group."""
    asked = metric.removeprefix("eval_")
    return [name for name in names if asked in (name, _short(name))]


def _short(name: str) -> str:
    return re.sub(r"(logratio|rewards|logps)/", "", name)
