"""Objectives of groups, from the batch of `objective_checks` as one group, and which rows make a group usable.

The log-ratios of its two completions are log 2 and log 5/16, their rewards 3 and 2.
"""

import math

import numpy as np
import pytest
import torch

from leftover.data.collate import Collator
from leftover.objectives.groups import best_and_worst, ranked_groups, unequal
from leftover.objectives.groupwise import DPOSettings, GRPOSettings, PROSettings, dpo_metrics, group_advantage
from tests.objectives.objective_checks import L, check, generic_batch, loss_and_gradient, make_batch

NAN = math.nan
TOGETHER = [0, 0]


def test_dpo_prefers_the_completion_of_higher_reward():
    # beta = 1: the margin is log 2 - log 5/16 = log 32/5, so that 1 - sigmoid is 5/37.
    batch = make_batch(group=TOGETHER)
    check("dpo", DPOSettings(1.0), [math.log(37 / 32)], [[-5 / 37] * 2, [5 / 37] * 3], batch)


def test_dpo_without_reference_compares_likelihoods():
    # lp = -3 L and -5 L: the margin is 2 L, and 1 - sigmoid is 1/5; twice beta is four times the odds.
    batch = make_batch(group=TOGETHER)
    check("dpo", DPOSettings(1.0, True), [math.log(5 / 4)], [[-1 / 5] * 2, [1 / 5] * 3], batch)
    check("dpo", DPOSettings(2.0, True), [math.log(17 / 16)], [[-2 / 17] * 2, [2 / 17] * 3], batch)


def test_dpo_follows_the_choice_where_it_is_known():
    batch = make_batch(group=TOGETHER, is_chosen=[0.0, 1.0])
    # The margin is log 5/32: sigmoid(-margin) = 32/37.
    check("dpo", DPOSettings(1.0), [math.log(37 / 5)], [[32 / 37] * 2, [-32 / 37] * 3], batch)


def test_dpo_takes_the_best_and_the_worst_of_many():
    rows = {"policy": [[1 / 2]] * 3, "reference": [[1 / 2]] * 3, "advantage": [0.0] * 3, "group": [4] * 3}
    batch = make_batch(reward=[2.0, 5.0, -1.0], **rows)
    check("dpo", DPOSettings(1.0), [L], [[0], [-1 / 2], [1 / 2]], batch)
    batch = make_batch(reward=[2.0, 5.0, -1.0], is_chosen=[1.0, NAN, 0.0], **rows)
    check("dpo", DPOSettings(1.0), [L], [[-1 / 2], [0], [1 / 2]], batch)


def test_dpo_reports_margin_and_accuracy():
    found = dpo_metrics(make_batch(group=TOGETHER), DPOSettings(1.0))
    torch.testing.assert_close(found["rewards/margins"], torch.tensor([math.log(32 / 5)]).double())
    assert found["rewards/accuracies"].tolist() == [1]


def test_pro_on_a_pair():
    # s = -3/2 L and -5/3 L at temperature 1: log(1 + 2^(-1/6)); and 0.05 of the better one's 3 L.
    odds = 2 ** (-1 / 6)
    p = odds / (1 + odds)
    batch = make_batch(group=TOGETHER)
    gradients = [[-p / 2 - 0.05] * 2, [p / 3] * 3]
    check("pro", PROSettings(), [math.log(1 + odds) + 0.05 * 3 * L], gradients, batch)


def test_pro_ranks_three_completions():
    # s = -L, -2 L, -3 L. First against both, temperatures 3 1 3: 2^-3 + 2^-2 + 2^-9 over 2^-3 is 193/64.
    # Second against third, temperature 2: 2^-4 + 2^-6 over 2^-4 is 5/4. The best weighs 0.05 (3 - 1)^2.
    rows = {"policy": [[1 / 4], [1 / 8], [1 / 2]], "reference": [[1 / 2]] * 3, "advantage": [0.0] * 3}
    batch = make_batch(reward=[3.0, 1.0, 4.0], group=[7] * 3, **rows)
    loss = math.log(193 / 64) + math.log(5 / 4) + 0.2 * L
    gradients = [[128 / 193 - 2 / 5], [3 / 193 + 2 / 5], [3 * 64 / 193 - 3 - 0.2]]
    check("pro", PROSettings(), [loss], gradients, batch)


