"""Every objective: its value, its gradient, and what must leave both alone.

All numbers follow from one batch of two completions, written as probabilities:

    row 0   policy 1/2 1/4       reference 1/4 1/4        token ratios 2 1        sequence ratio 2
    row 1   policy 1/8 1/2 1/2   reference 1/2 1/2 2/5    token ratios 1/4 1 5/4  sequence ratio 5/16

so that lp = -3 L and -5 L with L = log 2. Clipping is at epsilon = 1/2, to [1/2, 3/2], unless a test says
otherwise.
"""

import math
from dataclasses import fields

import pytest
import torch
from jaxtyping import TypeCheckError

from leftover.objectives import OBJECTIVES
from leftover.objectives.pointwise import ClipSettings, FloorSettings, KLSettings
from leftover.objectives.requirements import ROW_NUMBERS
from leftover.training.extras import PROVIDERS, ROW_EXTRAS
from tests.objectives.objective_checks import (
    POLICY,
    REWARD,
    L,
    as_doubles,
    assert_all_close,
    check,
    generic_batch,
    loss_and_gradient,
    make_batch,
    same,
)

CLIP = ClipSettings(1 / 2)
NO_CLIP = ClipSettings(None)
A_LOL = [name for name in OBJECTIVES if name.startswith("a_lol")]


def test_nll_is_the_sum_over_tokens():
    check("nll", None, [3 * L, 5 * L], [[-1, -1], [-1, -1, -1]])


def test_wbc_is_the_reward_times_nll():
    check("wbc", None, [3 * 3 * L, 2 * 5 * L], [[-3, -3], [-2, -2, -2]])


def test_r_gold_weighs_each_token_by_its_own_probability():
    # 3 (1/2 L + 1/4 2L) and 2 (1/8 3L + 1/2 L + 1/2 L); no probability is below u = 1/10.
    losses = [3 * L, 2 * 11 / 8 * L]
    check("r_gold", FloorSettings(), losses, [[-3 / 2, -3 / 4], [-2 / 8, -2 / 2, -2 / 2]])


def test_r_gold_raises_small_probabilities_to_the_floor():
    # u = 1/5 lifts the 1/8 alone: 2 (1/5 3L + 1/2 L + 1/2 L).
    losses = [3 * L, 2 * 8 / 5 * L]
    check("r_gold", FloorSettings(1 / 5), losses, [[-3 / 2, -3 / 4], [-2 / 5, -2 / 2, -2 / 2]])


def test_r_lol_weighs_by_the_clipped_sequence_ratio():
    # The ratios 2 and 5/16 are clipped to 3/2 and 1/2.
    check("r_lol", CLIP, [3 * 3 / 2 * 3 * L, 2 * 1 / 2 * 5 * L], [[-9 / 2] * 2, [-1] * 3])


def test_r_lol_without_clip_takes_the_ratio_as_it_is():
    check("r_lol", NO_CLIP, [3 * 2 * 3 * L, 2 * 5 / 16 * 5 * L], [[-6] * 2, [-5 / 8] * 3])


def test_a_lol_weighs_by_the_clipped_sequence_ratio():
    check("a_lol", CLIP, [2 * 3 / 2 * 3 * L, 1 / 2 * 1 / 2 * 5 * L], [[-3] * 2, [-1 / 4] * 3])


def test_a_lol_without_clip_takes_the_ratio_as_it_is():
    check("a_lol", NO_CLIP, [2 * 2 * 3 * L, 1 / 2 * 5 / 16 * 5 * L], [[-4] * 2, [-5 / 32] * 3])


def test_a_lol_clips_at_nine_tenths_by_default():
    # [0.1, 1.9]: of the ratios 2 and 5/16 only the first is touched.
    check("a_lol", None, [2 * 1.9 * 3 * L, 1 / 2 * 5 / 16 * 5 * L], [[-3.8] * 2, [-5 / 32] * 3])


def test_a_lol_ref_free_is_the_advantage_times_nll():
    check("a_lol_ref_free", None, [2 * 3 * L, 1 / 2 * 5 * L], [[-2] * 2, [-1 / 2] * 3])


