"""How far a policy in training is from the reference it started as, measured on completions that it samples."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leftover.data.collate import Collator
from leftover.metrics import sampled_kl
from leftover.models.logprobs import completion_logits, selected_logprobs
from leftover.models.reference import autocast, length_sorted_batches, pass_tokens
from leftover.objectives.ppo import entropy


class FrozenStart:
    """The reference: a copy of the weights that train, as they are now, put in their place while it is asked.

    Under an adapter the copy is the adapter alone, new or continued; the base is shared with the policy.

    Args:
        policy: the model that is the reference now.
        offload: keep the copy in the memory of the CPU, which takes none of a GPU's and time at every swap.
    """

    def __init__(self, policy: nn.Module, *, offload: bool = False):
        self.offload = offload
        self.weights = [(p, self._put_away(p.detach().clone())) for p in policy.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy is the reference."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, (parameter, other) in enumerate(self.weights):
            device, own = parameter.device, parameter.data
            parameter.data = other.to(device)
            self.weights[i] = (parameter, self._put_away(own))

    def _put_away(self, weight: Tensor) -> Tensor:
        return weight.cpu() if self.offload else weight


def num_measured(num_prompts: int, device: torch.device) -> int:
    """On how many of the sampled completions of an evaluation the divergence is measured.

    Reading a completion costs a CPU about a third of writing it, and two models read it, so that a tenth of them, at
    least 16, is read there. A GPU reads many at once in a small part of the time that writing takes.
    """
    most = max(16, num_prompts // 10) if device.type == "cpu" else 256
    return min(num_prompts, most)


def sampled_divergence(
    policy: Any,
    start: FrozenStart,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    compute_dtype: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """KL(policy || reference) and entropy, on completions sampled from the policy at temperature 1.

    kl: `leftover.metrics.sampled_kl`, in nats a completion, and kl/standard_error its standard error over prompts.
    entropy: the exact entropy of the next-token distribution, mean over the tokens of these completions, in nats a
    token. Both on `num_measured` completions, the same prompts at every evaluation with one seed. Of greedy
    completions neither would be an estimate of anything.
    """
    device = next(policy.parameters()).device
    number = num_measured(len(prompt_ids), device)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(prompt_ids))[:number])
    rows = [{"prompt_ids": prompt_ids[i], "completion_ids": completion_ids[i]} for i in chosen]
    logprobs, entropies = _read(policy, tokenizer, rows, compute_dtype)
    with start.in_place():
        reference_logprobs, _ = _read(policy, tokenizer, rows, compute_dtype, entropies=False)
    kl = sampled_kl(logprobs, reference_logprobs)
    tokens = sum(len(row["completion_ids"]) for row in rows)
    found = {"kl": float(kl.mean()), "entropy": float(entropies.sum() / tokens)}
    return found | ({"kl/standard_error": float(kl.std(ddof=1) / len(kl) ** 0.5)} if len(kl) > 1 else {})


@torch.inference_mode()
def _read(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], compute_dtype: str | None, *, entropies: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the completion's tokens, [N] float64: of log-probabilities, and of entropies (else 0).

    The same rows come in the same batches, so that two models of equal weights differ by exactly 0.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    collate = Collator(tokenizer.pad_token_id)
    sums = np.zeros((2, len(rows)))
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    with autocast(device, compute_dtype):
        for chosen in length_sorted_batches(lengths, pass_tokens(device)):
            batch = {k: v.to(device) for k, v in collate([rows[i] for i in chosen]).items()}
            logits = completion_logits(model, batch)
            targets = batch["completion_ids"][batch["completion_mask"].bool()]
            # Of every token, the row of the batch that it is of.
            of = batch["completion_mask"].bool().nonzero()[:, 0].cpu().numpy()
            read = [selected_logprobs(logits, targets), *([entropy(logits)] if entropies else [])]
            for total, values in zip(sums, read, strict=False):
                total[chosen] = np.bincount(of, values.double().cpu().numpy(), minlength=len(chosen))
    model.train(was_training)
    return sums[0], sums[1]
