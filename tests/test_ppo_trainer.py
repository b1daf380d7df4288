"""PPO from end to end: known optima, resuming, adapters, several processes, recipes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from leftover import PPOConfig, PPOTrainer

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
        "per_device_eval_batch_size": 256,
        "total_episodes": 256 * 30,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model = bandit_model()
    before = probabilities(model)
    args = PPOConfig(output_dir=str(folder), **(defaults | settings))
    trainer = PPOTrainer(model, args, BANDIT, reward_funcs=is_c, processing_class=tokenizer)
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
