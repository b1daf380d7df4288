"""Which rows may be drawn, and with what weight, from five rows whose columns are written out."""

from unittest import mock

import numpy as np
import pytest
from datasets import Dataset

from leftover.errors import UserError
from leftover.objectives import OBJECTIVES
from leftover.objectives.requirements import check_requirements
from leftover.recipe.lol_config import LoLConfig
from leftover.training.selection import draw_weights, run_order, select_rows, selection, total_weights, training_columns

NAN = float("nan")
A_LOL, WBC, NLL = OBJECTIVES["a_lol"], OBJECTIVES["wbc"], OBJECTIVES["nll"]


def make_columns(reward=(0.5, 0.9, NAN, 0.0, 0.7), value=(0.7, 0.4, 0.1, 0.0, 0.5)) -> dict[str, np.ndarray]:
    """Advantages: -0.2, 0.5, NaN (no reward), 0 and 0.2, so that rows 1 and 4 are left over."""
    reward, value = np.array(reward), np.array(value)
    return {"reward": reward, "value": value, "advantage": reward - value}


def rows_of(selected: np.ndarray) -> list[int]:
    assert selected.dtype == bool
    return np.flatnonzero(selected).tolist()


def test_auto_is_leftover_for_advantage_objectives():
    assert rows_of(select_rows(A_LOL, make_columns(), "auto", 10)) == [1, 4]


def test_auto_is_all_scored_rows_for_reward_objectives():
    assert rows_of(select_rows(WBC, make_columns(), "auto", 10)) == [0, 1, 3, 4]


def test_auto_is_all_rows_for_nll_scored_or_not():
    assert rows_of(select_rows(NLL, make_columns(), "auto", 10)) == [0, 1, 2, 3, 4]


def test_nll_can_train_on_the_leftover_rows():
    assert rows_of(select_rows(NLL, make_columns(), "leftover", 10)) == [1, 4]


def test_an_advantage_of_zero_is_not_left_over():
    assert 3 not in rows_of(select_rows(A_LOL, make_columns(), "leftover", 10))


@pytest.mark.parametrize(("percent", "expected"), [(25, [1]), (50, [1, 4]), (75, [0, 1, 4]), (100, [0, 1, 3, 4])])
def test_top_is_a_share_of_the_scored_rows(percent, expected):
    assert rows_of(select_rows(NLL, make_columns(), "top", percent)) == expected


def test_top_keeps_one_row_at_least():
    assert rows_of(select_rows(NLL, make_columns(), "top", 0.1)) == [1]


def test_top_prefers_the_earlier_of_equal_rows():
    assert rows_of(select_rows(NLL, make_columns(reward=(1.0,) * 5), "top", 40)) == [0, 1]


def test_best_is_one_row_a_prompt_the_earlier_of_equals_and_none_of_a_prompt_without_scores():
    # Prompt 7 has .5 and .9, prompt 3 no score and 0 twice, prompt 1 no score at all.
    columns = make_columns(reward=(0.5, NAN, 0.9, 0.0, NAN, 0.0), value=(0.0,) * 6)
    columns["group"] = np.array([7, 3, 7, 3, 1, 3])
    assert rows_of(select_rows(NLL, columns, "best", 10)) == [2, 3]


def test_all_drops_rows_without_the_advantage_that_the_objective_needs():
    columns = make_columns(value=(0.7, 0.4, 0.1, 0.0, NAN))
    assert rows_of(select_rows(A_LOL, columns, "all", 10)) == [0, 1, 3]


def test_no_leftover_row_is_refused():
    with pytest.raises(UserError, match="no training row has a positive advantage"):
        select_rows(A_LOL, make_columns(value=(1.0,) * 5), "auto", 10)


@pytest.mark.parametrize(("rows", "column"), [("leftover", "advantage"), ("top", "reward")])
def test_a_choice_without_its_column_is_refused(rows, column):
    columns = make_columns()
    columns[column] = np.full(5, NAN)
    for found in (columns, {n: c for n, c in columns.items() if n != column}):
        with pytest.raises(UserError, match=f"rows: {rows} needs the column '{column}'"):
            select_rows(NLL, found, rows, 10)


def test_an_objective_without_its_column_is_refused_by_name():
    with pytest.raises(UserError, match="policy 'mine' needs the column 'advantage'"):
        check_requirements("policy 'mine'", A_LOL, {"reward": np.ones(2), "value": np.ones(2)})
    with pytest.raises(UserError, match="policy 'mine' needs the column 'reward'"):
        check_requirements("policy 'mine'", WBC, {"reward": np.full(2, NAN)})


def test_negative_rewards_are_refused_with_count_and_remedy():
    columns = make_columns(reward=(0.5, -0.9, NAN, -0.1, 0.7))
    with pytest.raises(UserError, match=r"2 of 5 rows .*-0\.9; set reward\.transform"):
        check_requirements("wbc", WBC, columns)


def test_negative_rewards_are_fine_for_advantage_objectives():
    check_requirements("a_lol", A_LOL, make_columns(reward=(0.5, -0.9, NAN, -0.1, 0.7)))


def test_missing_and_zero_rewards_are_not_negative():
    check_requirements("wbc", WBC, make_columns())


