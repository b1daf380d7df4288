"""The frozen reference while row constants are computed."""

from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM

from leftover.prepare.reference import Reference
from leftover.recipe.sections import ValueSection
from tests.conftest import scored_rows


def sampled(path: str, tokenizer: Any, seed: int, samples: int, **settings: Any) -> tuple[np.ndarray, list[str]]:
    rows, texts = scored_rows(6), list[str]()
    table = {
        "prompt": [row["prompt"] for row in rows],
        "conversational": [False] * len(rows),
        "prompt_ids": [tokenizer(row["prompt"]).input_ids for row in rows],
    }
    loads: list[str] = []

    def load() -> tuple[Any, Any]:
        loads.append(path)
        return AutoModelForCausalLM.from_pretrained(path), tokenizer

    def score(prompts: list[Any], completions: list[str]) -> list[float]:
        assert prompts == [table["prompt"][i] for i in (4, 1)]
        texts.extend(completions)
        return [float(sum(text.encode())) for text in completions]

    reference = Reference(load, None, 8, seed)
    assert not loads, "nothing is loaded before it is needed"
    section = ValueSection(samples_per_prompt=samples, **settings)
    rewards = reference.sampled_rewards(table, np.array([4, 1]), score, section)
    reference.read([[1]], [[2]])
    assert loads == [path], "and once"
    return rewards, texts


def test_every_sample_of_a_prompt_has_a_seed_of_its_own(tiny_llama_path: str, tokenizer: Any) -> None:
    rewards, texts = sampled(tiny_llama_path, tokenizer, seed=3, samples=2)
    assert rewards.shape == (2, 2) and len(set(texts)) > 2
    np.testing.assert_array_equal(rewards[:, 1], sampled(tiny_llama_path, tokenizer, seed=4, samples=1)[0][:, 0])


def test_greedy_decoding_gives_one_completion_a_prompt(tiny_llama_path: str, tokenizer: Any) -> None:
    rewards, _ = sampled(tiny_llama_path, tokenizer, seed=3, samples=5, decoding="greedy")
    assert rewards.shape == (2, 1)