def test_pro_in_groups_of_unequal_size_equals_each_alone():
    rows = {"policy": [[1 / 4], [1 / 8], [1 / 2], [1 / 2], [1 / 8]], "reference": [[1 / 2]] * 5, "advantage": [0.0] * 5}
    reward, group = [3.0, 1.0, 4.0, 0.5, 0.25], [7, 7, 7, 3, 3]
    losses, gradient = loss_and_gradient("pro", make_batch(reward=reward, group=group, **rows))
    for ids, where in ((slice(3, 5), 0), (slice(0, 3), 1)):
        alone = make_batch(reward=reward[ids], group=group[ids], **{name: rows[name][ids] for name in rows})
        loss, own = loss_and_gradient("pro", alone)
        torch.testing.assert_close(losses[where : where + 1], loss)
        torch.testing.assert_close(gradient[ids], own)


def test_grpo_offline_clips_token_by_token_on_the_side_that_would_gain():
    # A = +-a with sd 1/sqrt 2 over n - 1. Ratios 2 1 and 1/4 1 5/4, clipped at 1/2:
    # min(2 a, 3/2 a) + a, and min(-a/4, -a/2) - a - 5/4 a; the clipped ones have no gradient.
    a = 1 / 2 / (1 / math.sqrt(2) + 1e-4)
    batch = make_batch(group=TOGETHER)
    gradients = [[0, -a / 4], [0, a / 6, 5 * a / 24]]
    check("grpo_offline", GRPOSettings(1 / 2), [-a / 6], gradients, batch)


def test_grpo_offline_can_be_held_to_the_reference():
    # beta k3 = beta (1/r - 1 + log r) with gradient beta (1 - 1/r), averaged over tokens and completions.
    a = 1 / 2 / (1 / math.sqrt(2) + 1e-4)
    costs = [1 / 2 - 1 + L, (4 - 1 - 2 * L) + (4 / 5 - 1 + math.log(5 / 4))]
    loss = -a / 6 + (costs[0] / 2 + costs[1] / 3) / 2
    gradients = [[1 / 2 / 4, -a / 4], [-3 / 6, a / 6, 5 * a / 24 + 1 / 5 / 6]]
    check("grpo_offline", GRPOSettings(1 / 2, 1.0), [loss], gradients, make_batch(group=TOGETHER))


def test_group_advantages_by_hand():
    # Rewards 1 2 6: mean 3, squares 4 1 9, over n - 1 a variance of 7. The other group is one row.
    rows = {"policy": [[1 / 2]] * 4, "reference": [[1 / 2]] * 4, "advantage": [0.0] * 4}
    batch = make_batch(reward=[1.0, 9.0, 2.0, 6.0], group=[3, 8, 3, 3], **rows)
    expected = torch.tensor([-2.0, 0.0, -1.0, 3.0]).double() / (math.sqrt(7) + 1e-4)
    torch.testing.assert_close(group_advantage(batch), expected)


def test_groups_are_ranked_best_first_in_the_order_of_their_ids():
    index, mask = ranked_groups(generic_batch([0, 2, 1]))
    assert index[mask].tolist() == [1, 0, 2] and mask.tolist() == [[True, False], [True, True]]


def columns_of(reward, group, is_chosen=None):
    columns = {"reward": np.array(reward, float), "group": np.array(group)}
    return columns | ({} if is_chosen is None else {"is_chosen": np.array(is_chosen, float)})


def rows_of(keep):
    return np.flatnonzero(keep).tolist()


