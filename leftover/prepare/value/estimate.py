"""V for every row, by one of three kinds of targets; rows that share a prompt share a value (except with group_loo)."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from leftover.errors import UserError
from leftover.objectives.advantage import beyond_rounding
from leftover.prepare.value.described import constant_folds, described
from leftover.prepare.value.fit import FittedValue, Problem, Some, family_folds, fit_value, held_out_r2, r_squared
from leftover.prepare.value.own_samples import with_own_samples
from leftover.recipe.sections import ValueSection
from leftover.rewards.unfinished import NONE_ENDED

log = logging.getLogger(__name__)

# Hidden states kept in memory for the attention head.
_MAX_HIDDEN_BYTES = 2 * 2**30
_CHUNK = 2048
_FITTED_TO = {
    "reference_samples": "the scores of answers that the reference wrote",
    "recorded": "the scores of the rows",
    "group_loo": "the other answers of every prompt",
}


@dataclass
class RowConstants:
    """What the value needs to know of N rows: arrays [N], and the pooled prompt features [N, 2 H]."""

    group: np.ndarray
    family: np.ndarray
    reward: np.ndarray
    is_train: np.ndarray
    features: Any  # an array, or `table.SomeLists`, which reads rows when they are indexed
    prompt_ids: Sequence[Sequence[int]]


class Prompts:
    """The unique prompts of the rows: `first[g]` is a row of prompt g, `of_row[i]` the prompt of row i."""

    def __init__(self, rows: RowConstants, hidden: Callable | None):
        _, self.first, self.of_row = np.unique(rows.group, return_index=True, return_inverse=True)
        self.rows, self._hidden = rows, hidden
        self.family = rows.family[self.first]
        # A user's own splits may cut through a prompt: it counts as seen if any of its rows trains.
        self.is_train = np.bincount(self.of_row, rows.is_train) > 0
        self.teaches = np.isfinite(rows.reward) & rows.is_train  # of rows
        self._kept: dict[int, Tensor] = {}

    def mean_rewards(self) -> np.ndarray:
        """The mean reward of every prompt's training rows, NaN without one."""
        size, reward, group = len(self.first), self.rows.reward[self.teaches], self.of_row[self.teaches]
        counts = np.bincount(group, minlength=size)
        return np.bincount(group, reward, minlength=size) / np.where(counts, counts, np.nan)

    def keep_hidden(self, prompts: np.ndarray, settings: ValueSection) -> None:
        """Compute the hidden states of the prompts and keep them, if the attention head is to be tried."""
        if "head" not in settings.candidates:
            return
        tokens = sum(len(self.rows.prompt_ids[int(self.first[p])]) for p in prompts)
        size = tokens * self.rows.features.shape[1] // 2 * 4
        if size > _MAX_HIDDEN_BYTES:
            log.warning(
                "value: the attention head is not tried: hidden states of %d prompts would take %.1f GiB; lower "
                "value.num_prompts, or give fewer rows, to try it",
                len(prompts),
                size / 2**30,
            )
            return
        self._kept = dict(zip(prompts.tolist(), self._states(prompts), strict=True))

    def problem(self, prompts: np.ndarray, targets: np.ndarray) -> Problem:
        """The given prompts, to be fitted to these targets; hidden states are those that were kept."""
        hidden = [self._kept[p] for p in prompts.tolist()] if self._kept else None
        return Problem(Some(self.rows.features, self.first[prompts]), targets, self.family[prompts], hidden)

    def predict(self, fitted: FittedValue, prompts: np.ndarray) -> np.ndarray:
        """V of the given prompts; hidden states that are not kept are computed in chunks and dropped."""
        if fitted.kind != "head":
            return fitted.predict(Some(self.rows.features, self.first[prompts]))
        values = [np.empty(0)]
        for start in range(0, len(prompts), _CHUNK):
            chunk = prompts[start : start + _CHUNK]
            values.append(fitted.predict(Some(self.rows.features, self.first[chunk]), self._states(chunk)))
        return np.concatenate(values)

    def _states(self, prompts: np.ndarray) -> list[Tensor]:
        """Last hidden states of the given prompts; the base runs once over those that are not kept."""
        missing = [p for p in prompts.tolist() if p not in self._kept]
        states = dict(self._kept)
        if missing:
            assert self._hidden is not None
            found = self._hidden([self.rows.prompt_ids[int(self.first[p])] for p in missing])
            states |= {missing[i]: hidden for i, hidden in found}
        return [states[p] for p in prompts.tolist()]


