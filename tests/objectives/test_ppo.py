"""The arithmetic of PPO against hand-computed numbers, values and gradients."""

import math

import pytest
import torch

from leftover.objectives.ppo import (
    adapted_kl_coef,
    advantages_and_returns,
    entropy,
    explained_variance,
    moments,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

NAN = float("nan")
# Two completions, of three tokens and of one; what stands at padding must not matter.
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_score_stands_at_a_completions_own_last_token_beside_the_penalties() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, NAN, NAN]])
    reference = torch.tensor([[-1.5, -2.0, -1.0], [-1.0, NAN, NAN]])
    # log-ratios .5, 0, .5 and -.5; with beta = .2 penalties -.1, 0, -.1 and +.1.
    expected = [[-0.1, 0.0, 3.0 - 0.1], [-1.0 + 0.1, 0.0, 0.0]]
    found = token_rewards(torch.tensor([3.0, -1.0]), logprobs, reference, MASK, kl_coef=0.2)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_without_divergence_there_is_no_penalty() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, 0.0, 0.0]])
    found = token_rewards(torch.tensor([3.0, -1.0]), logprobs, logprobs.clone(), MASK, kl_coef=7.0)
    assert found.tolist() == [[0.0, 0.0, 3.0], [-1.0, 0.0, 0.0]]


def test_advantages_and_returns_by_hand() -> None:
    """gamma = 1/2, lambda = 1/2, so that an advantage counts a quarter one token earlier.

    First completion, r = 1, 0, 4 and V = 2, 4, 2: delta_3 = 4 - 2 = 2; delta_2 = 0 + 2/2 - 4 = -3;
    delta_1 = 1 + 4/2 - 2 = 1. A_3 = 2; A_2 = -3 + 2/4 = -5/2; A_1 = 1 - 5/8 = 3/8. G = A + V = 19/8, 3/2, 4.
    Second, r = 1 and V = 3: A = -2, G = 1.
    """
    rewards = torch.tensor([[1.0, 0.0, 4.0], [1.0, NAN, NAN]])
    values = torch.tensor([[2.0, 4.0, 2.0], [3.0, NAN, NAN]])
    advantages, returns = advantages_and_returns(rewards, values, MASK, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.375, -2.5, 2.0], [-2.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.375, 1.5, 4.0], [1.0, 0.0, 0.0]]))


