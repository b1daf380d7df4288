"""How far a policy in training is from the reference it started as, measured on completions that it samples."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from leftover.metrics import sampled_kl


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
        self._own: list[Tensor] = []  # the policy's, of the first weights that are the reference's now

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy is the reference."""
        try:
            for parameter, frozen in self.weights:
                self._own.append(self._put_away(parameter.data))
                parameter.data = frozen.to(parameter.device)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Give the policy its own weights back; again where a signal has interrupted that."""
        for (parameter, _), own in zip(self.weights, self._own, strict=False):
            parameter.data = own.to(parameter.device)
        self._own = []

    def _put_away(self, weight: Tensor) -> Tensor:
        return weight.cpu() if self.offload else weight


def divergence(
    logprobs: Sequence[float], reference_logprobs: Sequence[float], num_tokens: Sequence[int]
) -> dict[str, float]:
    """KL(policy || reference) and entropy, from N completions that the policy sampled at temperature 1.

    kl: `leftover.metrics.sampled_kl`, in nats a completion; kl/standard_error: over prompts. entropy: of the next
    token, in nats a token: - sum log pi(y|x) / sum |y|, since the mean of - log pi over samples is the entropy.

    Args:
        logprobs, reference_logprobs: [N], sums over the tokens of a completion.
        num_tokens: [N], its length.
    """
    kl = sampled_kl(logprobs, reference_logprobs)
    found = {"kl": float(kl.mean()), "entropy": -float(np.sum(logprobs) / np.sum(num_tokens))}
    return found | ({"kl/standard_error": float(kl.std(ddof=1) / len(kl) ** 0.5)} if len(kl) > 1 else {})
