"""awr, kto, dro, qrpo and var on the batch of `objective_checks`, whose log-ratios are log 2 and log 5/16."""

import math

import numpy as np
import pytest
import torch

from leftover.data.collate import Collator
from leftover.objectives import OBJECTIVES
from leftover.objectives.offline import (
    AWRSettings,
    DROSettings,
    KTOSettings,
    QRPOSettings,
    VARSettings,
    advantage_moments,
    awr_row_weight,
    awr_weight,
    desirable,
)
from tests.objectives.objective_checks import L, as_doubles, check, loss_and_gradient, make_batch, same


def test_awr_weighs_by_the_exponential_of_the_advantage():
    # A - m = 2 L and -2 L over a scale of 2: weights 2 and 1/2.
    batch = make_batch(advantage=(5 * L, L), advantage_mean=3 * L, advantage_scale=2.0)
    check("awr", AWRSettings(), [2 * 3 * L, 1 / 2 * 5 * L], [[-2] * 2, [-1 / 2] * 3], batch)


def test_awr_at_half_the_temperature_squares_the_weights_and_bounds_them():
    batch = make_batch(advantage=(5 * L, L), advantage_mean=3 * L, advantage_scale=2.0)
    check("awr", AWRSettings(1 / 2), [4 * 3 * L, 1 / 4 * 5 * L], [[-4] * 2, [-1 / 4] * 3], batch)
    check("awr", AWRSettings(1 / 2, 3.0), [3 * 3 * L, 1 / 4 * 5 * L], [[-3] * 2, [-1 / 4] * 3], batch)


def test_awr_weights_of_the_rows_are_those_of_the_authors_code():
    # Its steps: (A - mean) / sd, exp, at most 20. With a mean of 3 sd most uncentred weights would be at the bound.
    rng = np.random.default_rng(0)
    columns = {"advantage": np.append(rng.normal(3, 1, 500), np.nan)}
    known = columns["advantage"][:-1]
    expected = np.minimum(np.exp((known - known.mean()) / known.std()), 20)
    found = awr_row_weight(columns, AWRSettings())
    np.testing.assert_allclose(found[:-1], expected)
    assert np.isnan(found[-1]) and (found[:-1] > 19.9).mean() < 0.01
    mean, scale = advantage_moments(columns["advantage"])
    batch = make_batch(advantage=known[:2], advantage_mean=mean, advantage_scale=scale)
    np.testing.assert_allclose(awr_weight(batch, AWRSettings()), expected[:2])


def test_awr_of_equal_advantages_weighs_all_alike():
    assert advantage_moments(np.full(4, 0.25)) == (0.25, 1.0)
    for tenth in (0.3, 0.1, 0.7):  # whose deviation is rounding, not 0
        columns = {"advantage": np.full(1000, tenth)}
        assert awr_row_weight(columns, AWRSettings()) == pytest.approx(np.ones(1000))


@pytest.mark.parametrize("exact", [True, False])
def test_kto_compares_with_its_threshold_in_float64(exact: bool):
    # float32 holds 16,777,217 and 16,777,216 as one number, and .1 as a little more than .1.
    rewards, threshold = ((2.0**24 + 1, 2.0**24), 2.0**24) if exact else ((0.1 + 0.2, 0.4), 0.3)
    collated = Collator(0)([{"prompt_ids": [1], "completion_ids": [1], "reward": reward} for reward in rewards])
    batch = make_batch()._replace(reward=collated["reward"], reward_low=collated["reward_low"])
    # .1 + .2 is above .3 by rounding alone.
    assert desirable(batch, KTOSettings(1.0, threshold)).tolist() == [exact, not exact]


def test_awr_of_an_enormous_advantage_is_finite():
    losses, _ = loss_and_gradient("awr", make_batch(advantage=(1e9, 0.0), advantage_mean=0.0, advantage_scale=1e-3))
    torch.testing.assert_close(losses, as_doubles([20 * 3 * L, 5 * L]))


# beta = 1 and a reference point of log 2: the gains are 0 and log 5/32, their sigmoids 1/2 and 5/37.
SLOPE = 5 * 32 / 37**2


def test_kto_lifts_what_is_above_the_value_and_lowers_the_rest():
    batch = make_batch(advantage=(2.0, -0.5), mismatched_logratio=L)
    check("kto", KTOSettings(1.0), [1 / 2, 5 / 37], [[-1 / 4] * 2, [SLOPE] * 3], batch)


def test_kto_can_label_by_a_threshold_of_the_reward():
    batch = make_batch(advantage=(math.nan,) * 2, mismatched_logratio=L)  # rewards 3 and 2
    check("kto", KTOSettings(1.0, 2.5), [1 / 2, 5 / 37], [[-1 / 4] * 2, [SLOPE] * 3], batch)
    check("kto", KTOSettings(1.0, 1.0), [1 / 2, 32 / 37], [[-1 / 4] * 2, [-SLOPE] * 3], batch)


