"""V(x): the head, the choice between the three estimates, and the three kinds of targets."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import leftover.prepare.value.fit as fit
from leftover.errors import UserError
from leftover.models.reference import pool, prompt_hidden
from leftover.objectives.advantage import advantage, leftover_mask
from leftover.prepare.value.described import constant_folds, described, kinds_of_rows
from leftover.prepare.value.estimate import RowConstants, estimate_values
from leftover.prepare.value.fit import FittedValue, Problem, fit_value, held_out_r2, r_squared
from leftover.prepare.value.head import ValueHead, fit_head, predict_head
from leftover.recipe.sections import ValueSection

HIDDEN = 8
PLAIN = ValueSection(num_prompts=2000, candidates=["constant", "ridge"])


def make_states(lengths=(3, 7, 1, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, HIDDEN, generator=generator) for length in lengths]


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return ValueHead(HIDDEN)


def padded(states, *, left: bool, extra: int = 0, junk: float = 50.0):
    """States and mask, padded on either side with numbers that must not be seen."""
    longest = max(map(len, states)) + extra
    hidden, mask = (
        torch.full((len(states), longest, HIDDEN), junk),
        torch.zeros(len(states), longest, dtype=torch.bool),
    )
    for i, rows in enumerate(states):
        where = slice(longest - len(rows), None) if left else slice(len(rows))
        hidden[i, where], mask[i, where] = rows, True
    return hidden, mask


# The head.


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("extra", [0, 9])
def test_a_value_is_the_same_alone_and_under_any_padding(head, left, extra):
    # Defect 1 of the released code: the head attends to left padding.
    states = make_states()
    alone = torch.cat([head(rows[None], torch.ones(1, len(rows), dtype=torch.bool)) for rows in states])
    torch.testing.assert_close(head(*padded(states, left=left, extra=extra)), alone, atol=1e-5, rtol=0)
    assert alone.std() > 1e-3, "the values differ, so that the comparison says something"


def test_predictions_do_not_depend_on_the_order_of_the_prompts(head):
    states = make_states()
    np.testing.assert_allclose(predict_head(head, states[::-1])[::-1], predict_head(head, states), atol=1e-5)


def test_predictions_are_the_same_in_batches_of_any_size(head, monkeypatch):
    states = make_states(range(1, 20))
    expected = predict_head(head, states)
    monkeypatch.setattr("leftover.prepare.value.head._BATCH", 3)
    np.testing.assert_allclose(predict_head(head, states), expected, atol=1e-5)


def test_every_position_of_the_prompt_is_seen(head):
    states = make_states()[1]
    states.requires_grad_()
    head(states[None], torch.ones(1, len(states), dtype=torch.bool)).sum().backward()
    assert (states.grad.abs().sum(-1) > 0).all()


def fitted_head(seed=0, epochs=20):
    """A head fitted to the mean of one coordinate."""
    states = make_states(np.random.default_rng(0).integers(1, 9, 80))
    targets = np.array([float(rows[:, 0].mean()) for rows in states])
    held_out = np.arange(80) % 4 == 0
    head, epoch = fit_head(states, targets, held_out, epochs=epochs, learning_rate=1e-2, seed=seed)
    return head, epoch, states, targets, held_out


def test_the_head_is_multi_head_attention_with_a_learned_query():
    torch.manual_seed(0)
    head = ValueHead(24)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden, mask = torch.randn(5, 7, 24), torch.arange(7) < torch.tensor([[7], [3], [1], [5], [2]])
    states = head.norm(hidden)
    pooled, _ = head.attention(head.query.expand(5, -1, -1), states, states, key_padding_mask=~mask)
    torch.testing.assert_close(head(hidden, mask), head.output(pooled)[:, 0, 0], atol=1e-4, rtol=1e-5)


def test_a_fitted_head_is_in_eval_mode_and_gives_one_value():
    # Defect 2 of the released code: dropout noise in every value.
    head, _, states, _, _ = fitted_head()
    assert not any(module.training for module in head.modules())
    assert (predict_head(head, states) == predict_head(head, states)).all()


def test_a_fitted_head_learns_what_the_states_say():
    head, epoch, states, targets, held_out = fitted_head()
    error = np.square(predict_head(head, states) - targets)[held_out].mean()
    assert epoch > 0 and error < 0.5 * targets[held_out].var()


def test_the_best_epoch_is_chosen_on_prompts_that_do_not_train():
    # Defect 4 of the released code: on its own training loss. Here training only leads away from the others.
    states = make_states([4] * 40)
    held_out = np.arange(40) % 2 == 0
    signal = np.array([float(rows[:, 0].mean()) for rows in states])
    signal -= np.where(held_out, signal[held_out].mean(), signal[~held_out].mean())
    targets = np.where(held_out, -signal, signal)
    head, epoch = fit_head(states, targets, held_out, epochs=10, learning_rate=1e-2, seed=0)
    assert epoch == 0
    np.testing.assert_allclose(predict_head(head, states), targets[~held_out].mean(), atol=1e-6)


def test_fitting_a_head_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = fitted_head(epochs=2)
    assert (torch.rand(3) == expected).all()
    again = fitted_head(epochs=2)
    assert (predict_head(again[0], again[2]) == predict_head(first[0], first[2])).all()


@pytest.fixture(scope="module")
def gpt2():
    """A random GPT-2: learned positions, and dropout of one half that is left on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    config = GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=32, vocab_size=20, **dropout)
    return GPT2LMHeadModel(config)


