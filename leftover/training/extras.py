"""Extras: what only single objectives need of a batch (`CompletionBatch.extras`), one provider a name."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leftover.models.logprobs import completion_logprobs
from leftover.objectives import CompletionBatch
from leftover.objectives.offline import advantage_moments
from leftover.store.table import column
from leftover.training.policy_trainer import PolicyTrainer

_FILE = "trained_along.safetensors"


# Extras that are columns of the rows, [B]. is_chosen: 1 for the chosen of a pair, 0 for the rejected, else NaN.
# label: 1 for a desirable row, 0 for an undesirable one, NaN for one whose reward is no label.
# reward_quantile: the share of the reference's own completions of the prompt that are rewarded no better than the row.
ROW_EXTRAS = ("is_chosen", "label", "reward_quantile")


class Provider:
    """One extra that is computed for every batch: `provider(model, inputs, batch)`."""

    columns: tuple[str, ...] = ()  # of the training rows
    module: nn.Module | None = None  # trained along
    learning_rate: float  # of the module

    def __init__(self, trainer: "TrainsAlong"):
        self.trainer = trainer

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> Tensor:
        raise NotImplementedError


class MismatchedLogratio(Provider):
    """[] the mean log-ratio of prompts with completions of other prompts, over the whole optimizer step.

    The policy stays as it is during a step, so that all of its micro-batches are scored at the first: any split of the
    step into micro-batches and processes has one reference point.
    """

    columns = ("mismatched_ids", "mismatched_reference_logprob")

    def __init__(self, trainer: "TrainsAlong"):
        super().__init__(trainer)
        self.known: tuple[list, Tensor] | None = None  # a step's batches, and its mean

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> Tensor:
        batches = self.trainer.step_batches or [inputs]
        if self.known is None or self.known[0] is not batches:
            self.known = batches, self._mean(model, batches, inputs["prompt_ids"].device)
        return self.known[1]

    @torch.no_grad()
    def _mean(self, model: nn.Module, batches: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        total = torch.zeros(2, device=device)
        for one in batches:
            inputs = {name: values.to(device) for name, values in one.items()}
            inputs |= {"completion_ids": inputs["mismatched_ids"], "completion_mask": inputs["mismatched_mask"]}
            logratio = completion_logprobs(model, inputs).sum(-1) - inputs["mismatched_reference_logprob"]
            total += torch.stack([logratio.sum(), logratio.new_tensor(len(logratio))])
        summed, count = self.trainer.accelerator.gather(total).reshape(-1, 2).sum(0)
        return summed / count


class AdvantageMean(Provider):
    """[] the mean of the training rows' advantages."""

    place = 0

    def __init__(self, trainer: "TrainsAlong"):
        super().__init__(trainer)
        self.found = torch.tensor(advantage_moments(column(trainer.train_dataset, "advantage"))[self.place])

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> Tensor:
        return self.found.to(batch.advantage.device)


class AdvantageScale(AdvantageMean):
    """[] the standard deviation of the training rows' advantages."""

    place = 1


class LogNormaliser(Provider):
    """[] log of the mean of exp(R / temperature) over the rows of the whole optimizer step, on all processes.

    Under a token budget over all draws of the run: a long row that is alone in its step would always weigh 1.
    """

    def __init__(self, trainer: "TrainsAlong"):
        super().__init__(trainer)
        self.of_run: Tensor | None = None
        if trainer.args.max_tokens_per_batch:
            drawn = column(trainer.train_dataset, "reward")[trainer.draw_order.indices]
            scaled = torch.from_numpy(drawn) / trainer.settings.temperature
            self.of_run = (scaled.logsumexp(0) - math.log(len(scaled))).float()

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> Tensor:
        if self.of_run is not None:
            return self.of_run.to(batch.reward.device)
        rewards = torch.cat([b["reward"].to(batch.reward.device) for b in self.trainer.step_batches or [inputs]])
        log_sum = (rewards / self.trainer.settings.temperature).logsumexp(0)
        parts = torch.stack([log_sum, rewards.new_tensor(len(rewards)).log()])
        found = self.trainer.accelerator.gather(parts).reshape(-1, 2)
        log_sum, log_count = found.logsumexp(0)
        return log_sum - log_count


class SoftValue(Provider):
    """[B] a value of the prompt that is trained along: linear in the reference's normalised prompt features.

    It starts as the mean reward of the training rows.
    """

    columns = ("prompt_features",)

    def __init__(self, trainer: "TrainsAlong"):
        super().__init__(trainer)
        width = len(trainer.train_dataset[0]["prompt_features"])
        rewards = torch.from_numpy(column(trainer.train_dataset, "reward").copy())
        linear = nn.Linear(width, 1)
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, float(rewards[rewards.isfinite()].mean()))
        self.module = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), linear).to(trainer.args.device)
        self.learning_rate = trainer.settings.value_learning_rate

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> Tensor:
        assert self.module is not None
        return self.module(inputs["prompt_features"]).squeeze(-1)


PROVIDERS: dict[str, type[Provider]] = {
    "mismatched_logratio": MismatchedLogratio,
    "advantage_mean": AdvantageMean,
    "advantage_scale": AdvantageScale,
    "log_normaliser": LogNormaliser,
    "soft_value": SoftValue,
}


def row_columns(names: Collection[str]) -> list[str]:
    """The columns of the training rows that the extras among `names` read."""
    computed = [column for name in names if name in PROVIDERS for column in PROVIDERS[name].columns]
    return sorted([*computed, *(name for name in names if name in ROW_EXTRAS)])


class TrainsAlong(PolicyTrainer):
    """A trainer with extras: their modules are in its optimizer, its checkpoints and its resume."""

    providers: dict[str, Provider]
    settings: Any  # the objective's own
    draw_order: Any  # a `DrawOrder`, or None without training rows
    step_batches: list[dict[str, Tensor]]  # of the optimizer step in progress, on this process

    def with_extras(self, model: nn.Module, inputs: dict[str, Tensor], batch: CompletionBatch) -> CompletionBatch:
        recorded = {name: inputs[name] for name in ROW_EXTRAS if name in inputs}
        computed = {name: provider(model, inputs, batch) for name, provider in self.providers.items()}
        return batch._replace(extras=recorded | computed)

    @property
    def trained_along(self) -> nn.ModuleDict:
        """The modules that are trained along, by the extra's name."""
        return nn.ModuleDict({name: p.module for name, p in self.providers.items() if p.module is not None})

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for provider in self.providers.values():
            if provider.module is None or id(next(provider.module.parameters())) in known:
                continue
            parameters = list(provider.module.parameters())
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0, "lr": provider.learning_rate})
            # The Trainer averages over processes, and clears, the gradients of the policy alone.
            optimizer.register_step_pre_hook(lambda *_, p=parameters: self._average(p))
            optimizer.register_step_post_hook(lambda *_, m=provider.module: m.zero_grad())
        return optimizer

    def _average(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over processes."""
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.trained_along and self.args.should_save:
            save_file(self.trained_along.state_dict(), Path(output_dir) / _FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.trained_along:
            self.trained_along.load_state_dict(load_file(Path(checkpoint) / _FILE))