def test_without_discount_and_with_lambda_1_returns_are_the_rewards_to_come() -> None:
    """A_t = sum of rewards from t on - V_t, whatever the other values are: the Monte Carlo estimate."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, -3.0, 0.5]])
    advantages, returns = advantages_and_returns(rewards, values, MASK[:1], gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[7.0, 6.0, 4.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-2.0, 9.0, 3.5]]))


@pytest.mark.parametrize(("shift", "expected"), [(True, [-1.5, -0.5, 0.5, 1.5]), (False, [2.5, 3.5, 4.5, 5.5])])
def test_whitening_takes_moments_of_real_tokens_alone(shift: bool, expected: list[float]) -> None:
    """1, 3, 5 and 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; (x - 4) / sqrt(5), and 4 put back without the shift."""
    values = torch.tensor([[1.0, 3.0, 5.0], [7.0, 100.0, NAN]])
    mean, variance = moments(values, MASK)
    assert (float(mean), float(variance)) == (4.0, 5.0)
    by_hand = torch.tensor([(x - (0 if shift else 4)) * 2 / math.sqrt(5) + (0 if shift else 4) for x in expected])
    found = whiten(values, MASK, mean, variance, shift_mean=shift)
    torch.testing.assert_close(found[MASK], by_hand)
    assert (found[~MASK] == 0).all()


def test_moments_over_processes_are_those_of_all_tokens() -> None:
    """1, 3 here and 5, 7 elsewhere: count 4, mean 4; squares about it 9 + 1 here and 1 + 9 there."""
    elsewhere = iter([torch.tensor([12.0, 2.0]), torch.tensor(10.0)])
    mean, variance = moments(
        torch.tensor([1.0, 3.0]), torch.tensor([True, True]), summed=lambda here: here + next(elsewhere)
    )
    assert (float(mean), float(variance)) == (4.0, 5.0)


def test_the_clipped_surrogate_by_hand() -> None:
    """eps = 1/5. Ratios and advantages, the loss -min(r A, clip(r) A), and its derivative by log pi, -r A or 0:

    r = 3/2, A = 2: clipped at 6/5, -12/5, 0. r = 1/2, A = 2: not clipped, -1, -1.
    r = 3/2, A = -2: not clipped, 3, 3. r = 1/2, A = -2: clipped at 4/5, 8/5, 0. r = 11/10, A = 2: -11/5, -11/5.
    """
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    old = torch.tensor([-1.0, -2.0, -3.0, -0.5, -1.5])
    logprobs = (old + ratios.log()).requires_grad_()
    losses, clipped = policy_loss(logprobs, old, advantages, 0.2)
    torch.testing.assert_close(losses, torch.tensor([-2.4, -1.0, 3.0, 1.6, -2.2]))
    assert clipped.tolist() == [True, False, False, True, False]
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -1.0, 3.0, 0.0, -2.2]))


def test_the_clipped_value_loss_by_hand() -> None:
    """eps = 1, V_old = 2. The larger of (V - G)^2 / 2 and (clip(V, 1, 3) - G)^2 / 2, and its derivative:

    V = 4, G = 5: 1/2 and (3 - 5)^2 / 2 = 2: clipped, no gradient. V = 4, G = 0: 8 and 9/2: free, V - G = 4.
    V = 5/2, G = 1: inside the range, 9/8 and 3/2. V = 0, G = -1: 1/2 and (1 + 1)^2 / 2 = 2: clipped.
    """
    values = torch.tensor([4.0, 4.0, 2.5, 0.0], requires_grad=True)
    losses, clipped = value_loss(values, torch.full((4,), 2.0), torch.tensor([5.0, 0.0, 1.0, -1.0]), 1.0)
    torch.testing.assert_close(losses, torch.tensor([2.0, 8.0, 1.125, 2.0]))
    assert clipped.tolist() == [True, False, False, True]
    losses.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 4.0, 1.5, 0.0]))
    free, held = value_loss(torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([5.0]), None)
    assert (free.item(), held.item()) == (0.5, False)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.1 * 1.05),  # a tenth above the target of 6, half a horizon of episodes
        (5.4, 0.1 * 0.95),
        (60.0, 0.1 * 1.1),  # the error counts as 1/5 at most
        (-3.0, 0.1 * 0.9),
        (6.0, 0.1),
    ],
)
def test_the_penalty_follows_the_divergence(kl: float, expected: float) -> None:
    assert adapted_kl_coef(0.1, kl, target=6.0, num_episodes=500, horizon=1000) == pytest.approx(expected)


def test_the_entropy_is_that_of_the_softmax() -> None:
    """Odds 1 : 1 : 2 have 2 (1/4 log 4) + 1/2 log 2 = 3/2 log 2 nats; a token without a chance adds nothing."""
    by_hand = torch.tensor([[0.0, 0.0, math.log(2.0), -math.inf], [5.0, 5.0, 5.0, 5.0]])
    torch.testing.assert_close(entropy(by_hand), torch.tensor([1.5 * math.log(2), math.log(4)]))
    torch.manual_seed(0)
    logits = 4 * torch.randn(50, 30)
    exact = torch.distributions.Categorical(logits=logits.double()).entropy().float()
    for chunk in (1, 100, 2**24):
        torch.testing.assert_close(entropy(logits, chunk), exact, atol=1e-6, rtol=1e-5)


def test_explained_variance_of_exact_useless_and_constant_values() -> None:
    returns, mask = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.ones(4, dtype=torch.bool)
    _, whole = moments(returns, mask)

    def explained(values: list[float]) -> float:
        return float(explained_variance(moments(returns - torch.tensor(values), mask)[1], whole))

    assert explained([1.0, 3.0, 5.0, 7.0]) == 1
    assert explained([4.0, 4.0, 4.0, 4.0]) == 0
    assert explained([2.0, 2.0, 6.0, 6.0]) == pytest.approx(1 - 1 / 5)  # residuals -1, 1, -1, 1 of a variance of 5
    assert math.isnan(float(explained_variance(torch.tensor(0.0), torch.tensor(0.0))))