def hidden_of(model, prompts):
    states = dict(prompt_hidden(model.train(), SimpleNamespace(pad_token_id=0), prompts))
    return [states[i] for i in range(len(prompts))]


def test_hidden_states_do_not_depend_on_the_batch_and_have_no_dropout(gpt2):
    # Defects 2 and 12: the base in training mode, and positions that shift with left padding.
    prompts = [[5, 6, 7], [8] * 12, [9]]
    together = hidden_of(gpt2, prompts)
    assert [len(states) for states in together] == [3, 12, 1]
    for prompt, states in zip(prompts, together, strict=True):
        torch.testing.assert_close(hidden_of(gpt2, [prompt])[0], states, atol=1e-5, rtol=0)
    assert not gpt2.training


# The choice between the estimates.


def make_problem(num_prompts=100, noise=0.1, seed=0, per_family=1):
    """Features [N, 6], targets linear in them, families."""
    rng = np.random.default_rng(seed)
    features = rng.normal(3, [1, 5, 0.1, 1, 1, 1], (num_prompts, 6))
    targets = features @ [0.5, 0.2, 3, 0, 0, 0] + 10 + noise * rng.normal(size=num_prompts)
    return features, targets, np.arange(num_prompts) // per_family


def test_ridge_is_chosen_where_targets_are_linear_in_the_features():
    features, targets, families = make_problem()
    fitted = fit_value(Problem(features[:80], targets[:80], families[:80]), PLAIN, 0)
    assert fitted.kind == "ridge" and fitted.scores["ridge"] > 0.9
    assert r_squared(targets[80:], fitted.predict(features[80:]), targets[:80].mean()) > 0.9


def test_ridge_coefficients_are_those_of_the_raw_features():
    features, targets, families = make_problem(noise=0.0)
    fitted = fit_value(Problem(features, targets, families), PLAIN, 0)
    np.testing.assert_allclose(fitted.coefficients[:3], [0.5, 0.2, 3], rtol=0.05)
    assert fitted.intercept == pytest.approx(10, rel=0.05)


def test_the_constant_is_the_fall_back_where_features_say_nothing():
    # By chance a gain exceeds two standard errors in 2 to 3 % of cases: more than 3 of 20 hardly ever.
    kinds = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = rng.normal(2, 1, 100)
        fitted = fit_value(Problem(rng.normal(size=(100, 6)), targets, np.arange(100)), PLAIN, seed)
        kinds.append(fitted.kind)
        if fitted.kind == "constant":
            np.testing.assert_allclose(fitted.predict(np.zeros((3, 6))), targets.mean())
    assert kinds.count("ridge") <= 3


