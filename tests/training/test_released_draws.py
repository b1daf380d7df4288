"""`released_code: true`: losses, clips and draws as in the released scripts, and where ours differ.

The batch is that of `objective_checks`: sequence ratios 2 and 5/16, lp = -3 L and -5 L, rewards 3 and 2.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from leftover import LoLConfig
from leftover.data.collate import Collator
from leftover.errors import UserError
from leftover.models.logprobs import completion_logprobs
from leftover.objectives import OBJECTIVES, RELEASED
from leftover.objectives.pointwise import ClipSettings
from leftover.objectives.released import AssistantKLSettings, TasksKLSettings
from leftover.recipe.lol_config import objective_of, objective_settings
from leftover.training.selection import run_order, selection
from tests.objectives.objective_checks import L, assert_all_close, check, loss_and_gradient, make_batch
from tests.training.test_methods import make_trainer, parameters
from tests.training.test_methods import rows as rows  # a fixture

ASSISTANT, TASKS = RELEASED["assistant"], RELEASED["tasks"]


def config(folder: Path, **settings: Any) -> LoLConfig:
    return LoLConfig(output_dir=str(folder), released_code=True, use_cpu=True, **settings)


def test_what_differs_from_ours_is_this() -> None:
    """A new difference is a decision: it has to be written down in docs/paper.md."""
    assert set(ASSISTANT) == {"r_lol", "a_lol", "a_lol_ref_free", "a_lol_kl"}
    assert set(TASKS) == {"r_lol", "a_lol", "a_lol_seq", "a_lol_kl"}
    said = Path("docs/paper.md").read_text(encoding="utf-8")
    assert "## released_code" in said


def test_the_assistant_script_does_not_clamp_ref_free() -> None:
    batch = make_batch(advantage=(-2.0, 1 / 2))
    check(ASSISTANT["a_lol_ref_free"], None, [-2 * 3 * L, 1 / 2 * 5 * L], [[2] * 2, [-1 / 2] * 3], batch)
    check("a_lol_ref_free", None, [0, 1 / 2 * 5 * L], [[0] * 2, [-1 / 2] * 3], batch)
    assert "a_lol_ref_free" not in TASKS  # that one clamps


@pytest.mark.parametrize("name", ["r_lol", "a_lol"])
def test_in_the_assistant_script_a_clip_of_zero_is_none(name: str) -> None:
    batch = make_batch()
    unclipped = loss_and_gradient(name, batch, ClipSettings(None))
    assert_all_close(loss_and_gradient(ASSISTANT[name], batch, ClipSettings(0.0)), unclipped)
    assert_all_close(loss_and_gradient(ASSISTANT[name], batch), loss_and_gradient(name, batch))


def test_token_weights_with_a_clip_of_zero_are_one() -> None:
    assert "a_lol_seq" not in ASSISTANT  # clamped to [1, 1] there as here
    ours = loss_and_gradient("a_lol_seq", make_batch(), ClipSettings(0.0))
    assert_all_close(ours, loss_and_gradient("a_lol_ref_free", make_batch()))


@pytest.mark.parametrize("name", ["r_lol", "a_lol", "a_lol_seq"])
def test_the_tasks_script_clips_nothing_by_default(name: str) -> None:
    batch = make_batch()
    found = loss_and_gradient(TASKS[name], batch)
    assert_all_close(found, loss_and_gradient(name, batch, ClipSettings(None)))


def test_the_divergence_pushes_rows_down_that_are_not_left_over() -> None:
    # A = -2: the first row has beta (lp - lq) = L/4 alone, with gradient +1/4; ours has nothing there.
    batch = make_batch(advantage=(-2.0, 1 / 2))
    losses = [L / 4, 1 / 2 * 5 * L + math.log(5 / 16) / 4]
    gradients = [[1 / 4] * 2, [-1 / 4] * 3]
    check(TASKS["a_lol_kl"], TasksKLSettings(1 / 4), losses, gradients, batch)
    check(ASSISTANT["a_lol_kl"], AssistantKLSettings(1 / 4), losses, gradients, batch)
    assert loss_and_gradient("a_lol_kl", batch)[0][0] == 0


def test_in_the_assistant_script_a_lol_kl_is_a_lol() -> None:
    batch = make_batch()
    assert_all_close(loss_and_gradient(ASSISTANT["a_lol_kl"], batch), loss_and_gradient("a_lol", batch))


def test_the_setting_chooses_the_variant_and_turns_dropout_and_bucketing_as_released(tmp_path: Path) -> None:
    args = config(tmp_path, objective="a_lol_kl")
    assert objective_of(args) is ASSISTANT["a_lol_kl"] and objective_settings(args) == AssistantKLSettings()
    assert not args.disable_dropout and not args.length_bucketing
    args = config(tmp_path, objective="a_lol_seq", released_script="tasks")
    assert objective_settings(args).clip is None
    assert objective_of(LoLConfig(output_dir=str(tmp_path))) is OBJECTIVES["a_lol_seq"]
    with pytest.raises(UserError, match="leave max_tokens_per_batch"):
        config(tmp_path, max_tokens_per_batch=100)
    with pytest.raises(UserError, match="released_script: 'x' is not one of assistant, tasks"):
        config(tmp_path, released_script="x")


def columns(num_rows: int = 40) -> dict[str, np.ndarray]:
    """Advantages from -10 to 29 in random order: 29 of 40 are positive, and one is 0."""
    advantage = np.random.default_rng(0).permutation(num_rows).astype(float) - 10
    constant = {"value": np.zeros(num_rows), "length": np.full(num_rows, 9), "group": np.arange(num_rows)}
    return {"reward": advantage + 10, "advantage": advantage} | constant


def drawn(folder: Path, **settings: Any) -> tuple[Any, int]:
    args = config(folder, **settings)
    selected, weights, _ = selection(args, columns())
    return run_order(args, columns(), selected, weights)


def test_priority_draws_fours_and_is_deaf_to_batch_size_and_seed(tmp_path: Path) -> None:
    """Defect 3 of the released code."""
    order, steps = drawn(tmp_path, max_steps=800, per_device_train_batch_size=16, seed=1)
    other, _ = drawn(tmp_path, max_steps=800, per_device_train_batch_size=2, seed=2, data_seed=7)
    assert set(np.diff(order.offsets)) == {4} and (order.indices == other.indices).all()
    assert steps == int(800 * 29 / 40)
    counts = np.bincount(order.indices, minlength=40)
    advantage = np.clip(columns()["advantage"], 0, None)
    expected = advantage * counts.sum() / advantage.sum()
    assert (counts[advantage == 0] == 0).all() and (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()


def test_rewards_are_drawn_for_all_the_steps(tmp_path: Path) -> None:
    order, steps = drawn(tmp_path, objective="wbc", max_steps=30, gradient_accumulation_steps=4)
    assert steps == 30 and order.num_batches == 120 and set(np.diff(order.offsets)) == {4}


def test_good_random_draws_leftover_rows_alike_with_replacement(tmp_path: Path) -> None:
    order, _ = drawn(tmp_path, draw="uniform", max_steps=400)
    counts = np.bincount(order.indices, minlength=40)
    assert ((counts > 0) == (columns()["advantage"] > 0)).all() and np.ptp(counts[counts > 0]) > 5


def test_without_a_strategy_all_rows_are_shuffled_and_an_epochs_rest_is_dropped(tmp_path: Path) -> None:
    for settings in ({"objective": "nll"}, {"rows": "all", "draw": "uniform"}):
        order, steps = drawn(tmp_path, max_steps=12, per_device_train_batch_size=6, seed=3, **settings)
        other, _ = drawn(tmp_path, max_steps=12, per_device_train_batch_size=6, seed=4, **settings)
        assert steps == 12 and set(np.diff(order.offsets)) == {6} and (order.indices != other.indices).any()
        for epoch in order.indices.reshape(2, 36):
            assert len(set(epoch)) == 36


def test_an_epoch_without_max_steps_is_shortened_by_the_leftover_share(tmp_path: Path) -> None:
    order, steps = drawn(tmp_path, num_train_epochs=4, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert steps == int(4 * 40 // 8 * 29 / 40) == 14 and order.num_batches == 28


def test_the_tasks_script_heeds_the_batch_size_and_counts_zero_as_left_over(tmp_path: Path) -> None:
    # 20 batches of 2; 30 of 40 advantages are not negative: int(20 * 3/4) = 15 and one more, at two epochs.
    settings = {"released_script": "tasks", "num_train_epochs": 2}
    order, steps = drawn(tmp_path, per_device_train_batch_size=2, **settings)
    assert steps == 32 and set(np.diff(order.offsets)) == {2}
    # The sixteenth micro-batch of an epoch fills no three.
    order, steps = drawn(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, **settings)
    assert steps == 10 and order.num_batches == 30
    order, steps = drawn(tmp_path, per_device_train_batch_size=3, objective="nll", **settings)
    assert steps == 28 and sorted(np.diff(order.offsets)) == [1] * 2 + [3] * 26


def test_objectives_of_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'pro': leave released_code out"):
        selected = np.ones(40, bool)
        run_order(config(tmp_path, objective="pro"), columns(), selected, selected.astype(float))


def test_micro_batches_add_up_in_place_of_being_averaged(
    tiny_llama_path: str, tokenizer: Any, rows: Any, tmp_path: Path
) -> None:
    settings = {"released_code": True, "optim": "sgd", "max_grad_norm": 0, "max_steps": 2}
    trainer = make_trainer(
        tiny_llama_path, tokenizer, rows, tmp_path, gradient_accumulation_steps=3, learning_rate=1e-3, **settings
    )
    order = trainer.draw_order
    assert trainer.args.max_steps == 1 and order.num_batches == 3  # half of the rows are left over
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    for i in range(3):
        batch = Collator(0)([rows[int(j)] for j in order.batch(i)])
        seen = trainer.completion_batch(completion_logprobs(model, batch), batch)
        trainer.objective.loss(seen, trainer.settings).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    start = parameters(trainer.model)
    trainer.train()
    torch.testing.assert_close((start - parameters(trainer.model)) / 1e-3, expected, atol=3e-4, rtol=1e-3)


def test_dropout_reaches_the_importance_weights(tiny_gpt2_path: str, tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    """Defect 7: at step 0 the weights are not 1, and the run is not stopped for it."""
    from tests.training.test_trainer import prepared_rows

    prepared = prepared_rows(tiny_gpt2_path, tokenizer)
    trainer = make_trainer(tiny_gpt2_path, tokenizer, prepared, tmp_path, released_code=True, max_steps=4)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["logratio/initial_max"] > 1e-2
    assert max(abs(first["importance_weight/max"] - 1), abs(first["importance_weight/min"] - 1)) > 1e-2
