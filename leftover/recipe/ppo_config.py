"""`PPOConfig`: the settings of an online run, on top of transformers' `TrainingArguments`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from leftover.errors import UserError
from leftover.objectives import ONLINE
from leftover.recipe.policy_config import AT_LEAST_0, AT_LEAST_1, PolicyConfig, setting

ONE_RULE = "evaluate.unfinished (in Python unfinished) both say what a completion without an end loses: set one of them"


@dataclass
class PPOConfig(PolicyConfig):
    """Settings of an online run: those of `TrainingArguments`, and these.

    A PPO step makes `num_rollouts_per_step` completions and trains on them for `ppo_epochs` passes in mini-batches.
    A mini-batch is one optimizer step, of per_device_train_batch_size x gradient_accumulation_steps x processes
    completions. `max_steps`, `eval_steps` and `save_steps` count optimizer steps, as everywhere, and become whole PPO
    steps. Without `max_steps` a run makes `total_episodes` completions, by default `num_train_epochs` a prompt.

    Defaults are those of lm-human-preferences (arXiv 1909.08593), except kl_coef, whiten_rewards (TRL's) and
    temperature: completions are drawn from the distribution that evaluation samples from. Its runs made 512
    completions a step.
    """

    RANGES: ClassVar[dict[str, tuple[float, float]]] = PolicyConfig.RANGES | {
        "num_rollouts_per_step": AT_LEAST_1, "num_mini_batches": AT_LEAST_1, "total_episodes": AT_LEAST_1,
        "ppo_epochs": AT_LEAST_1, "kl_coef": AT_LEAST_0, "target_kl": (1e-12, math.inf), "horizon": AT_LEAST_1,
        "cliprange": (0, 1), "cliprange_value": AT_LEAST_0, "vf_coef": AT_LEAST_0, "gamma": (0, 1), "lam": (0, 1),
        "value_learning_rate": AT_LEAST_0, "missing_eos_penalty": AT_LEAST_0, "temperature": (1e-6, math.inf),
        "rollout_batch_size": AT_LEAST_1,
    }  # fmt: skip

    objective: str = setting("ppo", "The method: ppo.")
    num_rollouts_per_step: int | None = setting(
        None, "Completions per PPO step, over all processes (None: as many as num_mini_batches hold)."
    )
    num_mini_batches: int = setting(4, "Optimizer steps per pass, if num_rollouts_per_step is None.")
    total_episodes: int | None = setting(None, "Completions of the whole run.")
    ppo_epochs: int = setting(4, "Passes over the completions of a step.")
    kl_coef: float = setting(0.05, "Penalty per nat of divergence from the reference.")
    adaptive_kl: bool = setting(False, "Adapt kl_coef to target_kl (arXiv 1909.08593, section 2.2).")
    target_kl: float = setting(6.0, "With adaptive_kl: the divergence aimed at, in nats per completion.")
    horizon: int = setting(10_000, "With adaptive_kl: episodes over which kl_coef adapts.")
    cliprange: float = setting(0.2, "Importance ratios are clipped to [1 - c, 1 + c].")
    cliprange_value: float | None = setting(
        0.2, "How far a value moves in a PPO step, in units of the reward (None: freely)."
    )
    vf_coef: float = setting(0.1, "Weight of the value loss.")
    value_learning_rate: float | None = setting(
        None, "Learning rate of the value head (None: learning_rate); a new head may need a larger one."
    )
    gamma: float = setting(1.0, "Discount factor per token.")
    lam: float = setting(0.95, "Lambda of generalised advantage estimation.")
    whiten_rewards: bool = setting(False, "Divide rewards by their standard deviation.")
    missing_eos_penalty: float | None = setting(
        None, "Subtracted from the reward of a completion that was cut before its end."
    )
    temperature: float = setting(1.0, "Temperature of the completions, and of every log-probability.")
    rollout_batch_size: int = setting(64, "Completions that a process generates at a time.")
    # Defaults that differ here.
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "linear"
    adam_epsilon: float = 1e-5
    # The search for unused weights only follows the model's own outputs, not the value head's.
    ddp_find_unused_parameters: bool | None = False

    def __post_init__(self) -> None:
        if self.objective not in ONLINE:
            raise UserError(f"PPOConfig.objective is '{self.objective}', not one of {', '.join(ONLINE)}")
        super().__post_init__()
        if self.missing_eos_penalty is not None and self.unfinished != "score":
            raise UserError(f"missing_eos_penalty and {ONE_RULE}")
        if self.rollouts_per_step % self.rows_per_update:
            raise UserError(
                f"num_rollouts_per_step={self.num_rollouts_per_step} does not divide into mini-batches of "
                f"{self.rows_per_update} completions (per_device_train_batch_size x gradient_accumulation_steps x "
                "processes): make it a multiple of that"
            )

    @property
    def rows_per_update(self) -> int:
        """Completions of one optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def rollouts_per_step(self) -> int:
        """Completions of one PPO step, over all processes."""
        return self.num_rollouts_per_step or self.num_mini_batches * self.rows_per_update

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of one PPO step."""
        return self.ppo_epochs * self.rollouts_per_step // self.rows_per_update

    def num_ppo_steps(self, num_prompts: int) -> int:
        """PPO steps of the whole run over `num_prompts` unique prompts."""
        if self.max_steps > 0:
            return math.ceil(self.max_steps / self.updates_per_step)
        episodes = self.total_episodes or math.ceil(self.num_train_epochs * num_prompts)
        return math.ceil(episodes / self.rollouts_per_step)


_BUDGETS = {"max_steps", "total_episodes", "num_train_epochs"}


def own_settings(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """All settings of an online policy: its own, and of those that all policies share the ones that PPOConfig has.

    Its own budget (max_steps, total_episodes, num_train_epochs) replaces the shared one.
    """
    valid = {entry.name for entry in dataclasses.fields(PPOConfig)} - (_BUDGETS if own.keys() & _BUDGETS else set())
    return {name: value for name, value in shared.items() if name in valid} | own
