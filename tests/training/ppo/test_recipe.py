"""PPO as a policy of a recipe: chosen, evaluated and reported like any other; and on two processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover import PPOConfig, PPOTrainer
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.conftest import scored_rows
from tests.forked import as_ranks
from tests.training.ppo.test_trainer import count_letter

PPO = {"objective": "ppo", "total_episodes": 16, "num_rollouts_per_step": 8, "ppo_epochs": 1}


def ppo_recipe(tiny_recipe: Callable, folder: Path, **overrides: Any) -> dict[str, Any]:
    reward = {"functions": [{"type": "python", "function": "tests.training.ppo.test_trainer:count_letter"}]}
    policies = {"ppo": PPO, "nll": {"objective": "nll"}}
    return tiny_recipe(folder, **({"policies": policies, "reward": reward} | overrides))


def test_a_policy_of_ppo_is_chosen_evaluated_and_reported(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = make_recipe(ppo_recipe(tiny_recipe, tmp_path))
    results = run(recipe)
    assert results is not None
    facts = results["training"]["ppo"][0]
    assert facts["steps"] == 4 and facts["best_step"] in (2, 4), "16 completions in mini-batches of 4"
    assert facts["rollouts"] == 16 and facts["rollout_tokens"] > 16 and facts["rollout_seconds"] > 0
    written = (
        f"ppo, seed 0, is online: its rows are prompts, for which it wrote 16 completions of {facts['rollout_tokens']}"
    )
    assert written in (tmp_path / "run/report.md").read_text()
    assert facts["selected_rows"] > 16 and facts["seconds"] > 0
    assert {"reward", "kl", "difference_from_reference"} <= results["sampled"]["table"]["ppo"].keys()
    folder = tmp_path / "run/policies/ppo/seed-0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "kl" in line]
    assert [line["step"] for line in told] == [2, 4] and told[0]["kl"] == 0.0
    assert [line["step"] for line in lines if "eval_reward/mean" in line] == [2, 4]
    names = load_file(folder / "model.safetensors")
    reference = load_file(tmp_path / "run/reference/model.safetensors")
    assert any(not torch.equal(weight, reference[name]) for name, weight in names.items())
    assert names and not any("value_head" in name for name in names)
    assert not (folder / "checkpoints").exists()
    modified = (folder / "model.safetensors").stat().st_mtime_ns
    run(recipe)
    assert (folder / "model.safetensors").stat().st_mtime_ns == modified, "finished, so reused"


def test_values_of_rows_are_not_fitted_for_ppo_alone(tmp_path: Path, tiny_recipe: Callable) -> None:
    run(make_recipe(ppo_recipe(tiny_recipe, tmp_path, policies={"ppo": PPO})), until="train")
    assert not (tmp_path / "run/table/value").exists()


def test_an_adapter_is_trained_on_the_frozen_base(tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str) -> None:
    """The reference is an adapter of its own, which the policy goes on training."""
    model = {"path": tiny_llama_path, "lora": {"r": 2}}
    run(make_recipe(ppo_recipe(tiny_recipe, tmp_path, model=model, policies={"ppo": PPO})), until="train")
    reference, policy = (
        load_file(tmp_path / f"run/{name}/adapter_model.safetensors") for name in ("reference", "policies/ppo/seed-0")
    )
    assert policy.keys() == reference.keys()
    assert any(not torch.equal(policy[name], reference[name]) for name in policy)
    told = (tmp_path / "run/policies/ppo/seed-0/metrics.jsonl").read_text().splitlines()
    assert json.loads(told[0])["kl"] == 0.0, "the adapter of the reference counts, not the base without it"


def test_recorded_scores_are_refused_before_any_row_is_read(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = ppo_recipe(tiny_recipe, tmp_path, reward={"functions": [{"type": "column", "name": "votes"}]})
    content["data"]["path"] = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError) as error:
        open_run(make_recipe(content))
    assert all(word in str(error.value) for word in ("policy 'ppo'", "'votes'", "recorded", "reward function"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kl_coeff": 0.1}, ["policies.ppo.kl_coeff", "did you mean 'kl_coef'"]),
        ({"draw": "uniform"}, ["policies.ppo.draw", "PPOConfig"]),
        ({"kl_coef": "much"}, ["policies.ppo.kl_coef", "is a number"]),
        ({"seed": 3}, ["policies.ppo.seed", "seeds"]),
        ({"objective": "ppoo"}, ["policies.ppo.objective", "did you mean 'ppo'"]),
    ],
)
def test_unknown_settings_are_refused_with_the_nearest(
    fields: dict[str, Any], words: list[str], tmp_path: Path, tiny_recipe: Callable
) -> None:
    with pytest.raises(UserError) as error:
        make_recipe(ppo_recipe(tiny_recipe, tmp_path, policies={"ppo": PPO | fields}))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_ppo_is_no_objective_of_rows(tmp_path: Path, tiny_recipe: Callable) -> None:
    with pytest.raises(UserError, match=r"train\.objective"):
        make_recipe(ppo_recipe(tiny_recipe, tmp_path, train={"objective": "ppo"}))


def test_shared_settings_hold_where_ppo_has_them(tmp_path: Path, tiny_recipe: Callable) -> None:
    """The shared draw is for rows; the shared number of steps gives way to a budget of the policy's own."""
    from leftover.training.settings import training_args

    train = {"draw": "uniform", "learning_rate": 5e-4, "max_steps": 12, "per_device_train_batch_size": 4}
    policies = {"own": PPO, "shared": {"objective": "ppo"}}
    this = open_run(make_recipe(ppo_recipe(tiny_recipe, tmp_path, train=train, policies=policies)))
    own, shared = (training_args(this, name, 0) for name in policies)
    assert own.learning_rate == shared.learning_rate == 5e-4
    assert (own.max_steps, shared.max_steps) == (-1, 12)
    assert own.max_completion_length == 8, "evaluate.max_new_tokens: it is trained for what it is judged by"