@pytest.mark.parametrize("draw", ["priority", "priority_unweighted"])
def test_priority_draws_in_proportion_to_the_advantage(draw):
    columns = make_columns()
    weights = draw_weights(A_LOL, columns, select_rows(A_LOL, columns, "auto", 10), draw)
    np.testing.assert_allclose(weights, [0, 0.5, 0, 0, 0.2])


def test_priority_draws_in_proportion_to_the_reward():
    columns = make_columns()
    weights = draw_weights(WBC, columns, select_rows(WBC, columns, "auto", 10), "priority")
    np.testing.assert_allclose(weights, [0.5, 0.9, 0, 0, 0.7])


def test_priority_never_draws_a_selected_row_of_negative_advantage():
    columns = make_columns()
    weights = draw_weights(A_LOL, columns, np.ones(5, bool), "priority")
    np.testing.assert_allclose(weights, [0, 0.5, 0, 0, 0.2])


@pytest.mark.parametrize(("objective", "draw"), [(A_LOL, "uniform"), (NLL, "priority"), (NLL, "uniform")])
def test_uniform_draws_the_selected_rows_alike(objective, draw):
    selected = np.array([True, False, True, False, True])
    assert draw_weights(objective, make_columns(), selected, draw).tolist() == [1, 0, 1, 0, 1]


def test_nothing_to_draw_by_priority_is_refused():
    with pytest.raises(UserError, match="no selected row has a positive reward"):
        draw_weights(WBC, make_columns(reward=(0.0,) * 5), np.ones(5, bool), "priority")


def test_advantages_of_rounding_are_neither_selected_nor_drawn():
    # As a user may prepare them, or an earlier version: 5.6e-17 of .3.
    rows = Dataset.from_dict(
        {
            "prompt_ids": [[1]] * 3,
            "completion_ids": [[1]] * 3,
            "reward": [0.3, 0.3, 0.9],
            "advantage": [5.6e-17, 0, 0.5],
        }
    )
    columns = training_columns(rows)
    assert rows_of(select_rows(NLL, columns, "leftover", 10)) == [2]
    assert draw_weights(A_LOL, columns, np.ones(3, bool), "priority").tolist() == [0, 0, 0.5]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"objective": "a_lol_seq"}, [1, 4, 9]),  # drawn by A and multiplied by A
        ({"objective": "a_lol_seq", "draw": "priority_unweighted"}, [1, 2, 3]),
        ({"objective": "a_lol", "draw": "uniform"}, [1, 2, 3]),
        ({"objective": "wbc"}, [16, 25, 36]),
        ({"objective": "nll"}, [1, 1, 1]),
        ({"objective": "var", "objective_settings": {"temperature": 0.5}}, np.exp([-4.0, -2.0, 0.0])),
        ({"objective": "awr"}, np.exp(np.array([-1, 0, 1]) / (2 / 3) ** 0.5)),
    ],
)
def test_the_weight_of_a_row_in_a_run_is_how_often_it_is_drawn_times_its_weight_in_the_loss(settings, expected):
    columns = {"reward": np.array([4.0, 5, 6]), "value": np.full(3, 3.0), "advantage": np.array([1.0, 2, 3])}
    columns |= {"group": np.arange(3), "length": np.ones(3, int)}
    args = LoLConfig(output_dir="unused", use_cpu=True, **settings)
    found = total_weights(args, columns, selection(args, columns).weights)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("settings", [{"objective": "grpo_offline"}, {"objective": "nll", "whole_groups": True}])
def test_a_prompt_of_more_tokens_than_can_pass_is_refused(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"reward": np.array([0.0, 1, 0, 1]), "group": np.array([0, 0, 1, 1]), "length": np.array([6, 7, 3, 3])}
    args = LoLConfig(output_dir="unused", max_steps=1, per_device_train_batch_size=1, **settings)
    chosen = selection(args, columns)
    monkeypatch.setattr("leftover.training.selection.MOST_TOKENS_OF_A_GROUP", 13)
    run_order(args, columns, chosen.selected, chosen.weights)
    monkeypatch.setattr("leftover.training.selection.MOST_TOKENS_OF_A_GROUP", 12)
    with pytest.raises(UserError, match=r"a prompt has 2 rows, of 13 tokens; at most 12 can pass: give fewer"):
        run_order(args, columns, chosen.selected, chosen.weights)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 2), (2, 5), (0.25, 1)])
def test_the_steps_of_a_run_are_the_same_for_any_number_of_processes(epochs: float, steps: int) -> None:
    """Ten rows, two a batch and two batches a step: the odd batch of an epoch could not be shared by two."""
    columns = {"length": np.full(10, 5), "group": np.arange(10), "reward": np.ones(10)}
    everything = np.ones(10, bool)
    found = []
    for processes in (1, 2):
        args = LoLConfig(
            "unused", objective="nll", num_train_epochs=epochs, per_device_train_batch_size=2,
            gradient_accumulation_steps=2 // processes,
        )  # fmt: skip
        with mock.patch.object(LoLConfig, "world_size", processes):
            found.append(run_order(args, columns, everything, everything.astype(float)))
    assert [number for _, number in found] == [steps, steps]
    assert found[0][0].indices.tolist() == found[1][0].indices.tolist()
