"""Transforms of the reward: fitted on training rows, stored as JSON, applied to anything."""

import json
import math

import numpy as np
import pytest

from leftover.errors import UserError
from leftover.rewards.transform import apply_transform, fit_transform

NAN = float("nan")
TRAIN = np.array([-2.0, 0.0, NAN, 2.0, 6.0])
SPECS = [None, {"scale": 2.0, "offset": 1.0}, "sigmoid", "minmax", "quantile"]


def transformed(spec, rewards, train=TRAIN):
    """Fit, store and apply, as a run does."""
    return apply_transform(json.loads(json.dumps(fit_transform(spec, train))), rewards)


def test_none_leaves_rewards_alone():
    assert transformed(None, [-3.0, 5.0]).tolist() == [-3, 5]


def test_affine_is_scale_and_offset():
    assert transformed({"scale": 2.0, "offset": 1.0}, [-3.0, 5.0]).tolist() == [-5, 11]


def test_affine_defaults_are_no_change():
    assert transformed({"offset": 2.0}, [1.0]).tolist() == [3]
    assert transformed({"scale": 3.0}, [1.0]).tolist() == [3]


def test_sigmoid_of_log_odds_is_the_probability_without_warning():
    with np.errstate(all="raise", under="ignore"):
        values = transformed("sigmoid", [0.0, math.log(3), -1000.0, 1000.0])
    np.testing.assert_allclose(values, [1 / 2, 3 / 4, 0, 1])


def test_minmax_maps_the_training_range_to_one_and_clips_beyond_it():
    np.testing.assert_allclose(transformed("minmax", [-2.0, 0.0, 6.0, -9.0, 9.0]), [0, 2 / 8, 1, 0, 1])


def test_minmax_of_equal_rewards_is_finite():
    assert np.isfinite(transformed("minmax", [3.0, 4.0], train=np.full(3, 3.0))).all()


def test_quantile_is_the_middle_rank_among_training_rewards():
    # Four training rewards: each spans a rank of 1/4; between 0 and 2 lie two below.
    np.testing.assert_allclose(transformed("quantile", [-2.0, 0.0, 2.0, 6.0]), [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    np.testing.assert_allclose(transformed("quantile", [1.0, -9.0, 9.0]), [1 / 2, 0, 1])


def test_quantile_gives_ties_the_middle_of_their_ranks():
    np.testing.assert_allclose(transformed("quantile", [1.0, 2.0], train=np.array([1.0, 1, 1, 2])), [3 / 8, 7 / 8])


def test_quantile_of_many_rewards_is_their_rank():
    train = np.random.default_rng(0).normal(size=20_000)
    ranks = (np.argsort(np.argsort(train)) + 0.5) / len(train)
    np.testing.assert_allclose(transformed("quantile", train, train=train), ranks, atol=2e-3)
    assert len(json.dumps(fit_transform("quantile", train))) < 30_000


@pytest.mark.parametrize("spec", SPECS)
def test_a_missing_reward_stays_missing(spec):
    values = transformed(spec, [1.0, NAN])
    assert np.isnan(values).tolist() == [False, True] and values.dtype == np.float64


@pytest.mark.parametrize("spec", SPECS)
def test_transforms_keep_the_order_of_rewards(spec):
    values = transformed(spec, np.linspace(-2, 6, 50))
    assert (np.diff(values) >= 0).all() and values[-1] > values[0]


@pytest.mark.parametrize("spec", ["sigmoid", "minmax", "quantile"])
def test_bounded_transforms_give_no_negative_reward(spec):
    values = transformed(spec, np.linspace(-50, 50, 101))
    assert values.min() >= 0 and values.max() <= 1


@pytest.mark.parametrize("spec", ["minmax", "quantile"])
def test_a_fit_without_any_reward_is_refused(spec):
    with pytest.raises(UserError, match=rf"{spec} .*is fitted on training rewards, and no training row has one"):
        fit_transform(spec, np.full(3, NAN))