def test_a_pair_is_the_best_and_the_worst_of_the_selected_rows():
    columns = columns_of([2, 5, -1, 3, 1, 1], [9, 9, 9, 4, 4, 4])
    assert rows_of(best_and_worst(columns, np.ones(6, bool))) == [1, 2, 3, 5]
    assert rows_of(best_and_worst(columns, np.array([1, 0, 1, 1, 0, 0], bool))) == [0, 2]


def test_a_tie_and_a_lone_completion_are_no_pair():
    assert rows_of(best_and_worst(columns_of([2, 2, 7], [0, 0, 1]), np.ones(3, bool))) == []


def test_a_choice_makes_a_pair_of_equal_rewards_and_overrules_others():
    columns = columns_of([2, 2, 1, 3], [0, 0, 1, 1], [0, 1, 1, 0])
    assert rows_of(best_and_worst(columns, np.ones(4, bool))) == [0, 1, 2, 3]
    columns = columns_of([5, 3, 1], [0, 0, 0], [NAN, 1, 0])
    assert rows_of(best_and_worst(columns, np.ones(3, bool))) == [1, 2]


def test_the_selected_pair_is_the_pair_of_the_loss():
    rng = np.random.default_rng(0)
    for _ in range(20):
        reward, choice = rng.integers(0, 3, 5).astype(float), rng.choice([0.0, 1.0, NAN], 5)
        columns = columns_of(reward, [0] * 5, choice)
        keep = best_and_worst(columns, np.ones(5, bool))
        rows = {"policy": [[1 / 2]] * 5, "reference": [[1 / 2]] * 5, "advantage": [0.0] * 5, "group": [0] * 5}
        _, gradient = loss_and_gradient("dpo", make_batch(reward=reward, is_chosen=choice, **rows))
        if keep.any():
            assert rows_of(gradient.abs().sum(1).numpy() > 0) == rows_of(keep)


def test_lists_need_two_completions_of_unequal_reward():
    columns = columns_of([1, 2, 3, 3, 4, 5], [0, 0, 1, 1, 2, 3])
    assert rows_of(unequal(columns, np.ones(6, bool))) == [0, 1]


@pytest.mark.parametrize("usable", [best_and_worst, unequal])
def test_nothing_selected_is_nothing_usable(usable):
    assert not usable(columns_of([1, 2], [0, 0]), np.zeros(2, bool)).any()


# float32 holds these two as one number; the better one stands second.
CLOSE = (2.0**24, 2.0**24 + 1)


def collated(rewards):
    rows = [{"prompt_ids": [1], "completion_ids": [1], "reward": reward, "group": 0} for reward in rewards]
    inputs = Collator(0)(rows)
    assert inputs["reward"][0] == inputs["reward"][1]
    numbers = {name: inputs[name].double() for name in ("reward", "reward_low")}
    return make_batch(group=[0] * len(rewards))._replace(**numbers)


def test_rewards_that_float32_cannot_tell_apart_are_compared_in_float64():
    batch = collated(CLOSE)
    assert ranked_groups(batch)[0].tolist() == [[1, 0]]
    assert group_advantage(batch)[1] > 0.5 > -0.5 > group_advantage(batch)[0]
    for name in ("dpo", "pro", "grpo_offline"):
        _, gradient = loss_and_gradient(name, batch)
        assert gradient[1].sum() < 0 < gradient[0].sum(), f"{name} lifts the better one"
    columns = columns_of(CLOSE, [0, 0])
    for usable in (best_and_worst, unequal):
        assert rows_of(usable(columns, np.ones(2, bool))) == [0, 1]


def test_rewards_that_differ_by_rounding_are_no_pair():
    columns = columns_of((0.1 + 0.2, 0.3), [0, 0])
    for usable in (best_and_worst, unequal):
        assert rows_of(usable(columns, np.ones(2, bool))) == []
