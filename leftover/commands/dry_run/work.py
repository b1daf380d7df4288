"""How much a run computes: optimizer steps, completions to generate, floating-point operations."""

import math
from dataclasses import dataclass

import numpy as np

from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.shape import Shape
from leftover.objectives import Objective
from leftover.objectives.requirements import check_groups
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.recipe.ppo_config import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.training.selection import run_order

LEFTOVER = "leftover (A > 0)"
GROUPS = "prompts with several rows"
BEST = "the best of every prompt"


@dataclass(frozen=True)
class Amount:
    """A number of rows or completions with their tokens. `bound`: it is the most there can be."""

    rows: int
    tokens: float  # fed to the model
    squared_tokens: float  # sum over rows
    completion_tokens: float
    bound: bool = False

    def operations(self, shape: Shape) -> float:
        """Floating-point operations of a forward pass, two a multiply-add: trunk, causal attention, head."""
        attention = shape.layers * shape.hidden * self.squared_tokens
        return 2 * (shape.trunk * self.tokens + attention + shape.head * self.completion_tokens)


@dataclass(frozen=True)
class Training:
    """One training: a policy with one seed, or the reference."""

    name: str
    selected: str  # which rows it draws from
    rows_per_step: int
    steps: int | None = None  # None: unknown until the rows are downloaded
    qualifier: str = ""  # of the steps: "", about, at most
    seen: Amount | None = None
    evaluations: int = 0
    further_passes: int = 0  # forward, at every step: of checkpointing, or without gradients
    runs: int = 1  # seeds
    saves: int | None = None  # checkpoints that it writes; None: unknown
    rollouts: int = 0  # completions that it writes before a round of steps
    rollout_steps: int = 0  # such rounds
    rollout_batch: int = 1  # completions that are written together

    def operations(self, shape: Shape) -> float:
        """Of all steps of one run, once its rows are known: forward once, backward twice (once to frozen weights)."""
        assert self.seen is not None
        passes = (2 if shape.adapter else 3) + self.further_passes
        return passes * self.seen.operations(shape) + 6 * shape.adapter * self.seen.tokens


