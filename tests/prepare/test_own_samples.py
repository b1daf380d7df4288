"""`value.own_samples`: V of a prompt moved towards the mean of its own samples of the reference."""

import numpy as np
import pytest

from leftover.errors import UserError
from leftover.pipeline import run
from leftover.prepare.value.described import constant_folds, described
from leftover.prepare.value.estimate import RowConstants, estimate_values
from leftover.prepare.value.own_samples import explained, own_weight
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import ValueSection

SETTINGS = ValueSection(num_prompts=300, candidates=["constant", "ridge"], own_samples=True)


def problem(between, within, *, offset=0.0, num_prompts=200, per_prompt=2, seed=0):
    """Rows of prompts that no feature tells apart: means with the deviation `between`, rewards `within` around them."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, between, num_prompts)
    group = np.repeat(np.arange(num_prompts), per_prompt)
    reward = offset + means[group] + rng.normal(0, within, len(group))
    features = np.repeat(rng.normal(size=(num_prompts, 3)).astype(np.float32), per_prompt, axis=0)
    rows = RowConstants(group, group, reward, group < 160, features, [[1]] * len(group))
    return rows, means, lambda chosen: means[group[chosen]] + rng.normal(0, within, len(chosen))


def values(rows, sample, **settings):
    return estimate_values(
        rows, SETTINGS.model_copy(update=settings), "reference_samples", seed=0, sample_rewards=sample
    )


@pytest.mark.parametrize(("between", "within"), [(1, 0.3), (1, 1), (0.3, 1)])
def test_the_weight_is_the_share_of_the_variance_between_prompts(between, within):
    rows, means, sample = problem(between, within, num_prompts=1000, offset=5)
    rows = RowConstants(**vars(rows) | {"is_train": rows.group < 900})
    found, report = values(rows, sample, num_prompts=900)
    assert report["own_samples_weight"] == pytest.approx(between**2 / (between**2 + within**2), abs=0.08)
    plain, _ = values(rows, sample, num_prompts=900, own_samples=False)
    error, before = (np.var((v - means[rows.group])[rows.is_train]) for v in (found, plain))
    assert error < before, "what is left is less than without"
    assert report["explained"] > report["explained_by_estimate"]


def test_samples_that_say_nothing_of_the_rows_have_no_weight():
    rng = np.random.default_rng(3)
    rewards, fitted = rng.normal(size=4000), np.zeros(4000)
    assert own_weight(rewards, fitted, rng.normal(size=4000)) < 0.05
    assert own_weight(rewards, fitted, -rewards) == 0, "worse than nothing is nothing"
    assert own_weight(rewards, fitted, 0.5 * rewards) == 1, "never more than the samples themselves"
    assert own_weight(rewards, fitted, np.ones(4000)) == 0
    assert own_weight(np.full(40, np.nan), np.zeros(40), np.ones(40)) == 0
    assert own_weight(np.arange(9.0), np.zeros(9), np.arange(9.0)) == 0, "too few prompts tell no weight"


def test_rows_without_a_reward_take_no_part_in_the_weight():
    rewards = np.array([np.nan, *range(12)])
    fitted, sampled = np.zeros(13), np.array([100.0, *range(1, 13)])
    assert own_weight(rewards, fitted, sampled) == 1
    assert explained(rewards, sampled) == 1, "rows on another level are explained nevertheless"


def test_prompts_that_were_not_sampled_for_keep_the_estimate():
    rows, _, sample = problem(1, 0.1)
    asked = []

    def remembered(chosen):
        asked.extend(rows.group[chosen].tolist())
        return sample(chosen)

    found, report = values(rows, remembered, num_prompts=50)
    rest = ~np.isin(rows.group, asked)
    assert len(asked) == 50 and np.ptp(found[rest]) == 0, "nothing beats the constant there"
    assert np.ptp(found[~rest]) > 1 and report["own_samples_weight"] > 0.8


def test_a_row_has_no_say_in_its_own_value_but_through_the_one_weight():
    rows, _, sample = problem(1, 1)
    targets = sample(np.arange(400))
    fixed = lambda chosen: targets[chosen]  # noqa: E731
    found, report = values(rows, fixed)
    reward = rows.reward.copy()
    reward[0] += 50
    other, changed = values(RowConstants(**vars(rows) | {"reward": reward}), fixed)
    ratio = changed["own_samples_weight"] / report["own_samples_weight"]
    mean = found[~rows.is_train][0]  # the constant is that of all
    moved = (other - found)[rows.is_train]
    # Every prompt's value moved along its own samples by the same share; no prompt is apart.
    share = moved[2:] / (found[rows.is_train][2:] - mean)
    assert np.median(share) == pytest.approx(ratio - 1, abs=0.05)
    assert abs(moved[0] / (found[0] - mean) - np.median(share)) < 0.2


def test_one_family_has_no_folds():
    rows, _, sample = problem(1, 0.5, num_prompts=12)
    rows = RowConstants(**vars(rows) | {"family": np.zeros(24, int), "is_train": np.ones(24, bool)})
    found, report = values(rows, sample, num_prompts=300)
    assert np.isfinite(found).all() and 0 <= report["own_samples_weight"] <= 1


def test_reports_say_what_v_is():
    rows, _, sample = problem(1, 0.3)
    _, report = values(rows, sample)
    assert report["kind"] == "constant"
    assert described(report).startswith("the constant estimate, moved by 0.9"), described(report)
    assert constant_folds(report) is None, "it differs by prompt"
    assert constant_folds(report | {"own_samples_weight": 0.0}) is not None


@pytest.mark.parametrize(
    "section", [{"targets": "group_loo"}, {"targets": "recorded"}, {}], ids=["group_loo", "recorded", "auto"]
)
def test_targets_without_samples_are_refused(section, tmp_path, tiny_recipe):
    reward = {"functions": [{"type": "column"}]}
    recipe = make_recipe(tiny_recipe(tmp_path, reward=reward, value={"own_samples": True} | section))
    with pytest.raises(UserError, match=r"value.own_samples needs samples of the reference, and value.targets is"):
        run(recipe, until="prepare")
