"""`PPOTrainer`: transformers' Trainer over batches that the policy itself writes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leftover.data.rows import as_prompt
from leftover.errors import UserError
from leftover.models.divergence import FrozenStart
from leftover.models.generate import generate, have_ended
from leftover.models.load import is_encoder_decoder
from leftover.monitoring.ranks import apart
from leftover.objectives.ppo import adapted_kl_coef, moments, policy_loss, value_loss
from leftover.prepare.evaluation_rows import EvaluationRows, prepare_evaluations
from leftover.prepare.own_rows import Rows
from leftover.recipe.ppo_config import PPOConfig
from leftover.rewards.unfinished import settled
from leftover.store.files import read_json, write_json
from leftover.training.policy_trainer import PolicyTrainer, row_name
from leftover.training.ppo.policy import VALUE_HEAD, attach_value_head, score_tokens, token_outputs
from leftover.training.ppo.rollouts import Rollouts, shaped_rewards, targets
from leftover.training.ppo.schedule import RolloutLoader, align_cadence, prompt_order, unique_prompts

__all__ = ["PPOConfig", "PPOTrainer"]

_HEAD_FILE, _PROGRESS_FILE = "value_head.safetensors", "ppo_progress.json"


@dataclass
class Progress:
    """Counts over all processes, and the penalty of the next PPO step; carried over when a run is resumed."""

    kl_coef: float
    rollouts: int = 0  # completions
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0  # generating, scoring and judging them


class PPOTrainer(PolicyTrainer):
    """Trains a policy on its own completions: proximal policy optimisation with a penalty on leaving the reference.

    An epoch of the Trainer is one PPO step: its data loader first has the policy complete the next prompts, and then
    gives out their mini-batches, `ppo_epochs` times over. So the optimizer, its schedule, mixed precision,
    accumulation, checkpoints and resuming are the Trainer's. Checkpoints fall on whole PPO steps.

    Args:
        model: a causal language model or an encoder-decoder, or a path or Hub id. It is the reference, and becomes the
            policy.
        args: see PPOConfig.
        train_dataset: rows with `prompt` (other columns are not used), as text or lists of messages, or rows that
            have `prompt_ids` already. Every unique prompt counts once.
        eval_dataset: rows with `prompt` (and `completion`, `reward`), or a dictionary of several data sets: `evaluate`
            generates for their prompts.
        reward_funcs: one or several callables `(prompts, completions) -> floats`; several are summed.
        peft_config: trains a new adapter on `model` in place of all its weights.
    """

    config, default_folder = PPOConfig, "leftover-ppo"
    args: PPOConfig
    reward_func: Callable
    reference: FrozenStart

    def _prepare(
        self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, train: Rows | None, evaluation: EvaluationRows
    ) -> tuple[None, Any]:
        if self.reward_func is None:
            raise UserError("PPO scores its own completions: pass reward_funcs")
        evaluation = prepare_evaluations(policy, tokenizer, self.args, evaluation)
        self._check_best_metric(evaluation)
        self.prompts = unique_prompts(tokenizer, self.args, train, two_texts=is_encoder_decoder(policy))
        self.num_selected, self.effective_sample_size = len(self.prompts), float(len(self.prompts))  # drawn uniformly
        if self.prompts:
            self.order = prompt_order(self.args, len(self.prompts))
            align_cadence(self.args, len(self.prompts))
        self.value_head = attach_value_head(policy)
        self.progress = Progress(self.args.kl_coef)
        return None, evaluation

    def _begin(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "PPO generates with whole weights on every process: FSDP and DeepSpeed are not supported; start with "
                "torchrun, or train an adapter"
            )
        self.reference = FrozenStart(self.model)

    def get_train_dataloader(self) -> Any:
        """One pass of it is one PPO step."""
        if not self.prompts:
            raise UserError("PPOTrainer needs a train_dataset with prompts to train")
        return RolloutLoader(self.rollout, self.args, self.processing_class.pad_token_id)

    def rollout(self, number: int) -> tuple[Rollouts, dict[str, Tensor]]:
        """The completions of PPO step `number` of this process, and the columns that it trains on."""
        started, args, rank = time.perf_counter(), self.args, self.args.process_index
        rows = [self.prompts[i] for i in self.order[number][rank :: args.world_size]]
        progress = self.progress
        seed = int(np.random.SeedSequence([args.seed, number, rank]).generate_state(1)[0])
        rollouts = self._complete(rows, seed)
        rewards = shaped_rewards(rollouts, args, progress.kl_coef, self._summed)
        if self.state.global_step == 0:
            self._start_values(rollouts, rewards)
        columns, logs = targets(rollouts, rewards, args, self._summed)
        logs["kl_coef"] = progress.kl_coef
        counts = torch.tensor([len(rows), int(rollouts.mask.sum())], dtype=torch.float64)
        episodes, tokens = (int(count) for count in self._summed(counts))
        if args.adaptive_kl:
            progress.kl_coef = adapted_kl_coef(progress.kl_coef, logs["kl"], args.target_kl, episodes, args.horizon)
        progress.rollouts += episodes
        progress.rollout_tokens += tokens
        progress.rollout_seconds += time.perf_counter() - started
        logs |= {"rollout/episodes": progress.rollouts, "rollout/num_tokens": progress.rollout_tokens}
        logs["rollout/seconds"] = progress.rollout_seconds
        self.sums.add({name: (torch.tensor(float(value)), 1) for name, value in logs.items()})
        return rollouts, columns

    def _complete(self, rows: Sequence[dict[str, Any]], seed: int) -> Rollouts:
        """The policy's completions of prompts, scored by the reward function, the policy and the reference.

        Each process has prompts of its own.
        """
        with apart():
            return self._completed(rows, seed)

    def _completed(self, rows: Sequence[dict[str, Any]], seed: int) -> Rollouts:
        args, policy, tokenizer = self.args, self.accelerator.unwrap_model(self.model), self.processing_class
        prompt_ids = [list(row["prompt_ids"]) for row in rows]
        completion_ids, texts, _ = generate(
            policy,
            tokenizer,
            prompt_ids,
            max_new_tokens=args.max_completion_length,
            sample=True,
            temperature=args.temperature,
            batch_size=args.rollout_batch_size,
            max_batch_tokens=args.eval_max_batch_tokens,
            seed=seed,
            compute_dtype=args.compute_dtype,
        )
        scores = self.reward_func([as_prompt(row["prompt"], row["conversational"]) for row in rows], texts)
        written = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
        score = partial(
            score_tokens, policy, tokenizer.pad_token_id, written,
            compute_dtype=args.compute_dtype, temperature=args.temperature,
        )  # fmt: skip
        now = score(entropies=True)
        with self.reference.in_place():
            before = score()
        ended = have_ended(policy, completion_ids)
        return Rollouts(
            prompt_ids,
            completion_ids,
            scores=torch.tensor(settled(scores, ended, args.unfinished), dtype=torch.float32),
            ended=torch.tensor(ended),
            reference_logprobs=before.logprobs,
            **now._asdict(),
        )

    def _start_values(self, rollouts: Rollouts, rewards: Tensor) -> None:
        """Start the values at the mean reward: from 0, clipped values would take long to get there."""
        mean = moments(rewards.sum(1), rollouts.trained.any(1), self._summed)[0].nan_to_num(nan=0.0)
        self.value_head.bias.data.fill_(float(mean))
        rollouts.values.copy_(rollouts.mask * mean)

    def _summed(self, total: Tensor) -> Tensor:
        return self.accelerator.reduce(total.to(self.args.device), reduction="sum").cpu()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Completion tokens of the whole optimizer step that train, over micro-batches and processes; at least 1."""
        tokens = sum(int(batch["trained"].sum()) for batch in batch_samples)
        return self.accelerator.gather(torch.tensor(tokens, device=device)).sum().clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Clipped surrogate and value loss, a mean over the tokens of the whole optimizer step."""
        args, mask = self.args, inputs["trained"].bool()
        now = token_outputs(model, inputs, temperature=args.temperature)
        losses, clipped = policy_loss(now.logprobs, inputs["old_logprobs"], inputs["advantages"], args.cliprange)
        errors, held = value_loss(now.values, inputs["old_values"], inputs["returns"], args.cliprange_value)
        count = int(mask.sum())
        with torch.no_grad():
            change = (now.logprobs - inputs["old_logprobs"])[mask]
            found = {
                "policy_loss": losses[mask],
                "value_loss": errors[mask],
                "clip_fraction": clipped[mask].float(),
                "value/clip_fraction": held[mask].float(),
                "approx_kl": change.square() / 2,  # of policy and the one that wrote the completions
                "importance_weight/mean": change.exp(),
            }
            self.sums.add({name: (values.mean() if count else values.sum(), count) for name, values in found.items()})
            self.sums.add({"num_tokens": (inputs["prompt_mask"].sum() + inputs["completion_mask"].sum(), 1)})
        total = (losses + args.vf_coef * errors)[mask].sum()
        # Gradients are averaged over processes, and the divisor already counts them all.
        divisor = max(count, 1) if num_items_in_batch is None else num_items_in_batch
        loss = total / divisor * self.accelerator.num_processes
        return (loss, {"losses": losses}) if return_outputs else loss

    @property
    def may_stop_here(self) -> bool:  # type: ignore[override]
        """At the end of a PPO step: no checkpoint holds the completions of one."""
        return self.state.global_step % self.args.updates_per_step == 0

    def rows_of_step(self, micro_batch: int | None = None) -> list[str]:
        """The prompts of the PPO step: its completions are trained on in random order."""
        chosen = self.order[self.state.global_step // self.args.updates_per_step]
        return [row_name(self.prompts, int(i)) for i in sorted(chosen)]

    def facts(self) -> dict[str, Any]:
        """What the run cost besides its optimizer steps."""
        counts = asdict(self.progress) | {"trained_tokens": self.sums.num_tokens}
        return {name: value for name, value in counts.items() if name != "kl_coef"}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's; with a separate learning rate for the value head if the settings have one."""
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
            save_file(self.value_head.state_dict(), folder / _HEAD_FILE)
            write_json(folder / _PROGRESS_FILE, {"kl_coef": self.progress.kl_coef, **self.facts()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoint = Path(resume_from_checkpoint)
        self.value_head.load_state_dict(load_file(checkpoint / _HEAD_FILE))
        progress = read_json(checkpoint / _PROGRESS_FILE)
        self.sums.num_tokens = progress.pop("trained_tokens")
        self.progress = Progress(**progress)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The value head is in a separate file, which the policy of the best checkpoint does not need.
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if not key.startswith(VALUE_HEAD)]
        super()._issue_warnings_after_load(load_result)