@pytest.mark.parametrize(("num_met", "kind"), [(3, "constant"), (4, "ridge")])
def test_a_candidate_must_gain_more_than_two_standard_errors(monkeypatch, num_met, kind):
    # Targets +1 and -1 in every family: the constant is 0, its error 1. Of 20 choosing prompts the candidate
    # meets three (gain 1 each): a mean gain of .15 with a standard error of .082, a ratio of 1.8. Or it meets
    # four: .20 with .092, a ratio of 2.2.
    families, targets = np.arange(100) // 2, np.tile([1.0, -1.0], 50)
    features = np.zeros((100, 1))
    chosen = np.flatnonzero(fit._held_out(families, 0.2, 0))[: 2 * num_met : 2]
    features[chosen, 0] = targets[chosen]
    stubs = {"constant": FittedValue("constant"), "ridge": FittedValue("ridge", coefficients=np.ones(1))}
    monkeypatch.setattr(fit, "_fit", lambda name, *_: stubs[name])
    assert fit_value(Problem(features, targets, families), PLAIN, 0).kind == kind


def test_the_constant_is_used_where_it_is_the_only_candidate():
    assert fit_value(Problem(*make_problem()), ValueSection(candidates=["constant"]), 0).kind == "constant"


def test_few_families_or_equal_targets_get_the_constant():
    features, targets, families = make_problem()
    assert fit_value(Problem(features, targets, families % 9), PLAIN, 0).kind == "constant"
    fitted = fit_value(Problem(features, np.full(100, 0.3), families), PLAIN, 0)
    assert fitted.kind == "constant" and fitted.intercept == pytest.approx(0.3)


def test_the_head_is_chosen_where_only_it_can_see_the_target():
    # Of positions in random order the second holds the target; the pooled features are noise.
    rng = np.random.default_rng(0)
    states = make_states([5] * 120)
    targets = np.array([float(rows[1, 0]) for rows in states])
    for rows, target in zip(states, targets, strict=True):
        rows[:, 1] = torch.tensor([-3.0, 3 * target, -3, -3, -3])
    problem = Problem(rng.normal(size=(120, 6)), targets, np.arange(120), states)
    fitted = fit_value(problem, ValueSection(head_epochs=30, head_learning_rate=1e-2), 0)
    assert fitted.kind == "head" and set(fitted.scores) == {"constant", "ridge", "head"}
    assert r_squared(targets, fitted.predict(np.zeros((120, 6)), states), targets.mean()) > 0.3


def test_without_hidden_states_the_head_is_no_candidate():
    assert set(fit_value(Problem(*make_problem()), ValueSection(), 0).scores) == {"constant", "ridge"}


def test_choosing_keeps_families_on_one_side(monkeypatch):
    features, targets, families = make_problem(per_family=3)
    fits = []
    inner = fit._fit

    def spy(name, problem, settings, seed):
        fits.append(problem.families)
        return inner(name, problem, settings, seed)

    monkeypatch.setattr(fit, "_fit", spy)
    fit_value(Problem(features, targets, families), PLAIN, 0)
    for_choice, final = fits
    assert len(final) == 100, "the chosen one is fitted again on every prompt"
    assert all((families == family).sum() == (for_choice == family).sum() for family in set(for_choice))
    assert 0.75 < len(for_choice) / 100 < 0.85


def test_r_squared_is_against_the_mean_of_the_fitting_prompts():
    # Errors 1 + 0 against 9 + 1.
    assert r_squared(np.array([4.0, 2.0]), np.array([3.0, 2.0]), 1.0) == 1 - 1 / 10
    assert r_squared(np.array([4.0, 2.0]), np.array([1.0, 1.0]), 1.0) == 0
    assert np.isnan(r_squared(np.ones(2), np.ones(2), 1.0))


def test_the_reported_r_squared_is_of_prompts_that_neither_fitted_nor_chose(monkeypatch):
    features, targets, families = make_problem(per_family=2)
    seen = {}

    def spy(problem, *_):
        seen["targets"], seen["families"] = problem.targets, problem.families
        return FittedValue("constant", 11.0)

    monkeypatch.setattr(fit, "fit_value", spy)
    reported = held_out_r2(Problem(features, targets, families), PLAIN, 0)
    rest = ~np.isin(families, seen["families"])
    assert rest.sum() + len(seen["targets"]) == 100 and rest.sum() == 20
    baseline = seen["targets"].mean()
    expected = 1 - np.square(targets[rest] - 11).sum() / np.square(targets[rest] - baseline).sum()
    assert reported == pytest.approx(expected)