def estimate_values(
    rows: RowConstants,
    settings: ValueSection,
    targets: str,
    *,
    seed: int,
    hidden: Callable[[list[Sequence[int]]], Iterable[tuple[int, Tensor]]] | None = None,
    sample_rewards: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """V of every row, [N] float64, and a report: the targets, the estimate chosen, its held-out R2.

    Args:
        targets: reference_samples, recorded or group_loo (docs/paper.md, "The value estimate").
        hidden: for the attention head; given token ids of prompts, (i, last hidden states [L_i, H]) of each.
        sample_rewards: with reference_samples; given row indices, one for each prompt to sample for, the mean
            reward of completions sampled from the reference; NaN if none of them has a reward.
    """
    prompts = Prompts(rows, hidden)
    if targets == "group_loo":
        values, report = _group_loo(prompts)
    elif targets == "recorded":
        values, report = _recorded(prompts, settings, seed)
    else:
        assert sample_rewards is not None
        values, report = _reference_samples(prompts, settings, seed, sample_rewards)
    if settings.bounds is not None:
        values = np.clip(values, *settings.bounds)
        if "constants" in report:
            report["constants"] = np.clip(report["constants"], *settings.bounds).tolist()
    if not np.isfinite(report["r2"]):
        report["r2"] = None  # too few prompts to hold any out, or targets without spread
    log.info(
        "value: %s, from %s (%s prompts), held-out R2 %s",
        described(report),
        _FITTED_TO[targets],
        f"{report['num_prompts']:,}",
        f"{report['r2']:.3f}" if report["r2"] is not None else "not known",
    )
    if report["kind"] == "constant" and not report.get("own_samples_weight"):
        log.warning("value: nothing beat the constant on held-out prompts; V(x) is the mean reward for every prompt")
    elif said := constant_folds(report):
        log.warning("value: %s; there V(x) is the mean reward of the other folds", said)
    return values, {"targets": targets, **report}


def _reference_samples(
    prompts: Prompts, settings: ValueSection, seed: int, sample_rewards: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The definition: regress rewards of the reference's own completions on prompt features."""
    available = np.flatnonzero(prompts.is_train)
    assert isinstance(settings.num_prompts, int), "auto depends on the recipe's model"
    chosen = np.sort(np.random.default_rng(seed).permutation(available)[: settings.num_prompts])
    targets = sample_rewards(prompts.first[chosen])
    known = ~np.isnan(targets)
    if not known.any():
        raise UserError(f"value.targets: reference_samples: none of the reference's completions {NONE_ENDED}")
    if not known.all():
        log.warning("value: %d of %d prompts have no target: none of their samples ended", sum(~known), len(known))
        chosen, targets = chosen[known], targets[known]
    prompts.keep_hidden(chosen, settings)
    problem = prompts.problem(chosen, targets)
    r2 = held_out_r2(problem, settings, seed)
    fitted = fit_value(problem, settings, seed)
    values = prompts.predict(fitted, np.arange(len(prompts.first)))
    report = {"kind": fitted.kind, "r2": r2, "scores": fitted.scores, "num_prompts": len(chosen)}
    report |= {"mean_reward_of_reference": float(np.mean(targets))}
    if settings.own_samples:
        values[chosen], own = with_own_samples(problem, prompts.mean_rewards()[chosen], settings, seed)
        report |= own
    return values[prompts.of_row], report


def _recorded(prompts: Prompts, settings: ValueSection, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Regress recorded rewards on prompt features, cross-fitted: no row's V comes from a fit that saw its prompt.

    Training prompts are cross-fitted in folds of whole families; the held-out splits, whose rewards fit nothing,
    get the fit on all training prompts.
    """
    size, means = len(prompts.first), prompts.mean_rewards()
    scored = np.flatnonzero(np.isfinite(means))
    if len(scored) == 0:
        raise UserError("value.targets: recorded needs rewards, and no training row has one")
    families = np.unique(prompts.family[prompts.is_train])
    if len(families) < 2:
        raise UserError(
            "value.targets: recorded is cross-fitted by prompt, and all training rows share one prompt family; use "
            "group_loo, or give rows of other prompts"
        )
    prompts.keep_hidden(scored, settings)
    num_folds = min(settings.folds, len(families))
    fold = np.full(size, -1)
    fold[prompts.is_train] = family_folds(prompts.family[prompts.is_train], num_folds, seed)
    values, baseline = np.empty(size), np.empty(size)
    kinds: list[str] = []
    constants: list[float] = []  # of the training folds that took the constant
    rows_by_kind: Counter[str] = Counter()
    for number in [*range(num_folds), -1]:
        seen = scored[fold[scored] != number]
        if len(seen) == 0:
            raise UserError("value.targets: recorded needs scores in at least two prompt families of the training rows")
        target = np.flatnonzero(fold == number)
        fitted = fit_value(prompts.problem(seen, means[seen]), settings, seed)
        values[target] = prompts.predict(fitted, target)
        baseline[target] = means[seen].mean()
        kinds.append(fitted.kind)
        if number != -1:
            rows_by_kind[fitted.kind] += int(np.isin(prompts.of_row[prompts.teaches], target).sum())
            constants += [fitted.intercept] if fitted.kind == "constant" else []
    r2 = r_squared(means[scored], values[scored], baseline[scored])
    kind = kinds[0] if len(rows_by_kind) == 1 else "mixed"
    report = {"kind": kind, "r2": r2, "scores": {}, "num_prompts": len(scored), "kinds_by_fold": kinds}
    return values[prompts.of_row], report | {"rows_by_kind": dict(rows_by_kind), "constants": constants}


def _group_loo(prompts: Prompts) -> tuple[np.ndarray, dict[str, Any]]:
    """The mean reward of the OTHER completions of the prompt; the training mean if there is no other.

    Where a user's own split cuts through a prompt, only its training rows are averaged: a held-out reward is in no V of
    a training row, and in that of a held-out row only if its whole prompt is held out.
    """
    rows, group, size = prompts.rows, prompts.of_row, len(prompts.first)
    scored = np.isfinite(rows.reward)
    counted = scored & (rows.is_train | ~prompts.is_train[group])
    reward = np.where(counted, rows.reward, 0.0)
    sums, sizes = np.bincount(group, reward, minlength=size), np.bincount(group, np.abs(reward), minlength=size)
    others = np.bincount(group[counted], minlength=size)[group] - counted
    # A sum that is 0 but for rounding is 0: three tenths less one and two are not 2.8e-17.
    rest = beyond_rounding(sums[group] - reward, sizes[group])
    alone = int(((others == 0) & scored).sum())
    if alone == scored.sum():
        raise UserError("value.targets: group_loo needs prompts with several scored completions, and none has")
    if alone:
        log.warning("value: %d rows have no other completion of their prompt and get the training mean", alone)
    mean = float(rows.reward[scored & rows.is_train].mean())
    values = np.where(others > 0, rest / np.maximum(others, 1), mean)
    usable = scored & rows.is_train & (others > 0)
    r2 = r_squared(rows.reward[usable], values[usable], mean)
    return values, {"kind": "group_loo", "r2": r2, "scores": {}, "num_prompts": size, "rows_alone": alone}
