"""Scorers that a run fine-tunes first: what that computes and holds."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from leftover.commands.dry_run.here import measured_fit
from leftover.commands.dry_run.trace import Live, try_to_trace
from leftover.errors import UserError
from leftover.models.load import torch_dtype
from leftover.recipe.sections import Recipe, autocast_dtype
from leftover.rewards import SumReward, learner
from leftover.rewards.examples import hold_out, read_examples
from leftover.rewards.fine_tuned import FineTunedReward, Plan
from leftover.rewards.reward_trainer import Item

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitting:
    """The fine-tuning of one scorer; None: unknown until its model or its rows are here."""

    name: str
    rows: int | None = None
    steps: int | None = None  # at most: a loss that no longer falls ends it
    operations: float | None = None
    weight_bytes: int = 0
    passing: int | None = None  # the peak of a step, beside weights and optimizer states
    seconds: float | None = None  # of all of it on this machine, if it is measured
    row_seconds: float | None = None  # of scoring a row with it


def fittings(
    recipe: Recipe, rewards: dict[str, SumReward | None], with_memory: bool, with_time: bool = False
) -> list[Fitting]:
    """One for every scorer that is fine-tuned on rows, of `reward` and `judge`.

    Without memory no pass is traced; with time each is timed on this machine. Raises UserError for rows that the run
    would refuse.
    """
    found = []
    for purpose, reward in rewards.items():
        for name, component in ({} if reward is None else reward.components).items():
            scorer = learner(component)
            if isinstance(scorer, FineTunedReward) and scorer.path is None:
                found.append(_fitting(f"{purpose} {name}", scorer, recipe, with_memory, with_time))
    return found


def _fitting(name: str, scorer: FineTunedReward, recipe: Recipe, with_memory: bool, with_time: bool) -> Fitting:
    data = recipe.data if scorer.data is None else scorer.data
    if not all(Path(path).is_file() for path in data.paths):
        return Fitting(name)
    try:
        tokenizer, model = scorer.start(weights=False)
    except UserError as error:
        log.debug("the model of %s is not here", name, exc_info=error)
        return Fitting(name)
    settings = scorer.settings
    examples, _ = read_examples(data, None, settings.target)
    taught = examples.take(~hold_out(examples, settings.held_out, settings.seed))
    plan = scorer.plan(Path(), taught, tokenizer, model)
    args, rows = plan.args, plan.args.train_batch_size * plan.args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * -(-len(plan.train) // rows))
    epochs, dtype = steps * rows / len(plan.train), autocast_dtype(settings.train)
    seconds = row_seconds = None
    if with_time:
        step_seconds, row_seconds = measured_fit(model, plan, dtype)
        seconds = steps * step_seconds + epochs * len(plan.choosing) * row_seconds
    return Fitting(
        name,
        len(plan.train),
        steps,
        _operations(model, plan, epochs),
        sum(p.nbytes for p in model.parameters()),
        try_to_trace(_passing, model, plan, dtype) if with_memory else None,
        seconds,
        row_seconds,
    )


def _operations(model: Any, plan: Plan, epochs: float) -> float:
    """Of forward and backward passes over the rows that train, and forward ones over those that choose, once an epoch;
    two a multiply-add of the weights that every token meets."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    trained, chosen = (sum(len(t["input_ids"]) for row in rows for t in row[0]) for rows in (plan.train, plan.choosing))
    return 2.0 * weights * epochs * (3 * trained + chosen)


def _passing(model: Any, plan: Plan, dtype: str | None) -> int:
    """The peak of a step on the longest rows, or of scoring the rows that choose."""
    args, mode = plan.args, FakeTensorMode()
    compute = None if dtype is None else torch_dtype(dtype)

    def peak(rows: list[Item], batch_size: int, training: bool) -> int:
        texts = [text for row in rows[:batch_size] for text in row[0]]
        width = max(len(text["input_ids"]) for row in rows for text in row[0])
        with Live(model) as live, torch.set_grad_enabled(training), torch.autocast("cpu", compute, compute is not None):
            ids = torch.zeros(len(texts), width, dtype=torch.int64)
            scores = model.train(training)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().sum()
            if training:
                scores.backward()
        return live.peak

    with mode:
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        step = peak(plan.train, args.train_batch_size, True)
        model.zero_grad()
        return max(step, peak(plan.choosing, args.eval_batch_size, False))
