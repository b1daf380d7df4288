"""How much a run computes: optimizer steps, completions to generate, floating-point operations."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from leftover.commands.dry_run.rows import Rows
from leftover.commands.dry_run.shape import Shape
from leftover.objectives import Objective
from leftover.objectives.requirements import check_groups
from leftover.recipe.offline import objective_of, objective_settings
from leftover.recipe.online import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.training.selection import run_order

LEFTOVER = "leftover (A > 0)"
GROUPS = "prompts with several rows"


@dataclass(frozen=True)
class Amount:
    """A number of rows or completions with their tokens. `bound`: it is the most there can be."""

    rows: int
    tokens: float  # fed to the model
    squared_tokens: float  # sum over rows
    completion_tokens: float
    bound: bool = False

    def operations(self, shape: Shape) -> float:
        """Of one forward pass over them."""
        return shape.forward_operations(self.tokens, self.squared_tokens, self.completion_tokens)


@dataclass(frozen=True)
class Training:
    """One training: a policy with one seed, or the reference."""

    name: str
    selected: str  # which rows it draws from
    steps: int | None  # None: unknown until the rows are here
    qualifier: str  # of the steps: "", about, at most
    rows_per_step: int
    seen: Amount | None
    evaluations: int
    runs: int = 1  # seeds
    further_passes: int = 0  # forward, without gradients, at every step

    def operations(self, shape: Shape, checkpointing: bool) -> float | None:
        """Of all steps of one run: forward once (twice with checkpointing), backward twice (once to frozen weights)."""
        if self.seen is None:
            return None
        adapter = shape.trainable if shape.trainable < shape.parameters else 0
        passes = (2 if adapter else 3) + checkpointing + self.further_passes
        return passes * self.seen.operations(shape) + 6 * adapter * self.seen.tokens


class Sizes:
    """The recipe's rows in numbers; where they are not here, what the recipe's own limits leave."""

    def __init__(self, recipe: Recipe, rows: Rows | None):
        self.recipe, self.rows, self.data = recipe, rows, recipe.data
        self.max_new_tokens = recipe.evaluate.max_new_tokens or recipe.data.max_completion_tokens

    @property
    def lengths_known(self) -> bool:
        return self.rows is not None and self.rows.lengths is not None

    def lengths(self, split: str | None, chosen_only: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Prompt and completion tokens of the rows of a split (None: of all); the limits where they are unknown."""
        if self.rows is None:
            shares = {"validation": self.data.validation_size, "test": self.data.test_size}
            most = self.data.max_rows
            return None if most is None else self.limits(round(most * shares.get(str(split), 1.0)))
        inside = np.ones(len(self.rows.split), bool) if split is None else self.rows.where(split, chosen_only)
        return self.rows.lengths.of(inside) if self.rows.lengths is not None else self.limits(int(inside.sum()))

    def prompts(self, split: str, most: int) -> tuple[int, bool]:
        """Unique prompts of a split, at most `most`; and whether that is only a bound."""
        return (most, True) if self.rows is None else (min(most, self.rows.prompts(split)), False)

    def amount(self, split: str | None, most_prompts: int | None = None, most_rows: int | None = None) -> Amount | None:
        """Rows of a split (None: of all), or of so many of its prompts, or so many of its rows; None: unknown."""
        lengths = self.lengths(split)
        if lengths is None:
            return None
        number = len(lengths[0])
        if most_prompts is not None and self.rows is not None and split is not None:
            number = round(number * min(1.0, most_prompts / max(1, self.rows.prompts(split))))
        number = min(number, most_rows or number)
        return amount(lengths[0][:number], lengths[1][:number], bound=not self.lengths_known)

    def generated(self, prompts: int) -> Amount:
        """Completions of so many prompts, each as long as it may be."""
        known = self.rows.lengths if self.rows is not None else None
        mean = float(known.prompts.mean()) if known is not None else self.data.max_prompt_tokens
        tokens = mean + self.max_new_tokens
        return Amount(prompts, prompts * tokens, prompts * tokens**2, prompts * self.max_new_tokens, True)

    def limits(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """So many rows as long as they may be."""
        limits = (self.data.max_prompt_tokens, self.data.max_completion_tokens)
        prompts, completions = (np.full(num_rows, limit) for limit in limits)
        return prompts, completions


def amount(prompts: np.ndarray, completions: np.ndarray, bound: bool = False) -> Amount:
    fed = prompts.astype(np.float64) + completions - 1
    return Amount(len(fed), float(fed.sum()), float((fed**2).sum()), float(completions.sum()), bound)


def plan_training(name: str, args: Any, sizes: Sizes, runs: int = 1) -> Training:
    """Steps and rows of a training with the settings `args` (a LoLConfig), by the order that the trainer would draw.

    Which rows have a positive advantage is known once the value is fitted: until then all are counted, and steps that
    follow the number of selected rows are the most there can be.
    """
    if isinstance(args, PPOConfig):
        return _plan_online(name, args, sizes, runs)
    objective = objective_of(args)
    by_group = objective.unit == "group"
    chosen_only = sizes.data.rows == "chosen" and not by_group
    share, selected = _selected(args, objective)
    lengths = sizes.lengths("train", chosen_only)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if lengths is None and args.max_steps <= 0:
        return Training(name, selected, None, "", rows_per_step, None, 0, runs)
    if lengths is None:
        lengths = sizes.limits(args.max_steps * rows_per_step)
    num_rows = max(1, round(share * len(lengths[0])))
    prompts, completions = lengths[0][:num_rows], lengths[1][:num_rows]
    columns = {"length": prompts + completions, "group": _groups(sizes, num_rows, chosen_only)}
    if by_group and sizes.rows is not None:
        check_groups(name, objective, columns["group"])
    drawn = _in_groups(columns["group"]) if by_group and sizes.rows is not None else np.ones(num_rows, bool)
    order, steps = run_order(args, columns, drawn, drawn.astype(np.float64))
    # The released code shortens also a run of so many steps by the share of leftover rows.
    shortened = args.released_code and selected == LEFTOVER
    qualifier = "" if args.max_steps > 0 and not shortened else _qualifier(sizes, selected)
    bound = qualifier == "at most" or not sizes.lengths_known
    seen = amount(prompts[order.indices], completions[order.indices], bound)
    further = int("mismatched_logratio" in objective.needs(objective_settings(args)))
    return Training(name, selected, steps, qualifier, rows_per_step, seen, _evaluations(args, steps), runs, further)


def _plan_online(name: str, args: PPOConfig, sizes: Sizes, runs: int) -> Training:
    """A completion is written, scored by the policy and by the reference: as much as training on it once more."""
    known = sizes.rows is not None
    if not known and args.max_steps <= 0 and args.total_episodes is None:
        return Training(name, "its own completions", None, "", args.rows_per_update, None, 0, runs)
    prompts = sizes.rows.prompts("train") if sizes.rows is not None else 1
    num_ppo_steps = args.num_ppo_steps(prompts)
    steps = num_ppo_steps * args.updates_per_step
    seen = sizes.generated(num_ppo_steps * args.rollouts_per_step * (args.ppo_epochs + 1))
    return Training(name, "its own completions", steps, "", args.rows_per_update, seen, _evaluations(args, steps), runs)


def _qualifier(sizes: Sizes, selected: str) -> str:
    """Of steps that follow the number of selected rows."""
    if sizes.rows is None or selected in (LEFTOVER, GROUPS):
        return "at most"
    known = sizes.rows.lengths
    return "" if known is not None and known.exact else "about"


def _selected(args: Any, objective: Objective) -> tuple[float, str]:
    """The share of training rows, as far as it is known before the value is, and what it is called."""
    rows = objective.rows if args.rows == "auto" else args.rows
    if rows == "top":
        return args.top_percent / 100, f"top {args.top_percent:g} % by reward"
    if rows == "leftover":
        return 1.0, LEFTOVER
    return 1.0, GROUPS if objective.unit == "group" else "all"


def _in_groups(group: np.ndarray) -> np.ndarray:
    """[N] bool: the rows whose prompt has another one."""
    _, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return sizes[member_of] > 1


def _groups(sizes: Sizes, num_rows: int, chosen_only: bool) -> np.ndarray:
    if sizes.rows is None:
        return np.arange(num_rows)
    return np.resize(sizes.rows.group[sizes.rows.where("train", chosen_only)], num_rows)


def _evaluations(args: Any, steps: int) -> int:
    """How often the Trainer evaluates: every `eval_steps` (a share of the run below 1), and at the end."""
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "steps":
        return math.ceil(args.num_train_epochs) if "epoch" in str(args.eval_strategy) else 0
    every = math.ceil(steps * args.eval_steps) if args.eval_steps < 1 else int(args.eval_steps)
    return steps // every + (steps % every > 0)