def test_a_policy_is_trained_anew_for_completions_of_another_length(tmp_path: Path, tiny_recipe: Callable) -> None:
    told = tmp_path / "run/policies/ppo/seed-0/metrics.jsonl"
    for length in (8, 5):
        content = ppo_recipe(tiny_recipe, tmp_path, policies={"ppo": PPO})
        content["evaluate"]["max_new_tokens"] = length
        run(make_recipe(content), until="train")
        assert json.loads(told.read_text().splitlines()[0])["completions/mean_length"] == pytest.approx(length, abs=0.9)


def test_the_dry_run_counts_its_completions(tmp_path: Path, tiny_recipe: Callable) -> None:
    from leftover.commands.dry_run.estimate import estimate_run

    plan = estimate_run(make_recipe(ppo_recipe(tiny_recipe, tmp_path)))
    training = next(t for t in plan.trainings if t.name == "ppo")
    assert training.steps == 4 and training.rows_per_step == 4 and training.evaluations == 4
    assert training.seen is not None and training.seen.rows == 16 * 2  # written and judged, and one pass
    held = {line.stage: line.weights for line in plan.memory}
    steps = {stage: weights for stage, weights in held.items() if stage.startswith("training step")}
    assert max(steps.values()) == 2 * min(steps.values()), "policy and reference"


def train_two_steps(model: str, output: Path) -> None:
    """By PPO; every rank saves what it ends with."""
    args = PPOConfig(
        output_dir=str(output),
        use_cpu=True,
        total_episodes=32,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        ppo_epochs=2,
        max_completion_length=10,
        learning_rate=3e-3,
        whiten_rewards=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    # accelerate can start independent one-process jobs, which would agree with each other and prove nothing.
    assert args.world_size == 2
    trainer = PPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args,
        [{"prompt": row["prompt"]} for row in scored_rows(20)],
        reward_funcs=count_letter,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    own: list[dict] = []
    complete = trainer.rollout
    trainer.rollout = lambda number: own.append((made := complete(number))[0]) or made  # type: ignore[method-assign]
    trainer.train()
    result = {
        "weights": trainer.model.state_dict(),
        "scores": [rollouts.scores for rollouts in own],
        "log": [entry for entry in trainer.state.log_history if "kl" in entry],
        "facts": trainer.facts(),
    }
    torch.save(result, output / f"rank-{args.process_index}.pt")


def test_two_processes_train_one_policy_on_completions_of_their_own(tmp_path: Path, tiny_llama_path: str) -> None:
    as_ranks(2, train_two_steps, tiny_llama_path, tmp_path)
    one, two = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, weight in one["weights"].items():  # the value head's among them
        assert torch.equal(weight, two["weights"][name]), name
    assert one["facts"]["rollouts"] == 32 and one["facts"]["rollout_tokens"] == two["facts"]["rollout_tokens"]
    for entry, mine, theirs in zip(one["log"], one["scores"], two["scores"], strict=True):
        assert len(mine) == len(theirs) == 8 and not torch.equal(mine, theirs)
        assert entry["reward/mean"] == pytest.approx(float(torch.cat([mine, theirs]).mean()), abs=1e-5)