class Sizes:
    """The recipe's rows in numbers; if they cannot be read, the most that the recipe's limits allow."""

    def __init__(self, recipe: Recipe, rows: Rows | str):
        self.recipe, self.data = recipe, recipe.data
        self.rows = rows if isinstance(rows, Rows) else None
        self.tokens = None if self.rows is None else self.rows.lengths

    def lengths(self, split: str | None, chosen_only: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Prompt and completion tokens of the rows of a split (None: of all); the limits if they are unknown."""
        if self.rows is None:
            shares = {"validation": self.data.validation_size, "test": self.data.test_size}
            most = self.data.max_rows
            return None if most is None else self.limits(round(most * shares.get(str(split), 1.0)))
        inside = self.rows.where(split, chosen_only)
        return self.limits(int(inside.sum())) if self.tokens is None else self.tokens.of(inside)

    def prompts(self, split: str, most: int) -> int:
        """Unique prompts of a split, at most `most`."""
        return most if self.rows is None else min(most, self.rows.prompts(split))

    def amount(
        self,
        split: str | None,
        most_prompts: int | None = None,
        most_tokens: int | None = None,
        most_of_a_prompt: int | None = None,
    ) -> Amount | None:
        """Rows of a split (None: of all), at most those of `most_prompts`, or of `most_tokens`; None if unknown."""
        lengths = self.lengths(split)
        if lengths is None:
            return None
        number = len(lengths[0])
        if most_prompts is not None and self.rows is None:
            number = min(number, most_prompts)  # as if each had one row
        elif most_prompts is not None and self.rows is not None and split is not None:
            of_prompt = np.unique(self.rows.group[self.rows.where(split)], return_counts=True)[1]
            kept = of_prompt * (number / of_prompt.sum())
            read = np.minimum(kept, most_of_a_prompt or number).sum()
            number = round(read * min(1.0, most_prompts / len(of_prompt)))
        if most_tokens is not None:
            number = max(1, int(((lengths[0] + lengths[1]).cumsum() <= most_tokens).sum()))
        return _amount(lengths[0][:number], lengths[1][:number], bound=self.tokens is None)

    def generated(self, prompts: int) -> Amount:
        """One completion for each of `prompts`, as long as it may be."""
        mean = self.data.max_prompt_tokens if self.tokens is None else float(self.tokens.prompts.mean())
        new = self.recipe.max_new_tokens
        return Amount(prompts, prompts * (mean + new), prompts * (mean + new) ** 2, prompts * new, True)

    def written(self) -> float:
        """Tokens until a batch of completions is done: as long as seven rows in eight are, when the rest goes on in
        other batches."""
        new = float(self.recipe.max_new_tokens)
        if self.tokens is None:
            return new
        return min(new, float(np.quantile(self.tokens.completions[self.tokens.kept], 7 / 8)))

    def at_once(self, batch_size: int) -> int:
        """Completions that are written together: a batch, or as many as `evaluate.max_batch_tokens` allows."""
        prompt = self.data.max_prompt_tokens if self.tokens is None else float(self.tokens.prompts.mean())
        longest = round(prompt) + self.recipe.max_new_tokens
        return max(1, min(batch_size, self.recipe.evaluate.max_batch_tokens // longest))

    def limits(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """`num_rows` rows as long as they may be."""
        return np.full(num_rows, self.data.max_prompt_tokens), np.full(num_rows, self.data.max_completion_tokens)


def _amount(prompts: np.ndarray, completions: np.ndarray, bound: bool) -> Amount:
    fed = prompts.astype(np.float64) + completions - 1
    return Amount(len(fed), float(fed.sum()), float((fed**2).sum()), float(completions.sum()), bound)


def estimate_training(name: str, args: LoLConfig | PPOConfig, sizes: Sizes) -> Training:
    """Steps and rows of a training, by the order that the trainer would draw.

    Which rows have a positive advantage is known once the value is fitted: until then all are counted, and steps that
    follow the number of selected rows are the most there can be.
    """
    if isinstance(args, PPOConfig):
        return _estimate_online(name, args, sizes)
    objective = objective_of(args)
    by_group = objective.unit == "group"
    chosen_only = sizes.data.train_on == "chosen" and not by_group
    share, selected = _selected(args, objective)
    lengths = sizes.lengths("train", chosen_only)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if lengths is None and args.max_steps > 0:
        lengths = sizes.limits(args.max_steps * rows_per_step)
    if lengths is None:
        return Training(name, selected, rows_per_step)
    if selected == BEST and sizes.rows is not None:
        inside = sizes.rows.where("train", chosen_only)
        share = len(np.unique(sizes.rows.group[inside])) / max(1, inside.sum())
    num_rows = max(1, round(share * len(lengths[0])))
    prompts, completions = lengths[0][:num_rows], lengths[1][:num_rows]
    group, drawn = np.arange(num_rows), np.ones(num_rows, bool)
    if sizes.rows is not None:
        group = np.resize(sizes.rows.group[sizes.rows.where("train", chosen_only)], num_rows)
        if by_group:
            check_groups(f"policy '{name}' (objective {args.objective})", objective, group)
            _, member_of, sizes_of_groups = np.unique(group, return_inverse=True, return_counts=True)
            drawn = sizes_of_groups[member_of] > 1
    columns = {"length": prompts + completions, "group": group}
    order, steps = run_order(args, columns, drawn, drawn.astype(np.float64))
    # The released code shortens a run by the share of leftover rows even if it has `max_steps`.
    fixed = args.max_steps > 0 and not (args.released_code and selected == LEFTOVER)
    if fixed:
        qualifier = ""
    elif sizes.rows is None or selected in (LEFTOVER, GROUPS):
        qualifier = "at most"
    else:
        qualifier = "" if sizes.tokens is not None and sizes.tokens.exact else "about"
    bound = qualifier == "at most" or sizes.tokens is None
    seen = _amount(prompts[order.indices], completions[order.indices], bound)
    if args.max_tokens_per_batch or by_group or args.whole_groups:
        rows_per_step = round(len(order.indices) / steps)
    mismatched = "mismatched_logratio" in objective.needs(objective_settings(args))
    further = bool(args.gradient_checkpointing) + mismatched
    evaluations, saves = _times(args, "eval", steps), _times(args, "save", steps)
    return Training(name, selected, rows_per_step, steps, qualifier, seen, evaluations, further, saves=saves)


def _estimate_online(name: str, args: PPOConfig, sizes: Sizes) -> Training:
    """A completion is written, scored by the policy and by the reference: as much as training on it once more."""
    selected = "its own completions"
    if sizes.rows is None and args.max_steps <= 0 and args.total_episodes is None:
        return Training(name, selected, args.rows_per_update)
    num_ppo_steps = args.num_ppo_steps(1 if sizes.rows is None else sizes.rows.prompts("train"))
    steps = num_ppo_steps * args.updates_per_step
    seen = sizes.generated(num_ppo_steps * args.rollouts_per_step * (args.ppo_epochs + 1))
    further = int(bool(args.gradient_checkpointing))
    evaluations, saves = _times(args, "eval", steps), _times(args, "save", steps)
    return Training(
        name, selected, args.rows_per_update, steps, "", seen, evaluations, further, saves=saves,
        rollouts=args.rollouts_per_step, rollout_steps=num_ppo_steps, rollout_batch=args.rollout_batch_size,
    )  # fmt: skip


def _selected(args: LoLConfig, objective: Objective) -> tuple[float, str]:
    """The share of training rows that is known before the value is fitted, and what it is called."""
    rows = objective.rows if args.rows == "auto" else args.rows
    if rows == "top":
        return args.top_percent / 100, f"top {args.top_percent:g} % by reward"
    if rows == "leftover":
        return 1.0, LEFTOVER
    if rows == "best":
        return 1.0, BEST
    return 1.0, GROUPS if objective.unit == "group" else "all"


def _times(args: LoLConfig | PPOConfig, what: str, steps: int) -> int:
    """How often the Trainer evaluates (eval) or saves (save): every so many steps (a share of the run below 1), and at
    the end."""
    strategy, cadence = getattr(args, f"{what}_strategy"), getattr(args, f"{what}_steps")
    if strategy != "steps":
        return math.ceil(args.num_train_epochs) if strategy == "epoch" else int(strategy == "best")
    assert cadence is not None  # transformers sets it
    every = math.ceil(steps * cadence) if cadence < 1 else int(cadence)
    return math.ceil(steps / every)