def test_noise_that_a_fit_can_learn_by_heart_earns_no_r_squared():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 200)), rng.normal(size=60)
    assert held_out_r2(Problem(features, targets, np.arange(60)), PLAIN, 0) < 0.05


def test_pooled_features_are_the_mean_and_the_last_position_of_the_prompt():
    hidden, lengths = torch.randn(3, 6, 4), torch.tensor([6, 1, 3])
    found = pool(hidden, lengths)
    for i, length in enumerate(lengths.tolist()):
        expected = torch.cat([hidden[i, :length].mean(0), hidden[i, length - 1]])
        torch.testing.assert_close(found[i], expected)


# The targets.


def make_rows(num_prompts=60, per_prompt=2, per_family=1, noise=0.1, train=0.8) -> RowConstants:
    """Rows whose mean reward is linear in the prompt's features; the last prompts are held out."""
    features, means, family = make_problem(num_prompts, noise, per_family=per_family)
    group = np.repeat(np.arange(num_prompts), per_prompt)
    reward = means[group] + np.random.default_rng(1).normal(0, 0.1, len(group))
    is_train = group < train * num_prompts
    return RowConstants(group, family[group], reward, is_train, features[group].astype(np.float32), [[1]] * len(group))


def estimate(rows, targets, sample_rewards=None, seed=0, **settings):
    section = PLAIN.model_copy(update=settings)
    return estimate_values(
        rows,
        section,
        targets,
        seed=seed,
        sample_rewards=sample_rewards,
    )


def without_reward(rows, chosen):
    reward = rows.reward.copy()
    reward[chosen] = np.nan
    return RowConstants(**vars(rows) | {"reward": reward})


def test_rows_of_one_prompt_share_their_value():
    rows = make_rows(num_prompts=150)
    for targets, sample in (("recorded", None), ("reference_samples", lambda chosen: rows.reward[chosen])):
        values, report = estimate(rows, targets, sample)
        assert (values[::2] == values[1::2]).all() and values.dtype == np.float64
        assert report["targets"] == targets and report["kind"] == "ridge" and report["r2"] > 0.9


@pytest.mark.parametrize("prompt", [0, 47])
def test_recorded_values_do_not_know_the_reward_of_their_own_prompt(prompt):
    rows = make_rows()
    before, _ = estimate(rows, "recorded")
    changed = rows.reward.copy()
    changed[rows.group == prompt] += 100
    after, _ = estimate(RowConstants(**vars(rows) | {"reward": changed}), "recorded")
    own = rows.group == prompt
    assert (after[own] == before[own]).all()
    assert (after[~own] != before[~own]).mean() > 0.7, "while the folds that saw it have other values"


def test_recorded_values_do_not_know_the_rewards_of_their_own_family():
    rows = make_rows(per_family=3)
    before, _ = estimate(rows, "recorded")
    changed = rows.reward.copy()
    changed[rows.family == 4] += 100
    after, _ = estimate(RowConstants(**vars(rows) | {"reward": changed}), "recorded")
    own = rows.family == 4
    assert own.sum() == 6 and (after[own] == before[own]).all()


def test_recorded_values_do_not_know_the_rewards_of_held_out_splits():
    rows = make_rows()
    before, _ = estimate(rows, "recorded")
    changed = np.where(rows.is_train, rows.reward, rows.reward + 100)
    after, _ = estimate(RowConstants(**vars(rows) | {"reward": changed}), "recorded")
    assert (after == before).all()


def test_recorded_values_do_not_know_held_out_rewards_of_a_prompt_that_trains_too():
    rows = make_rows()
    crossing = RowConstants(**vars(rows) | {"is_train": np.arange(len(rows.group)) % 2 == 1})
    before, _ = estimate(crossing, "recorded")
    changed = np.where(crossing.is_train, rows.reward, rows.reward + 100)
    after, _ = estimate(RowConstants(**vars(crossing) | {"reward": changed}), "recorded")
    assert (after == before).all()


