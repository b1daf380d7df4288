"""How long a run that has read its rows will take, measured on this machine before anything is trained."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from leftover.commands.dry_run.estimate import Estimate, estimate_run
from leftover.commands.dry_run.here import OPERATIONS, device
from leftover.commands.dry_run.pace import HERE
from leftover.commands.dry_run.rows import Lengths, Rows
from leftover.commands.dry_run.sources import offline
from leftover.errors import UserError, first_line
from leftover.monitoring.ranks import launched
from leftover.monitoring.terminal import clock
from leftover.runs.run import Run
from leftover.store.table import column, equals, list_lengths

log = logging.getLogger(__name__)

_WORTH_IT = 2e11  # operations: a run of fewer is over about as soon as the machine is timed
_OF_THE_RUN = 0.1  # what the timing may take of it; it takes about as much as so many training steps:
_TIMED_STEPS = 10


def tell_time(run: Run, until: str) -> None:
    """Log about how long a run takes up to a stage; call it once its rows are tokens.

    Nothing is told of a run that has a reference already, of one so short that the timing would be a good part of it,
    and where several processes share the work.
    """
    if launched() > 1 or run.manifest.is_complete("reference") or run.table.has("reference"):
        return
    try:
        rows = rows_of(run)
        with offline(), _random_state_kept():
            if not _worth_timing(estimate_run(run.recipe, until, rows=rows, with_memory=False)):
                return
            told = _text(estimate_run(run.recipe, until, rows=rows, with_memory=False, device=HERE))
    except (
        Exception
    ) as error:  # a model too large to be timed, or of a kind that few layers do not make: the run goes on
        told = f"How long the run takes is not known ({error if isinstance(error, UserError) else first_line(error)})"
    log.info("%s", told)


def _worth_timing(estimate: Estimate) -> bool:
    whole = sum(line.operations or 0.0 for line in estimate.work)
    steps = [0.0]
    if estimate.shape is not None:
        known = [training for training in estimate.trainings if training.seen is not None and training.steps]
        steps += [training.operations(estimate.shape) / (training.steps or 1) for training in known]
    timing = _TIMED_STEPS * min(max(steps), OPERATIONS[device().type])
    return whole >= max(_WORTH_IT, timing / _OF_THE_RUN)


def rows_of(run: Run) -> Rows:
    """The rows of a run's table, as the dry run reads those of a recipe; only their lengths and marks are held."""
    table = run.table.open("rows", "split", "tokens")
    group, family = (column(table, name) for name in ("group", "family_id"))
    split = np.where(equals(table, "split", "train"), "train", "validation")
    split[equals(table, "split", "test")] = "test"
    kept, long = equals(table, "kept", True), equals(table, "completion_long", True)
    lengths = Lengths(
        list_lengths(table, "prompt_ids"),
        list_lengths(table, "completion_ids"),
        kept,
        len(kept),
        float((kept & long).mean()),
    )
    recorded = column(table, "recorded_reward").astype(np.float64)
    return Rows({}, group, family, split, equals(table, "is_chosen", True), recorded, 0, lengths)


def _text(estimate: Estimate) -> str:
    seconds = [line.seconds_on(1) for line in estimate.work]
    training = sum(line.seconds_on(1) or 0.0 for line in estimate.work if line.what.startswith("train "))
    whole = sum(filter(None, seconds))
    least = "at least " if None in seconds else ""
    return (
        f"The rest takes about {least}{rounded(whole)}, {rounded(training)} of it training steps "
        "(timed just now, if the machine stays as busy as it is)"
    )


def rounded(seconds: float) -> str:
    """As precise as an estimate is: `40 s`, `4 min`, `2 h 10 min`."""
    if seconds < 50:
        return f"{max(10, 10 * round(seconds / 10))} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else clock(600 * round(seconds / 600))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """What is drawn inside changes no number that is drawn later."""
    own, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)
