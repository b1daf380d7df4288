"""`LoLConfig`: the settings of a run, on top of transformers' `TrainingArguments`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ValidationError

from leftover.errors import UserError, nearest
from leftover.objectives import OBJECTIVES, ONLINE, RELEASED, Objective
from leftover.objectives.registry import REGISTER
from leftover.recipe.policy_config import ABOVE_0, AT_LEAST_1, PolicyConfig, setting


@dataclass
class LoLConfig(PolicyConfig):
    """Settings of a run: those of `TrainingArguments`, and these.

    Without `max_steps` a run takes `num_train_epochs` passes over the rows that it SELECTS, so that a leftover
    share of 67 % trains 33 % fewer steps than all rows would (A-LoL, section 4).
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = PolicyConfig.CHOICES | {
        "rows": ("auto", "all", "leftover", "top", "best"),
        "draw": ("auto", "priority", "priority_unweighted", "uniform"),
        "released_script": tuple(RELEASED),
        "value_targets": ("auto", "recorded", "reference_samples", "group_loo"),
    }

    RANGES: ClassVar[dict[str, tuple[float, float]]] = PolicyConfig.RANGES | {
        "top_percent": (ABOVE_0[0], 100.0),
        "reference_samples": AT_LEAST_1,
        "max_tokens_per_batch": AT_LEAST_1,
        "max_initial_logratio": ABOVE_0,
        "value_samples_per_prompt": AT_LEAST_1,
    }

    objective: str = setting("a_lol_seq", f"The method: one of {', '.join(OBJECTIVES)}.")
    objective_settings: dict = field(
        default_factory=dict,
        metadata={"help": "Settings of the objective: clip, beta, floor, ..."},
    )
    rows: str = setting(
        "auto",
        "Which rows train: all, leftover (advantage > 0), top (see top_percent), best (of every prompt the one of "
        "highest reward), or auto: leftover for a_lol*, top for nll_top, else all.",
    )
    top_percent: float = setting(25.0, "With rows=top: the percentage of rows, by reward.")
    draw: str = setting(
        "auto",
        "How rows are drawn: priority (in proportion to the reward or advantage that weights the loss, with "
        "replacement), priority_unweighted (the same, without the factor in the loss), uniform (every row once an "
        "epoch), or auto: priority if the objective has such a weight; groups come once an epoch. "
        "rows=leftover with draw=uniform is the paper's 'good random', rows=all with it its plain shuffle.",
    )
    whole_groups: bool = setting(False, "Draw all selected rows of a prompt together.")
    reference_samples: int = setting(8, "With qrpo: completions of the reference per prompt, to rank rewards among.")
    released_code: bool = setting(
        False,
        "Sample, clip and clamp as the authors' released code does, to show what that changes "
        "(docs/paper.md, 'released_code').",
    )
    released_script: str = setting(
        "assistant", "With released_code: which of its scripts, assistant (HH-RLHF) or tasks (the other three)."
    )
    length_bucketing: bool = setting(True, "Put rows of similar length in one batch.")
    max_tokens_per_batch: int | None = setting(
        None, "Padded tokens per batch, instead of per_device_train_batch_size rows."
    )
    max_initial_logratio: float | None = setting(
        None, "Stop if policy and reference differ by more nats a token at step 0 (None: depends on dtype)."
    )
    value_targets: str = setting("auto", "For raw rows, what V is fitted on: recorded, reference_samples, ...")
    value_samples_per_prompt: int = setting(1, "With reference_samples: completions per prompt.")
    # Defaults that differ here.
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "constant"
    logging_steps: float = 10

    def __post_init__(self) -> None:
        find_objective(self.objective)
        if self.released_code:
            if self.max_tokens_per_batch or self.whole_groups:
                raise UserError("released_code draws batches of rows: leave max_tokens_per_batch and whole_groups out")
            self.disable_dropout = self.length_bucketing = False
        super().__post_init__()


def find_objective(name: Any) -> Objective:
    """The entry of OBJECTIVES. Raises UserError for any other name, and says how to use the online methods."""
    if not isinstance(name, str):
        raise UserError(f"objective is {name!r:.80}: it takes a name. Register one of your own first: {REGISTER}")
    if name in ONLINE:
        raise UserError(
            f"'{name}' trains on its own completions: in Python use leftover.PPOTrainer with leftover.PPOConfig, "
            f"in a recipe a policy with `objective: {name}` (docs/methods.md)"
        )
    if name not in OBJECTIVES:
        close = nearest(name, [*OBJECTIVES, *ONLINE])
        raise UserError(
            f"unknown objective '{name}'{close}; objectives: {', '.join(OBJECTIVES)}; one of another package is known "
            "once that is installed"
        )
    return OBJECTIVES[name]


def objective_and_settings(fields: Mapping[str, Any], where: str = "objective_settings") -> tuple[Objective, Any]:
    """The objective that fields of LoLConfig name (or the released code's version of it), and its settings.

    Raises UserError, which begins with `where`, for an unknown setting or a value that it cannot have.
    """
    name = fields.get("objective", LoLConfig.objective)
    objective = find_objective(name)
    if fields.get("released_code"):
        script = str(fields.get("released_script", LoLConfig.released_script))
        objective = RELEASED.get(script, {}).get(name, objective)
    settings: Any = objective.settings
    valid = list(settings.__dataclass_fields__)
    given = fields.get("objective_settings") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: takes settings with their values, as {{clip: 0.9}}; got {given!r}")
    for key in given:
        if key not in valid:
            raise UserError(
                f"{where}: objective '{name}' has no setting '{key}'{nearest(str(key), valid)}; "
                f"its settings: {', '.join(valid) or 'none'}"
            )
    try:
        return objective, settings(**given)
    except ValidationError as error:
        faults = (f"{where}.{e['loc'][0]} of {name}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise UserError("; ".join(faults)) from None


def objective_of(args: LoLConfig) -> Objective:
    """The objective of a run; see `objective_and_settings`."""
    return objective_and_settings(vars(args))[0]


def objective_settings(args: LoLConfig) -> Any:
    """The settings of a run's objective, as its dataclass."""
    return objective_and_settings(vars(args))[1]


# Of the reference's training, where `reference.train` does not set them.
REFERENCE_DEFAULTS = {
    "num_train_epochs": 3,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 32,
}