def test_recorded_values_fall_back_to_the_mean_of_the_other_folds():
    # Constant features: V of a prompt is the mean of the prompts outside its fold, never with its own in it.
    rows = make_rows()
    rows = RowConstants(**vars(rows) | {"features": np.zeros_like(rows.features)})
    values, report = estimate(rows, "recorded")
    means = rows.reward.reshape(-1, 2).mean(1)
    assert report["kind"] == "constant" and report["r2"] == 0
    np.testing.assert_allclose(values[~rows.is_train], means[:48].mean())
    for value in np.unique(values[rows.is_train]):
        own = np.flatnonzero(values[::2] == value)
        np.testing.assert_allclose(value, np.delete(means[:48], own).mean())


def of_folds(monkeypatch, taken):
    """Values of `make_rows` where fold i takes `taken[i]`, the last of them that of held-out rows."""
    kinds = iter(taken)

    def choose(problem, settings, seed):
        if next(kinds) == "constant":
            return FittedValue("constant", float(problem.targets.mean()))
        return FittedValue("ridge", coefficients=np.ones(problem.features.shape[1]))

    monkeypatch.setattr("leftover.prepare.value.estimate.fit_value", choose)
    return estimate(make_rows(), "recorded")


def test_folds_that_choose_another_estimate_are_told_apart(monkeypatch, caplog):
    values, report = of_folds(monkeypatch, ["constant", "ridge", "constant", "constant", "ridge", "ridge"])
    assert report["kind"] == "mixed" and kinds_of_rows(report) == {"constant": 3, "ridge": 2}
    assert sum(report["rows_by_kind"].values()) == 96
    found = np.isin(values[:96], report["constants"])
    assert found.sum() == report["rows_by_kind"]["constant"] and len(report["constants"]) == 3
    said = described(report)
    assert "the constant in 3 of 5 folds" in said and f"ridge in 2 ({report['rows_by_kind']['ridge']} rows)" in said
    assert "in 3 of 5 folds" in constant_folds(report) and "in 3 of 5 folds" in caplog.text


@pytest.mark.parametrize("kind", ["constant", "ridge"])
def test_the_estimate_of_held_out_rows_is_not_that_of_the_leftover(monkeypatch, kind):
    other = {"constant": "ridge", "ridge": "constant"}[kind]
    _, report = of_folds(monkeypatch, [kind] * 5 + [other])
    assert report["kind"] == kind and described(report) == f"the {kind} estimate"
    assert (constant_folds(report) is None) == (kind == "ridge")


def test_reports_of_earlier_runs_are_told_by_their_folds():
    # They name the estimate that most folds chose, and have no counts of rows.
    about = {"kind": "constant", "kinds_by_fold": ["constant", "ridge", "constant", "ridge", "ridge", "constant"]}
    assert described(about) == "ridge in 3 of 5 folds, the constant in 2"
    assert described({"kind": "head"}) == "the head estimate" and constant_folds({"kind": "head"}) is None


def test_the_r_squared_of_recorded_is_of_cross_fitted_values():
    # Noise that a fit on all prompts would learn by heart.
    rng = np.random.default_rng(0)
    rows = make_rows(per_prompt=1)
    rows = RowConstants(
        **vars(rows) | {"features": rng.normal(size=(60, 100)).astype(np.float32), "reward": rng.normal(size=60)}
    )
    assert estimate(rows, "recorded")[1]["r2"] < 0.05


def test_prompts_without_a_recorded_reward_have_a_value_too():
    rows = make_rows()
    values, report = estimate(without_reward(rows, rows.group % 3 == 0), "recorded")
    assert np.isfinite(values).all() and report["num_prompts"] == 32
    assert np.abs(values - rows.reward).mean() < 0.5


def test_recorded_without_a_training_reward_is_refused():
    rows = make_rows()
    with pytest.raises(UserError, match="recorded needs rewards"):
        estimate(without_reward(rows, rows.is_train), "recorded")


def test_declared_bounds_clip_the_value():
    rows = make_rows()
    middle = float(np.median(rows.reward))
    values, _ = estimate(rows, "recorded", bounds=(middle - 0.1, middle + 0.1))
    assert values.min() == middle - 0.1 and values.max() == middle + 0.1


def make_groups(group, reward, is_train=None) -> RowConstants:
    group, count = np.array(group), len(group)
    is_train = np.ones(count, bool) if is_train is None else np.array(is_train)
    return RowConstants(
        group, group, np.array(reward, float), is_train, np.zeros((count, 2), np.float32), [[1]] * count
    )


