"""How far a policy in training is from the reference it started as, measured on completions that it samples."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from leftover.metrics import sampled_kl
from leftover.models.logprobs import completion_logits, selected_logprobs
from leftover.models.reference import batches, evaluating
from leftover.objectives.ppo import entropy


class FrozenStart:
    """The reference: a copy of the weights that train, as they are now, swapped in while the reference is needed.

    Of an adapter only the adapter is copied; the base is shared with the policy.

    Args:
        policy: the model that is the reference now.
        offload: keep the copy in CPU memory, which saves GPU memory and costs time at every swap.
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

    Reading a completion takes a CPU about a third of the time of writing it, and two models read it: a tenth of them,
    at least 16, is read there. A GPU reads many at once in a small part of that time.
    """
    most = max(16, num_prompts // 10) if device.type == "cpu" else 256
    return min(num_prompts, most)


def sampled_divergence(
    policy: nn.Module,
    start: FrozenStart,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    compute_dtype: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """KL(policy || reference) and entropy, on completions sampled from the policy at temperature 1.

    kl: `leftover.metrics.sampled_kl`, in nats a completion; kl/standard_error: over prompts. entropy: the exact entropy
    of the next-token distribution, mean over the tokens of these completions, in nats a token. Both are measured on
    `num_measured` completions, of the same prompts at every evaluation with one seed.
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
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Sequence[int]]],
    compute_dtype: str | None,
    *,
    entropies: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the completion's tokens, [N] float64: of log-probabilities, and of entropies (else 0).

    Two models of equal weights differ by exactly 0.
    """
    sums = np.zeros((2, len(rows)))
    with evaluating(model, compute_dtype) as device:
        for chosen, batch in batches(rows, tokenizer.pad_token_id, device):
            logits = completion_logits(model, batch)
            mask = batch["completion_mask"].bool()
            row_of_token = mask.nonzero()[:, 0].cpu().numpy()
            read = [selected_logprobs(logits, batch["completion_ids"][mask]), *([entropy(logits)] if entropies else [])]
            for total, values in zip(sums, read, strict=False):
                total[chosen] = np.bincount(row_of_token, values.double().cpu().numpy(), minlength=len(chosen))
    return sums[0], sums[1]