def test_a_lol_seq_clips_token_by_token():
    # Ratios 2 1 -> 3/2 1 and 1/4 1 5/4 -> 1/2 1 5/4: 2 (3/2 L + 2L) and 1/2 (1/2 3L + L + 5/4 L).
    losses = [7 * L, 15 / 8 * L]
    check("a_lol_seq", CLIP, losses, [[-3, -2], [-1 / 4, -1 / 2, -5 / 8]])


def test_a_lol_seq_without_clip_takes_the_ratios_as_they_are():
    # 2 (2 L + 2L) and 1/2 (1/4 3L + L + 5/4 L).
    losses = [8 * L, 3 / 2 * L]
    check("a_lol_seq", NO_CLIP, losses, [[-4, -2], [-1 / 8, -1 / 2, -5 / 8]])


def test_a_lol_kl_k1_adds_the_log_ratio_and_shifts_the_advantage_by_beta():
    losses = [2 * 3 * L + 1 / 4 * L, 1 / 2 * 5 * L + 1 / 4 * math.log(5 / 16)]
    check("a_lol_kl", KLSettings(1 / 4), losses, [[-7 / 4] * 2, [-1 / 4] * 3])


def test_a_lol_kl_k1_pushes_down_rows_whose_advantage_is_below_beta():
    # Of A = (1/8, 1/2) and beta = 1/4 the first row gets the gradient beta - A = +1/8.
    batch = make_batch(advantage=(1 / 8, 1 / 2))
    losses = [1 / 8 * 3 * L + 1 / 4 * L, 1 / 2 * 5 * L + 1 / 4 * math.log(5 / 16)]
    check("a_lol_kl", KLSettings(1 / 4), losses, [[1 / 8] * 2, [-1 / 4] * 3], batch)


def test_a_lol_kl_k3_pulls_each_token_towards_the_reference():
    # With ratio r a token costs 1/r - 1 + log r, and its gradient is 1 - 1/r: 1/2 0 and -3 0 1/5.
    costs = [1 / 2 - 1 + L, (4 - 1 - 2 * L) + (4 / 5 - 1 + math.log(5 / 4))]
    losses = [2 * 3 * L + 1 / 4 * costs[0], 1 / 2 * 5 * L + 1 / 4 * costs[1]]
    gradients = [[-2 + 1 / 8, -2], [-1 / 2 - 3 / 4, -1 / 2, -1 / 2 + 1 / 20]]
    check("a_lol_kl", KLSettings(1 / 4, "k3"), losses, gradients)


def test_a_lol_kl_k3_is_zero_and_flat_where_policy_is_reference():
    same("a_lol_kl", KLSettings(1.0, "k3"), "a_lol_ref_free", None, make_batch(reference=POLICY))


def test_a_lol_equals_ref_free_where_policy_is_reference():
    same("a_lol", None, "a_lol_ref_free", None, make_batch(reference=POLICY))


def test_a_lol_seq_equals_ref_free_where_policy_is_reference():
    same("a_lol_seq", None, "a_lol_ref_free", None, make_batch(reference=POLICY))


def test_a_lol_ref_free_with_advantage_one_equals_nll():
    same("a_lol_ref_free", None, "nll", None, make_batch(advantage=(1.0, 1.0)))


def test_a_lol_seq_on_one_token_equals_a_lol():
    batch = make_batch(policy=[[1 / 2], [1 / 8]], reference=[[1 / 8], [1 / 2]])
    for settings in (CLIP, NO_CLIP):
        same("a_lol_seq", settings, "a_lol", settings, batch)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_lol_kl_without_beta_equals_ref_free(estimator):
    same("a_lol_kl", KLSettings(0.0, estimator), "a_lol_ref_free", None, make_batch())


def test_a_lol_with_reward_as_advantage_equals_r_lol():
    same("a_lol", CLIP, "r_lol", CLIP, make_batch(advantage=REWARD))


@pytest.mark.parametrize("name", A_LOL)
@pytest.mark.parametrize("advantage", [-2.0, 0.0])
def test_a_row_that_is_not_left_over_adds_neither_loss_nor_gradient(name, advantage):
    losses, gradient = loss_and_gradient(name, make_batch(advantage=(advantage, 1 / 2)))
    assert losses[0] == 0 and (gradient[0] == 0).all()
    assert losses[1] != 0 and (gradient[1, :3] != 0).all()