def test_group_loo_is_the_mean_of_the_other_completions():
    # Prompt 5 has rewards 1, 3, 8 in scattered rows, prompt 2 has 4 and 6.
    values, report = estimate(make_groups([5, 2, 5, 5, 2], [1, 4, 3, 8, 6]), "group_loo")
    assert values.tolist() == [(3 + 8) / 2, 6, (1 + 8) / 2, (1 + 3) / 2, 4]
    assert report["kind"] == "group_loo" and report["num_prompts"] == 2 and report["rows_alone"] == 0


def test_group_loo_reports_its_r_squared_by_hand():
    # Rewards 0 0 4 4 have the values 0 0 4 4: no error. Rewards 0 4 have the values 4 0, the mean 2: 32 of 8.
    assert estimate(make_groups([0, 0, 1, 1], [0, 0, 4, 4]), "group_loo")[1]["r2"] == 1
    assert estimate(make_groups([0, 0], [0, 4]), "group_loo")[1]["r2"] == 1 - 32 / 8


def test_group_loo_without_another_completion_is_the_training_mean():
    rows = make_groups([0, 0, 1, 2], [1, 3, 8, 100], [True, True, True, False])
    values, report = estimate(rows, "group_loo")
    assert values.tolist() == [3, 1, (1 + 3 + 8) / 3, (1 + 3 + 8) / 3] and report["rows_alone"] == 2


def test_group_loo_does_not_count_completions_without_a_reward():
    values, _ = estimate(make_groups([0, 0, 0, 1, 1], [1, np.nan, 5, 2, 4]), "group_loo")
    assert values.tolist() == [5, 3, 1, 4, 2]


def test_group_loo_does_not_know_held_out_rewards_of_a_prompt_that_trains_too():
    # Prompt 0 trains with 1 and 3, and is held out with 8; prompt 1 is held out whole.
    group, split = [0, 0, 0, 1, 1], [True, True, False, False, False]
    values, report = estimate(make_groups(group, [1, 3, 8, 2, 6], split), "group_loo")
    assert values.tolist() == [3, 1, (1 + 3) / 2, 6, 2] and report["rows_alone"] == 0
    changed, _ = estimate(make_groups(group, [1, 3, 800, 2, 600], split), "group_loo")
    assert changed[:3].tolist() == values[:3].tolist()


@pytest.mark.parametrize("targets", ["recorded", "group_loo", "reference_samples"])
@pytest.mark.parametrize("reward", [0.3, -0.7, 1e-9, 1e6 / 3])
def test_equal_rewards_leave_nothing_over_and_explain_nothing(targets, reward):
    # Sums of equal numbers are off by rounding: A = 5.6e-17, and an R2 of 1 for an error of 1e-32 in 1e-32.
    rows = make_rows(num_prompts=60, per_prompt=7)
    rewards = np.where(np.arange(420) % 2, reward, reward * (1 - 2e-16))
    rows = RowConstants(**vars(rows) | {"reward": rewards})
    values, report = estimate(rows, targets, lambda chosen: rewards[chosen])
    assert not leftover_mask(advantage(rewards, values)).any() and not (advantage(rewards, values) < 0).any()
    assert report["r2"] is None and set(report["scores"].values()) <= {0.0}


@pytest.mark.parametrize("low", [0, -5], ids=["tenths", "signed tenths"])
def test_group_loo_on_tenths_leaves_over_what_fractions_do(low):
    rng = np.random.default_rng(0)
    group, tenths = np.arange(2100) // 7, rng.integers(low, 10, 2100)
    tenths = np.where(group % 2, tenths, tenths[7 * group])  # every other prompt has equal rewards
    rewards = tenths / 10
    values, _ = estimate(make_groups(group, rewards), "group_loo")
    # R > mean of the six others, in whole tenths: 7 R > sum of all seven.
    sums = np.bincount(group, tenths).astype(int)[group]
    found = advantage(rewards, values)
    assert (leftover_mask(found) == (7 * tenths > sums)).all()
    assert ((found == 0) == (7 * tenths == sums)).all()
    assert ((rewards > values) != (7 * tenths > sums)).sum() > 50, "plain comparison is wrong here"


