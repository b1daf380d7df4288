"""Two tokens whose best policy can be written down: `python examples/bandit.py` draws how each loss gets there.

A completion is two tokens, each `a` or `b`, drawn from a reference p with rewards R. The policy may be any distribution
pi. With V = sum_y p(y) R(y), A = max(R - V, 0) and rows drawn from p, a training is at rest where

    nll               pi(y) = p(y)
    a_lol_ref_free    pi(y) ~ p(y) A(y)
    a_lol             pi(y) ~ p(y) A(y) clip(pi(y) / p(y), 1 - e, 1 + e)

Here A > 0 for `aa` and `ab` alone, so that pi(ab) = 1 - pi(aa), and the last line has the solution
pi(aa) = (1 + e) p(aa) A(aa) / A(ab) if the weight of `aa` is clipped and that of `ab` is not, as for e = 0.9.
Without a clip all probability goes to the completion of the largest advantage.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from leftover import OBJECTIVES, CompletionBatch

COMPLETIONS = ("aa", "ab", "ba", "bb")
REFERENCE = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()  # of the second token, after a and after b
FIRST = torch.tensor([0.5, 0.5]).log()
REWARD = torch.tensor([1.0, 0.6, 0.3, 0.0])
METHODS = {"nll": {}, "a_lol_ref_free": {}, "a_lol": {"clip": 0.9}, "a_lol, no clip": {"clip": None}}


def token_logprobs(first: Tensor, second: Tensor) -> Tensor:
    """log pi of both tokens of every completion, [4, 2]; `first` [2] and `second` [2, 2] are logits."""
    first, second = first.log_softmax(-1), second.log_softmax(-1)
    return torch.stack([first.repeat_interleave(2), second.flatten()], dim=-1)


def optimum(method: str) -> float:
    """pi(aa) where the training is at rest; see above."""
    p = token_logprobs(FIRST, REFERENCE).sum(-1).exp()
    advantage = (REWARD - p @ REWARD).clamp(min=0)
    by_method = {
        "nll": p[0],
        "a_lol_ref_free": p[0] * advantage[0] / (p @ advantage),
        "a_lol": (1 + METHODS["a_lol"].get("clip", 0)) * p[0] * advantage[0] / advantage[1],
        "a_lol, no clip": torch.tensor(1.0),
    }
    return float(by_method[method])


def train(method: str, steps: int) -> list[float]:
    """pi(aa) before every step. A step has every completion once, weighted by p: no noise of drawing."""
    objective = OBJECTIVES[method.partition(",")[0]]
    settings = objective.settings(**METHODS[method])
    reference = token_logprobs(FIRST, REFERENCE)
    p = reference.sum(-1).exp()
    value = (p @ REWARD).expand(4)
    first, second = nn.Parameter(FIRST.clone()), nn.Parameter(REFERENCE.clone())
    optimizer, found = torch.optim.Adam([first, second], lr=0.05), []
    for _ in range(steps):
        logprobs = token_logprobs(first, second)
        batch = CompletionBatch(
            logprobs=logprobs,
            reference_logprobs=reference,
            mask=torch.ones(4, 2, dtype=torch.bool),
            reward=REWARD,
            value=value,
            advantage=REWARD - value,
            group=torch.zeros(4, dtype=torch.int64),
        )
        loss = (p * objective.loss(batch, settings)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(logprobs.detach().sum(-1).exp()[0]))
    return found


def main(picture: str = "runs/bandit.png", steps: int = 400) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, method in enumerate(METHODS):
        curve = train(method, steps)
        axes.plot(curve, color=f"C{number}", label=method)
        axes.axhline(optimum(method), color=f"C{number}", linestyle="--", linewidth=1)
        print(f"{method:15} pi(aa) = {curve[-1]:.3f}, written down: {optimum(method):.3f}")
    axes.set(xlabel="step", ylabel="probability of the best completion", ylim=(0, 1.02))
    axes.legend(loc="center right", title="dashed: the optimum")
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