def test_a_lol_kl_k3_adds_nothing_for_a_row_that_is_not_left_over():
    batch = make_batch(advantage=(-2.0, 1 / 2))
    losses, gradient = loss_and_gradient("a_lol_kl", batch, KLSettings(1.0, "k3"))
    assert losses[0] == 0 and (gradient[0] == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("padding", [0, 5])
def test_the_amount_of_padding_changes_nothing(name, padding):
    losses, gradient = loss_and_gradient(name, generic_batch())
    other_losses, other_gradient = loss_and_gradient(name, generic_batch(padding=padding))
    torch.testing.assert_close(losses, other_losses)
    torch.testing.assert_close(gradient[:, :3], other_gradient[:, :3])
    assert (other_gradient[:, 3:] == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_in_the_padding_changes_nothing(name):
    one, other = generic_batch(junk=7.0), generic_batch(junk=-300.0)
    assert_all_close(loss_and_gradient(name, one), loss_and_gradient(name, other))


# The weight exp(logprob) of r_gold is NaN at such padding, and 0 * NaN comes back in the gradient.


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_nan_in_the_padding_reaches_neither_loss_nor_gradient(name):
    for value in loss_and_gradient(name, generic_batch(junk=math.nan)):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_the_batch_changes_nothing(name, order):
    losses, gradient = loss_and_gradient(name, generic_batch())
    other_losses, other_gradient = loss_and_gradient(name, generic_batch(order))
    if OBJECTIVES[name].unit == "completion":  # the losses of groups come in the order of their ids
        losses = losses[order]
    assert_all_close((other_losses, other_gradient), (losses, gradient[order]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_unit_does_not_feel_its_batch(name):
    losses, gradient = loss_and_gradient(name, generic_batch())
    other_losses, other_gradient = loss_and_gradient(name, generic_batch([2, 3], padding=2))
    # The second prompt has the smaller id.
    losses = losses[2:] if OBJECTIVES[name].unit == "completion" else losses[:1]
    assert_all_close((other_losses, other_gradient), (losses, gradient[2:]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_token_of_some_row_has_a_gradient_and_metrics_are_vectors(name):
    objective, batch = OBJECTIVES[name], generic_batch()
    _, gradient = loss_and_gradient(name, batch)
    assert (gradient[batch.mask] != 0).any() and (gradient[~batch.mask] == 0).all()
    found = objective.metrics(batch, objective.settings()) if objective.metrics else {}
    assert all(values.ndim == 1 and values.isfinite().all() for values in found.values())


def test_importance_weights_for_the_log_are_the_unclipped_ratios():
    batch = make_batch()
    weights, valid = OBJECTIVES["a_lol"].importance_weights(batch, CLIP)
    torch.testing.assert_close(weights, as_doubles([2, 5 / 16]))
    assert valid.all() and not weights.requires_grad
    weights, valid = OBJECTIVES["a_lol_seq"].importance_weights(batch, CLIP)
    torch.testing.assert_close(weights[valid], as_doubles([2, 1, 1 / 4, 1, 5 / 4]))
    assert (weights[~valid] == 1).all() and not weights.requires_grad


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.draw_by])
def test_a_column_of_rewards_or_advantages_is_refused(name):
    # (B, 1) against (B,) would broadcast to (B, B).
    column = OBJECTIVES[name].draw_by
    batch = make_batch()
    batch = batch._replace(**{column: getattr(batch, column).unsqueeze(-1)})
    with pytest.raises(TypeCheckError):
        loss_and_gradient(name, batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mask_that_is_not_boolean_is_refused(name):
    batch = generic_batch()
    with pytest.raises((TypeCheckError, RuntimeError)):
        loss_and_gradient(name, batch._replace(mask=batch.mask.long()))


# NaN > 0 is false, so that a_lol_kl takes a missing advantage for one that is not left over.


@pytest.mark.parametrize("name", A_LOL)
def test_an_advantage_that_the_table_lacks_shows_as_nan(name):
    losses, _ = loss_and_gradient(name, make_batch(advantage=(math.nan, 1 / 2)))
    assert losses.isnan().tolist() == [True, False]


def test_nll_does_not_look_at_rewards_and_advantages():
    batch = make_batch(reward=(math.nan,) * 2, advantage=(math.nan,) * 2)
    check("nll", None, [3 * L, 5 * L], [[-1, -1], [-1, -1, -1]], batch)


def test_the_objectives_are_these():
    """A new objective, or a changed one, is a decision: it has to be written down here."""
    reward, value = {"reward", "nonnegative_reward"}, {"reward", "value", "advantage"}
    reference = {"reference_logprobs"}
    clip, kl = {"clip": 0.9}, {"beta": 0.1, "kl_estimator": "k1"}
    expected = {
        # name: settings, needs under them, draw_by, rows, unit
        "nll": ({}, set(), None, "all", "completion"),
        "nll_top": ({}, {"reward"}, None, "top", "completion"),
        "wbc": ({}, reward, "reward", "all", "completion"),
        "r_gold": ({"floor": 0.1}, reward, "reward", "all", "completion"),
        "r_lol": (clip, reward | reference, "reward", "all", "completion"),
        "a_lol": (clip, value | reference, "advantage", "leftover", "completion"),
        "a_lol_ref_free": ({}, value, "advantage", "leftover", "completion"),
        "a_lol_seq": (clip, value | reference, "advantage", "leftover", "completion"),
        "a_lol_kl": (kl, value | reference, "advantage", "leftover", "completion"),
        "dpo": ({"beta": 0.1, "reference_free": False}, {"reward"} | reference, None, "all", "group"),
        "pro": ({"sft_weight": 0.05}, {"reward"}, None, "all", "group"),
        "grpo_offline": ({"clip": 0.2, "beta": 0.0}, {"reward"} | reference, None, "all", "group"),
        "awr": (
            {"temperature": 1.0, "max_weight": 20.0},
            value | {"advantage_mean", "advantage_scale"},
            None,
            "all",
            "completion",
        ),
        "kto": (
            {"beta": 0.1, "threshold": None, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            value | reference | {"mismatched_logratio"}, None, "all", "completion",
        ),
        "dro": (
            {"tau": 1.0, "value_learning_rate": 1e-3}, {"reward", "soft_value"} | reference, None, "all", "completion"
        ),
        "qrpo": ({"beta": 0.1}, {"reward", "reward_quantile"} | reference, None, "all", "completion"),
        "var": ({"temperature": 1.0}, {"reward", "log_normaliser"}, None, "all", "completion"),
    }  # fmt: skip
    found = {
        name: (vars(o.settings()), set(o.needs(o.settings())), o.draw_by, o.rows, o.unit)
        for name, o in OBJECTIVES.items()
    }
    assert found == expected
    weighted = {name for name, o in OBJECTIVES.items() if o.importance_weights is not None}
    assert weighted == {"r_lol", "a_lol", "a_lol_seq", "a_lol_kl", "grpo_offline"}


def test_whatever_an_objective_requires_is_a_column_or_has_a_provider():
    known = {*ROW_NUMBERS, "reference_logprobs", "nonnegative_reward", *PROVIDERS, *ROW_EXTRAS}
    for objective in OBJECTIVES.values():
        other = {f.name: True for f in fields(objective.settings) if f.default is False}
        other |= {f.name: 0.5 for f in fields(objective.settings) if f.default is None}
        for given in (objective.settings(), objective.settings(**other)):
            assert objective.needs(given) | objective.optional <= known


@pytest.mark.parametrize("name", ["r_lol", "a_lol", "a_lol_seq"])
def test_without_clip_a_huge_ratio_does_not_make_a_row_without_weight_nan(name):
    batch = make_batch(policy=[[1.0]], reference=[[1.0]], reward=(0.0,), advantage=(0.0,))
    batch = batch._replace(reference_logprobs=batch.reference_logprobs - 1000)
    losses, gradient = loss_and_gradient(name, batch, NO_CLIP)
    assert (losses == 0).all() and (gradient == 0).all()