def test_kto_weighs_the_two_labels():
    batch = make_batch(advantage=(2.0, -0.5), mismatched_logratio=L)
    settings = KTOSettings(1.0, None, 3.0, 2.0)
    check("kto", settings, [3 / 2, 10 / 37], [[-3 / 4] * 2, [2 * SLOPE] * 3], batch)


def test_the_reference_point_of_kto_is_never_below_zero():
    # Gains log 2 and log 5/16: 1 - 2/3 and 5/21.
    batch = make_batch(advantage=(2.0, -0.5), mismatched_logratio=-4.0)
    check("kto", KTOSettings(1.0), [1 / 3, 5 / 21], [[-2 / 9] * 2, [5 * 16 / 21**2] * 3], batch)


def test_dro_regresses_the_reward_less_the_value():
    # tau = 1/2, V = 1: R - V - tau D is x = 2 - L/2 and 1 - 1/2 log 5/16; the halves of both parts make x^2.
    errors = [2 - L / 2, 1 - math.log(5 / 16) / 2]
    batch = make_batch(soft_value=(1.0, 1.0))
    gradients = [[-errors[0] / 2] * 2, [-errors[1] / 2] * 3]
    check("dro", DROSettings(1 / 2), [x * x for x in errors], gradients, batch)


def test_the_value_of_dro_learns_what_the_policy_leaves():
    value = as_doubles([1.0, 1.0]).requires_grad_()
    batch = make_batch()._replace(extras={"soft_value": value})
    losses = OBJECTIVES["dro"].loss(batch, DROSettings(1 / 2))
    (gradient,) = torch.autograd.grad(losses.sum(), value)
    torch.testing.assert_close(gradient, -as_doubles([2 - L / 2, 1 - math.log(5 / 16) / 2]))


def test_dro_is_at_rest_at_the_optimum():
    # D = (R - V) / tau.
    batch = make_batch(reward=(1 + L, 2 + math.log(5 / 16)), soft_value=(1.0, 2.0))
    check("dro", DROSettings(1.0), [0, 0], [[0] * 2, [0] * 3], batch)


def test_qrpo_regresses_the_quantile():
    # beta = 1/2: Z = (e^2 - 1) / 2.
    log_z = math.log((math.exp(2) - 1) / 2)
    errors = [3 / 4 - log_z / 2 - L / 2, 1 / 4 - log_z / 2 - math.log(5 / 16) / 2]
    batch = make_batch(reward_quantile=(3 / 4, 1 / 4))
    check("qrpo", QRPOSettings(1 / 2), [x * x for x in errors], [[-errors[0]] * 2, [-errors[1]] * 3], batch)


def test_qrpo_normalises_the_optimal_policy():
    # With q uniform, E exp(q / beta) = Z, the integral of exp(q / beta) over [0, 1].
    q = torch.linspace(0, 1, 100_001).double()
    for beta in (0.05, 0.3, 2.0):
        z = torch.trapezoid((q / beta).exp(), q)
        batch = make_batch([[1.0]], [[1.0]], (0.0,), (0.0,), reward_quantile=(0.0,))
        losses, _ = loss_and_gradient("qrpo", batch, QRPOSettings(beta))
        torch.testing.assert_close(losses, (beta * z.log())[None] ** 2, rtol=1e-5, atol=0)


def test_qrpo_with_a_small_beta_does_not_overflow():
    losses, gradient = loss_and_gradient("qrpo", make_batch(reward_quantile=(1.0, 0.5)), QRPOSettings(3e-4))
    assert losses.isfinite().all() and gradient.isfinite().all()


def test_var_weighs_by_the_normalised_exponential_of_the_reward():
    # exp R = 4 and 2, whose mean is 3.
    batch = make_batch(reward=(2 * L, L), log_normaliser=math.log(3))
    check("var", VARSettings(), [4 / 3 * 3 * L, 2 / 3 * 5 * L], [[-4 / 3] * 2, [-2 / 3] * 3], batch)


def test_var_at_half_the_temperature_squares_the_ratio():
    # 16 and 4, whose mean is 10.
    batch = make_batch(reward=(2 * L, L), log_normaliser=math.log(10))
    check("var", VARSettings(1 / 2), [1.6 * 3 * L, 0.4 * 5 * L], [[-1.6] * 2, [-0.4] * 3], batch)


@pytest.mark.parametrize("name", ["awr", "var"])
def test_with_equal_rows_the_weights_are_one_and_the_loss_is_nll(name):
    batch = make_batch(
        reward=(5.0, 5.0), advantage=(0.0, 0.0), advantage_mean=0.0, advantage_scale=1.0, log_normaliser=5.0
    )
    same(name, None, "nll", None, batch)


def test_nll_top_is_nll():
    same("nll_top", None, "nll", None, make_batch())
