"""PPO from end to end: known optima, resuming, adapters, several processes, recipes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback

from leftover import PPOConfig, PPOTrainer
from leftover.errors import UserError
from leftover.training.ppo.rollouts import Rollouts, collate, shaped_rewards, targets
from leftover.training.ppo.schedule import align_cadence, prompt_order
from tests.conftest import scored_rows

WORDS = ["<pad>", "</s>", "a", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def eight_words() -> Any:
    """A tokenizer of eight words, two of them special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def bandit_model(seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def is_c(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [float(text == "c") for text in completions]


BANDIT = [{"prompt": "a", "conversational": False, "prompt_ids": [2]}]


def probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2]])).logits[0, -1].double().softmax(-1)


def solve_bandit(folder: Path, tokenizer: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, PPOTrainer]:
    defaults: dict[str, Any] = {
        "max_completion_length": 1,
        "num_rollouts_per_step": 256,
        "per_device_train_batch_size": 128,
        "rollout_batch_size": 256,
        "total_episodes": 256 * 30,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model = bandit_model()
    before = probabilities(model)
    args = PPOConfig(output_dir=str(folder), **(defaults | settings))
    trainer = PPOTrainer(model, args, BANDIT, reward_funcs=is_c, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return before, probabilities(trainer.model), trainer


def test_a_bandit_of_eight_tokens_is_solved(tmp_path: Path, eight_words: Any) -> None:
    before, after, _ = solve_bandit(tmp_path, eight_words, kl_coef=0.0)
    assert before[4] < 0.5, "there is something to learn"
    assert after[4] > 0.98, "the optimum is 1"


def test_with_the_penalty_the_bandit_ends_at_the_tilted_reference(tmp_path: Path, eight_words: Any) -> None:
    """max_pi E[R] - beta KL(pi || q) = beta log sum_v q_v exp(R_v / beta), at pi_v = q_v exp(R_v / beta) / Z."""
    beta = 0.5
    reference, policy, _ = solve_bandit(tmp_path, eight_words, kl_coef=beta)
    optimum = beta * math.log(float((reference * torch.tensor([math.exp((v == 4) / beta) for v in range(8)])).sum()))
    reached = float(policy[4] - beta * (policy * (policy / reference).log()).sum())
    at_first = float(reference[4])
    assert reached > 0.98 * optimum and reached <= optimum + 1e-6
    assert at_first < 0.7 * optimum


def small_run(
    path: str, tokenizer: Any, folder: Path, *, resume: str | None = None, adapter: bool = False, **settings: Any
) -> PPOTrainer:
    """Four PPO steps of 8 completions on the demonstration's prompts, in mini-batches of 4."""
    defaults: dict[str, Any] = {
        "num_rollouts_per_step": 8,
        "per_device_train_batch_size": 4,
        "total_episodes": 32,
        "ppo_epochs": 2,
        "max_completion_length": 10,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = PPOConfig(output_dir=str(folder), **(defaults | settings))
    prompts = [{"prompt": row["prompt"]} for row in scored_rows(20)]
    model = AutoModelForCausalLM.from_pretrained(path)
    lora = LoraConfig(r=2, target_modules="all-linear") if adapter else None
    trainer = PPOTrainer(model, args, prompts, reward_funcs=count_letter, processing_class=tokenizer, peft_config=lora)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def count_letter(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [text.count("e") - 0.1 * len(text) for text in completions]


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def logged(trainer: PPOTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "kl" in entry]


def test_every_ppo_step_is_logged_and_the_first_is_the_reference(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = small_run(tiny_llama_path, tokenizer, tmp_path)
    entries = logged(trainer)
    assert [entry["step"] for entry in entries] == [4, 8, 12, 16]
    names = {"reward/mean", "kl", "entropy", "clip_fraction", "value/explained_variance", "value_loss", "kl_coef"}
    assert all(names <= entry.keys() for entry in entries)
    assert entries[0]["kl"] == 0.0, "not nearly: the policy is the reference"
    assert entries[0]["value/mean"] == pytest.approx(entries[0]["reward/mean"], abs=1e-4)
    assert all(entry["kl"] != 0 for entry in entries[1:])
    assert math.log(len(tokenizer)) > entries[0]["entropy"] > 0.9 * math.log(len(tokenizer))
    assert [entry["rollout/episodes"] for entry in entries] == [8, 16, 24, 32]
    facts = trainer.facts()
    assert facts["rollouts"] == 32 and 32 <= facts["rollout_tokens"] <= 320
    assert facts["rollout_tokens"] == round(sum(8 * entry["completions/mean_length"] for entry in entries))
    assert 0 < facts["rollout_seconds"] < 60 and facts["trained_tokens"] == entries[-1]["num_tokens"]


def test_at_a_learning_rate_of_0_nothing_moves(tiny_gpt2_path: str, tokenizer: Any, tmp_path: Path) -> None:
    """Ratios stay 1 in every batch, dropout of the released GPT-2 or not, and divergences 0."""
    trainer = small_run(tiny_gpt2_path, tokenizer, tmp_path, learning_rate=0.0)
    for entry in logged(trainer):
        assert entry["kl"] == 0 and entry["clip_fraction"] == 0
        assert entry["approx_kl"] < 1e-9 and entry["importance_weight/mean"] == pytest.approx(1, abs=1e-5)


def test_a_mini_batch_may_be_split(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    """One step of all completions: what is one gradient of eight rows may be four of two."""
    whole = small_run(tiny_llama_path, tokenizer, tmp_path, per_device_train_batch_size=8, total_episodes=8)
    split = small_run(
        tiny_llama_path, tokenizer, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        total_episodes=8,
    )  # fmt: skip
    assert whole.state.global_step == split.state.global_step == 2
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], weight, atol=2e-4, rtol=0)


def test_the_seed_decides_the_run(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    first, again, other = (
        small_run(tiny_llama_path, tokenizer, tmp_path, total_episodes=16, seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(weights(first)[name], weight) for name, weight in weights(again).items())
    assert logged(first)[0]["reward/mean"] != logged(other)[0]["reward/mean"]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_ends_in_the_weights_of_an_undisturbed_one(
    adapter: bool, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "adaptive_kl": True, "horizon": 20}
    settings["adapter"] = adapter
    whole = small_run(tiny_llama_path, tokenizer, tmp_path, **settings)
    resumed = small_run(tiny_llama_path, tokenizer, tmp_path, resume=str(tmp_path / "checkpoint-8"), **settings)
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in weights(whole).items())
    facts = whole.facts().keys() - {"rollout_seconds"}
    assert all(resumed.facts()[name] == whole.facts()[name] for name in facts)
    coefficients = [entry["kl_coef"] for entry in logged(whole)]
    assert len(set(coefficients)) > 1 and [entry["kl_coef"] for entry in logged(resumed)] == coefficients


def test_the_penalty_adapts_to_the_divergence_it_saw(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    """At a KL of 0 the error is -1, which counts as -1/5: 8 episodes of a horizon of 20 take 2/25 off."""
    trainer = small_run(tiny_llama_path, tokenizer, tmp_path, adaptive_kl=True, horizon=20, kl_coef=0.5)
    entries = logged(trainer)
    assert entries[0]["kl_coef"] == 0.5
    assert entries[1]["kl_coef"] == pytest.approx(0.5 * (1 - 0.2 * 8 / 20))
    for now, then in itertools.pairwise(entries):
        error = min(max(now["kl"] / 6.0 - 1, -0.2), 0.2)
        assert then["kl_coef"] == pytest.approx(now["kl_coef"] * (1 + error * 8 / 20))


def test_budgets_and_cadence_are_whole_ppo_steps(tmp_path: Path) -> None:
    """8 rows an update, 32 completions a step, 4 passes of 4 mini-batches: 16 updates."""

    def made(**settings: Any) -> PPOConfig:
        args = PPOConfig(output_dir=str(tmp_path), **settings)
        align_cadence(args, num_prompts=100)
        return args

    assert made().max_steps == 10 * 16  # 3 x 100 completions are 9.4 steps
    assert made(total_episodes=64).max_steps == 32
    assert made(max_steps=40).max_steps == 48
    assert made(num_rollouts_per_step=64).max_steps == 5 * 32
    every_tenth = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.2}
    args = made(max_steps=800, load_best_model_at_end=True, **every_tenth)
    assert (args.eval_steps, args.save_steps, args.logging_steps) == (80, 160, 16)
    args = made(max_steps=64, load_best_model_at_end=True, **every_tenth)
    assert (args.eval_steps, args.save_steps) == (16, 16)


def test_every_prompt_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    args = PPOConfig(output_dir=str(tmp_path), num_rollouts_per_step=8, total_episodes=30)
    order = prompt_order(args, num_prompts=10)
    assert order.shape == (4, 8)
    assert all(sorted(order.ravel()[start : start + 10]) == list(range(10)) for start in (0, 10, 20))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_rollouts_per_step": 12}, ["num_rollouts_per_step=12", "mini-batches of 8"]),
        ({"cliprange": 1.5}, ["cliprange is 1.5", "from 0 to 1"]),
        ({"kl_coef": -1.0}, ["kl_coef is -1", "at least 0"]),
        ({"ppo_epochs": 0}, ["ppo_epochs is 0"]),
        ({"objective": "a_lol"}, ["a_lol"]),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        PPOConfig(output_dir=str(tmp_path), **settings)
    assert all(word in str(error.value) for word in words)


def test_without_a_reward_function_there_is_nothing_to_train_on(tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reward_funcs"):
        PPOTrainer(tiny_llama_path, PPOConfig(output_dir=str(tmp_path)), BANDIT)


def test_rows_without_prompts_are_refused_with_a_remedy_of_python(tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_dataset\[0\]: no column 'prompt'(.|\n)*rename_column") as error:
        PPOTrainer(tiny_llama_path, PPOConfig(output_dir=str(tmp_path)), [{"question": "Hi."}], reward_funcs=is_c)
    assert "data." not in str(error.value)


def rollouts_by_hand() -> Rollouts:
    """Completions of two tokens, which ended, and of one, which was cut."""
    return Rollouts(
        prompt_ids=[[5], [6, 7]],
        completion_ids=[[8, 2], [9]],
        scores=torch.tensor([3.0, 1.0]),
        ended=torch.tensor([True, False]),
        logprobs=torch.tensor([[-1.0, -1.0], [-2.0, 0.0]]),
        reference_logprobs=torch.tensor([[-2.0, -1.5], [-1.0, 0.0]]),
        values=torch.tensor([[1.0, 2.0], [1.0, 0.0]]),
        entropies=torch.tensor([[0.5, 1.0], [1.5, 0.0]]),
    )


def test_what_is_told_of_rollouts_by_hand(tmp_path: Path) -> None:
    """KL of the completions 1 + 1/2 and -1, of mean 1/4; entropy a token (1/2 + 1 + 3/2) / 3 = 1."""
    args = PPOConfig(output_dir=str(tmp_path), lam=1.0)
    rollouts = rollouts_by_hand()
    rewards = shaped_rewards(rollouts, args, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 2.95], [1.1, 0.0]]))
    columns, told = targets(rollouts, rewards, args)
    torch.testing.assert_close(columns["returns"], torch.tensor([[2.85, 2.95], [1.1, 0.0]]))
    # advantages 1.85, .95 and .1: mean 29/30, variance (1.85^2 + .95^2 + .1^2) / 3 - (29/30)^2
    raw = torch.tensor([1.85, 0.95, 0.1])
    by_hand = (raw - 29 / 30) / math.sqrt((1.85**2 + 0.95**2 + 0.1**2) / 3 - (29 / 30) ** 2)
    torch.testing.assert_close(columns["advantages"][rollouts.mask], by_hand)
    expected = {
        "reward/mean": 2.0, "reward/std": 1.0, "kl": 0.25, "entropy": 1.0, "completions/mean_length": 1.5,
        "completions/ended": 0.5, "value/mean": 4 / 3, "value/returns": 2.3,
    }  # fmt: skip
    for name, value in expected.items():
        assert told[name] == pytest.approx(value), name
    # Residuals are the advantages above; returns vary by (2.85^2 + 2.95^2 + 1.1^2) / 3 - 2.3^2.
    variances = (sum(x * x for x in xs) / 3 - (sum(xs) / 3) ** 2 for xs in ((1.85, 0.95, 0.1), (2.85, 2.95, 1.1)))
    residual, whole = variances
    assert told["value/explained_variance"] == pytest.approx(1 - residual / whole, rel=1e-5)


def test_a_missing_end_costs_and_rewards_may_be_scaled(tmp_path: Path) -> None:
    rollouts = rollouts_by_hand()
    fined = PPOConfig(output_dir=str(tmp_path), missing_eos_penalty=2.0)
    assert shaped_rewards(rollouts, fined, kl_coef=0.0).tolist() == [[0.0, 3.0], [-1.0, 0.0]]
    # Rewards 0, 3 and 1 a token: mean 4/3, variance (0 + 9 + 1) / 3 - 16/9 = 14/9; the mean is kept.
    scaled = shaped_rewards(rollouts, PPOConfig(output_dir=str(tmp_path), whiten_rewards=True), kl_coef=0.0)
    by_hand = [(x - 4 / 3) / math.sqrt(14 / 9) + 4 / 3 for x in (0, 3, 1)]
    torch.testing.assert_close(scaled[rollouts.mask], torch.tensor(by_hand))


def test_a_batch_is_as_wide_as_its_longest_row(tmp_path: Path) -> None:
    rollouts = rollouts_by_hand()
    args = PPOConfig(output_dir=str(tmp_path))
    columns, _ = targets(rollouts, shaped_rewards(rollouts, args, 0.1), args)
    batch = collate(rollouts, columns, [1], pad_token_id=0)
    assert batch["prompt_ids"].tolist() == [[6, 7]] and batch["completion_ids"].tolist() == [[9]]
    assert batch["old_logprobs"].tolist() == [[-2.0]] and batch["returns"].shape == (1, 1)
    both = collate(rollouts, columns, [1, 0], pad_token_id=0)
    assert both["prompt_ids"].tolist() == [[6, 7], [0, 5]] and both["completion_ids"].tolist() == [[9, 0], [8, 2]]
    assert both["old_values"].tolist() == [[1.0, 0.0], [1.0, 2.0]]


def test_the_loss_is_the_surrogate_and_the_weighted_value_loss(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    """In the first update ratios are 1 and whitened advantages of mean 0, so that the value loss alone is left."""
    one = {"per_device_train_batch_size": 8, "total_episodes": 8, "ppo_epochs": 1, "vf_coef": 0.5}
    (entry,) = logged(small_run(tiny_llama_path, tokenizer, tmp_path, **one))
    assert entry["policy_loss"] == pytest.approx(0, abs=1e-5) and entry["value_loss"] > 0.01
    assert entry["loss"] == pytest.approx(0.5 * entry["value_loss"], rel=1e-3)


def test_the_value_head_may_have_a_learning_rate_of_its_own(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rates = {"learning_rate": 0.0, "value_learning_rate": 0.01, "total_episodes": 8, "lr_scheduler_type": "constant"}
    trainer = small_run(tiny_llama_path, tokenizer, tmp_path, **rates)
    before = AutoModelForCausalLM.from_pretrained(tiny_llama_path).state_dict()
    assert all(torch.equal(trainer.model.state_dict()[name], weight) for name, weight in before.items())
    # Adam's steps are of the learning rate at most: four of them here.
    assert 0.01 < trainer.value_head.weight.abs().max() <= 0.04 + 1e-6


def test_a_completion_without_a_reward_is_in_no_update(tmp_path: Path) -> None:
    """Of the two by hand the second has none: advantages 1.85 and .95 of the first alone, whitened to 1 and -1."""
    args = PPOConfig(output_dir=str(tmp_path), lam=1.0, unfinished="drop")
    rollouts = replace(rollouts_by_hand(), scores=torch.tensor([3.0, math.nan]))
    rewards = shaped_rewards(rollouts, args, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 2.95], [0.0, 0.0]]))
    columns, told = targets(rollouts, rewards, args)
    assert columns["trained"].tolist() == [[True, True], [False, False]]
    torch.testing.assert_close(columns["advantages"], torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    assert told["reward/mean"] == 3.0 and told["reward/std"] == 0.0 and told["value/mean"] == 1.5
    assert told["completions/ended"] == 0.5 and told["kl"] == pytest.approx(0.25), "of all completions"
    batch = collate(rollouts, columns, [1], pad_token_id=0)
    assert not batch["trained"].any() and batch["completion_mask"].tolist() == [[1]]