def test_group_loo_needs_several_completions_of_a_prompt():
    with pytest.raises(UserError, match="several scored completions"):
        estimate(make_groups([0, 1, 2, 2], [1, 2, 3, np.nan]), "group_loo")


def test_reference_samples_are_asked_for_one_row_of_some_training_prompts():
    rows, asked = make_rows(), []

    def sample_rewards(chosen):
        asked.extend(chosen.tolist())
        return rows.features[chosen].astype(float) @ np.ones(6)

    values, report = estimate(rows, "reference_samples", sample_rewards, num_prompts=30)
    assert len(asked) == report["num_prompts"] == 30
    assert len(set(rows.group[asked])) == 30 and rows.is_train[asked].all()
    assert report["mean_reward_of_reference"] == pytest.approx(rows.features[asked].sum(1).mean())
    # Every row gets its value from the fit, asked for or not.
    assert r_squared(rows.features.sum(1), values, values.mean()) > 0.95


def test_reference_samples_do_not_read_the_recorded_rewards():
    rows = make_rows()
    sample = lambda chosen: rows.features[chosen, 1].astype(float)  # noqa: E731
    values, report = estimate(rows, "reference_samples", sample)
    other, other_report = estimate(without_reward(rows, slice(None)), "reference_samples", sample)
    assert (values == other).all() and report == other_report


def test_the_seed_chooses_the_prompts_that_are_sampled_for():
    rows, asked = make_rows(), []

    def sample_rewards(chosen):
        asked.append(chosen.tolist())
        return rows.features[chosen, 1].astype(float)

    for seed in (1, 1, 2):
        estimate(rows, "reference_samples", sample_rewards, seed=seed, num_prompts=20)
    assert asked[0] == asked[1] != asked[2]


def test_the_reported_r_squared_of_reference_samples_is_not_in_sample():
    rng = np.random.default_rng(0)
    rows = make_rows(per_prompt=1)
    rows = RowConstants(**vars(rows) | {"features": rng.normal(size=(60, 100)).astype(np.float32)})
    assert estimate(rows, "reference_samples", lambda chosen: rng.normal(size=len(chosen)))[1]["r2"] < 0.05


def test_values_by_the_head_do_not_depend_on_the_amount_of_padding(gpt2, monkeypatch):
    # From tokens to V: a row's value when its neighbours are short, and when one of them is long.
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 20, rng.integers(1, 6)).tolist() for _ in range(40)]
    rows = make_rows(40, per_prompt=1)
    sample = lambda chosen: np.array([float(prompts[i][0] > 9) for i in chosen])  # noqa: E731
    # Whatever it scores, the head is taken.
    monkeypatch.setattr(
        "leftover.prepare.value.estimate.fit_value", lambda problem, *_: only_head(problem.targets, problem.hidden)
    )

    def values_with(prompt_ids):
        found = RowConstants(**vars(rows) | {"prompt_ids": prompt_ids})
        section = ValueSection(candidates=["constant", "head"], num_prompts=20, head_epochs=3)
        hidden = partial(prompt_hidden, gpt2.train(), SimpleNamespace(pad_token_id=0))
        return estimate_values(
            found, section, "reference_samples", seed=0, hidden=hidden, sample_rewards=sample
        )[0]  # fmt: skip

    # The last prompts are held out: none of them is fitted to.
    longer = [*prompts[:-1], rng.integers(1, 20, 30).tolist()]
    first, second = values_with(prompts), values_with(longer)
    np.testing.assert_allclose(first[:-1], second[:-1], atol=1e-5)
    assert first.std() > 1e-4 and first[-1] != second[-1]


def only_head(targets, hidden):
    held_out = np.arange(len(targets)) % 5 == 0
    head, _ = fit_head(hidden, targets, held_out, epochs=3, learning_rate=1e-2, seed=0)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.output.weight)
    return FittedValue("head", head=head)


def test_a_head_that_diverges_is_refused():
    rng = np.random.default_rng(0)
    states = [torch.from_numpy(rng.normal(size=(3, 8))).float() for _ in range(70)]
    with pytest.raises(UserError, match=r"head's loss is (nan|inf) in epoch \d+: lower value.head_learning_rate"):
        fit_head(states, rng.normal(size=70), np.arange(70) < 2, epochs=30, learning_rate=1e30, seed=0)
