"""KL and entropy along training: by hand, 0 at the start, and only where completions are sampled."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leftover.metrics import sampled_kl
from leftover.models.divergence import FrozenStart, divergence
from leftover.training.trainer import LoLConfig, LoLTrainer
from tests.conftest import scored_rows


class Unigram(nn.Module):
    """The weights of a language model whose next token does not depend on what stands before it."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.head = nn.Linear(1, len(probabilities), bias=False)
        self.set(probabilities)

    def set(self, probabilities: list[float]) -> None:
        self.head.weight.data = torch.tensor(probabilities).log()[:, None]


def test_kl_and_entropy_of_two_completions_by_hand() -> None:
    """Reference: a quarter each. Policy: 1/2, 1/4, 1/8, 1/8.

    Completions (0) and (0, 1, 3): their log-probabilities are -1 and -1 - 2 - 3 = -6 under the policy, -2 and -6 under
    the reference, in units of ln 2. Log-ratios 1 and 0: their mean is 1/2, their standard deviation 1 / sqrt 2, its
    error 1/2. Entropy: (1 + 6) / 4 tokens.
    """
    policy, reference = np.array([-1, -6]) * math.log(2), np.array([-2, -6]) * math.log(2)
    found = divergence(policy.tolist(), reference.tolist(), [1, 3])
    expected = {"kl": 0.5, "kl/standard_error": 0.5, "entropy": 1.75}
    assert found == {name: pytest.approx(number * math.log(2), abs=1e-6) for name, number in expected.items()}
    assert "kl/standard_error" not in divergence([-1.0], [-2.0], [1])


def test_the_estimate_is_policy_less_reference() -> None:
    assert sampled_kl([-1.0, -5.0], [-3.0, -4.0]).tolist() == [2.0, -1.0]


@pytest.mark.parametrize("offload", [False, True])
def test_the_start_changes_places_with_the_policy_and_comes_back(offload: bool) -> None:
    policy = Unigram([0.5, 0.5])
    start = FrozenStart(policy, offload=offload)
    policy.set([0.25, 0.75])
    for _ in range(2):
        with start.in_place():
            assert policy.head.weight.exp().flatten().tolist() == pytest.approx([0.5, 0.5])
        assert policy.head.weight.exp().flatten().tolist() == pytest.approx([0.25, 0.75])


def trainer_of(path: str, tokenizer: Any, folder: Path, **settings: Any) -> LoLTrainer:
    args = LoLConfig(
        output_dir=str(folder), objective="nll", max_steps=3, learning_rate=1e-2, max_completion_length=40,
        disable_tqdm=True, **settings,
    )  # fmt: skip
    rows = scored_rows(30)
    prompts = [{"prompt": row["prompt"]} for row in rows[:6]]
    reward = [lambda prompts, completions: [1.0] * len(completions)]
    return LoLTrainer(path, args, rows, prompts, reward_funcs=reward, processing_class=tokenizer)


def test_training_starts_at_no_divergence_and_measuring_it_changes_no_weight(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_llama_path, tokenizer, tmp_path, eval_decoding="sample")
    first = trainer.evaluate()
    # The policy's log-probabilities are those of the sampling, the reference's of a pass: equal up to rounding.
    assert abs(first["eval_kl"]) < 1e-3 and first["eval_kl/standard_error"] < 1e-3
    # A random model is close to uniform over its vocabulary.
    assert first["eval_entropy"] == pytest.approx(math.log(len(tokenizer)), rel=0.02)
    trainer.train()
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    last = trainer.evaluate()
    assert last["eval_kl"] > 0.1 and last["eval_entropy"] < first["eval_entropy"]
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))


def test_of_greedy_completions_no_divergence_is_told_and_no_weights_are_kept(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_llama_path, tokenizer, tmp_path, eval_decoding="greedy")
    assert trainer.reference is None
    assert not {"eval_kl", "eval_entropy"} & trainer.evaluate().keys()
