"""`PPOTrainer`: transformers' Trainer over batches that the policy itself writes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leftover.data.raw import chat_of
from leftover.errors import UserError
from leftover.models.divergence import FrozenStart
from leftover.models.load import align_generation_config, disable_dropout
from leftover.objectives.ppo import adapted_kl_coef, moments, policy_loss, value_loss
from leftover.prepare.in_memory import load_for_training, prepare_evaluation, summed
from leftover.recipe.ppo_config import PPOConfig
from leftover.training.metrics import MetricSums
from leftover.training.policy_trainer import PolicyTrainer
from leftover.training.ppo.policy import VALUE_HEAD, attach_value_head, token_outputs
from leftover.training.ppo.progress import Progress
from leftover.training.ppo.rollouts import Rollouts, complete, shaped_rewards, targets
from leftover.training.ppo.schedule import RolloutLoader, align_cadence, prompt_order, rollout_seed, unique_prompts

__all__ = ["PPOConfig", "PPOTrainer"]


class PPOTrainer(PolicyTrainer):
    """Trains a policy on its own completions: proximal policy optimisation with a penalty on leaving the reference.

    An epoch of the Trainer is one PPO step: its data loader, when asked for the first batch, has the policy complete
    the next prompts, and then gives out their mini-batches, `ppo_epochs` times over. So the optimizer, its schedule,
    mixed precision, accumulation, checkpoints and resuming are the Trainer's. Checkpoints fall on whole PPO steps.

    Args:
        model: a causal language model, or a path or Hub id. As it is now it is the reference, and becomes the policy.
        args: see PPOConfig.
        train_dataset: rows with `prompt` (other columns are not used), as text or lists of messages, or rows that
            have `prompt_ids` already. Every unique prompt counts once.
        eval_dataset: rows with `prompt` (and `completion`, `reward`): `evaluate` generates for their prompts.
        reward_funcs: one or several callables `(prompts, completions) -> floats`; several are summed.
        peft_config: trains a new adapter on `model` in place of all its weights.
    """

    args: PPOConfig
    model: Any
    processing_class: Any

    def __init__(
        self,
        model: nn.Module | str,
        args: PPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ):
        args = args or PPOConfig(output_dir="leftover-ppo")
        reward_func = summed(reward_funcs)
        if reward_func is None:
            raise UserError("PPO scores its own completions: pass reward_funcs")
        self.reward_func = reward_func
        policy, processing_class = load_for_training(model, processing_class, peft_config)
        align_generation_config(policy, processing_class, chat_of(processing_class, args).ends)
        if eval_dataset is not None:
            eval_dataset = prepare_evaluation(policy, processing_class, args, eval_dataset)
        self.prompts = unique_prompts(processing_class, args, train_dataset)
        if args.disable_dropout:
            disable_dropout(policy)
        if self.prompts:
            self.order = prompt_order(args, len(self.prompts))
            align_cadence(args, len(self.prompts))
        self.value_head = attach_value_head(policy)
        self.progress, self.sums = Progress(args.kl_coef), MetricSums()
        super().__init__(
            model=policy,
            args=args,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        # compute_loss divides by the tokens of the whole optimizer step, so the Trainer must not divide again.
        self.loss_is_scaled_for_ga = True
        if args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "PPO generates with whole weights on every process: DataParallel, FSDP and DeepSpeed are not "
                "supported; start with torchrun, or train an adapter"
            )
        self.reference = FrozenStart(policy)

    @property
    def num_selected(self) -> int:
        """Unique prompts that are completed."""
        return len(self.prompts)

    @property
    def effective_sample_size(self) -> float:
        """Of the prompts, which are drawn alike."""
        return float(len(self.prompts))

    def get_train_dataloader(self) -> Any:
        """One pass of it is one PPO step."""
        if not self.prompts:
            raise UserError("PPOTrainer needs a train_dataset with prompts to train")
        return RolloutLoader(self.rollout, self.args, self.processing_class.pad_token_id)

    def rollout(self, number: int) -> tuple[Rollouts, dict[str, Tensor]]:
        """The completions of PPO step `number` of this process, and the columns that it trains on."""
        started, args, rank = time.perf_counter(), self.args, self.args.process_index
        rows = [self.prompts[i] for i in self.order[number][rank :: args.world_size]]
        policy, progress = self.accelerator.unwrap_model(self.model), self.progress
        rollouts = complete(
            policy,
            self.reference,
            self.processing_class,
            rows,
            self.reward_func,
            args,
            rollout_seed(args.seed, number, rank),
        )
        rewards = shaped_rewards(rollouts, args, progress.kl_coef, self._summed)
        if self.state.global_step == 0:
            self._start_values(rollouts, rewards)
        columns, told = targets(rollouts, rewards, args, self._summed)
        told["kl_coef"] = progress.kl_coef
        counts = torch.tensor([len(rows), int(rollouts.mask.sum())], dtype=torch.float64)
        episodes, tokens = (int(count) for count in self._summed(counts))
        if args.adaptive_kl:
            progress.kl_coef = adapted_kl_coef(progress.kl_coef, told["kl"], args.target_kl, episodes, args.horizon)
        progress.rollouts += episodes
        progress.rollout_tokens += tokens
        progress.rollout_seconds += time.perf_counter() - started
        told |= {"rollout/episodes": progress.rollouts, "rollout/num_tokens": progress.rollout_tokens}
        told["rollout/seconds"] = progress.rollout_seconds
        self.sums.add({name: (torch.tensor(float(number)), 1) for name, number in told.items()})
        return rollouts, columns

    def _start_values(self, rollouts: Rollouts, rewards: Tensor) -> None:
        """The first values are the mean reward: from 0, a clipped value would be long in coming there."""
        everyone = torch.ones(len(rewards), dtype=torch.bool)
        mean, _ = moments(rewards.sum(1), everyone, self._summed)
        self.value_head.bias.data.fill_(float(mean))
        rollouts.values.copy_(rollouts.mask * mean)

    def _summed(self, total: Tensor) -> Tensor:
        return self.accelerator.reduce(total.to(self.args.device), reduction="sum").cpu()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Completion tokens of the whole optimizer step, over micro-batches and processes."""
        tokens = sum(int(batch["completion_mask"].sum()) for batch in batch_samples)
        return self.accelerator.gather(torch.tensor(tokens, device=device)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Clipped surrogate and value loss, a mean over the tokens of the whole optimizer step."""
        args, mask = self.args, inputs["completion_mask"].bool()
        now = token_outputs(model, inputs, temperature=args.temperature)
        losses, clipped = policy_loss(now.logprobs, inputs["old_logprobs"], inputs["advantages"], args.cliprange)
        errors, held = value_loss(now.values, inputs["old_values"], inputs["returns"], args.cliprange_value)
        count = int(mask.sum())
        with torch.no_grad():
            change = (now.logprobs - inputs["old_logprobs"])[mask]
            told = {
                "policy_loss": losses[mask],
                "value_loss": errors[mask],
                "clip_fraction": clipped[mask].float(),
                "value/clip_fraction": held[mask].float(),
                "approx_kl": change.square() / 2,  # of policy and the one that wrote the completions
                "importance_weight/mean": change.exp(),
            }
            self.sums.add({name: (values.mean(), count) for name, values in told.items()})
            self.sums.add({"num_tokens": (inputs["prompt_mask"].sum() + count, 1)})
        total = (losses + args.vf_coef * errors)[mask].sum()
        # Gradients are averaged over processes, and the divisor already counts them all.
        loss = total / (count if num_items_in_batch is None else num_items_in_batch) * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.sums.num_tokens = self.progress.trained_tokens
            logs = {**logs, **self.sums.pop(self.accelerator)}
            self.progress.trained_tokens = self.sums.num_tokens
        super().log(logs, start_time)

    def facts(self) -> dict[str, Any]:
        """What the run cost beside its optimizer steps."""
        return {name: value for name, value in asdict(self.progress).items() if name != "kl_coef"}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, with a learning rate of its own for the value head where the settings have one."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.args.value_learning_rate is not None:
            head = list(self.value_head.parameters())
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if all(p is not own for own in head)]
            optimizer.add_param_group({"params": head, "lr": self.args.value_learning_rate, "weight_decay": 0.0})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            self.progress.save(folder, self.value_head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.progress = Progress.load(Path(resume_from_checkpoint), self.value_head)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The value head has a file of its own, which the best checkpoint's policy does without.
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if not key.startswith(VALUE_HEAD)]
        super()._issue_warnings_after_load(load_result)
