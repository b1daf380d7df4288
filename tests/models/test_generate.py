"""Completions: the same as the model's own generate gives, whatever batch they are made in."""

import pytest
import torch
from transformers import GenerationConfig

from leftover.models import generate as generation
from leftover.models.generate import generate
from leftover.models.load import align_generation_config, load_model


@pytest.fixture(scope="module")
def model(tiny_llama_path, tokenizer):
    """A random model whose completions end at different places: every eleventh token is an end of sequence."""
    model = load_model(tiny_llama_path)
    align_generation_config(model, tokenizer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, len(tokenizer), 11)]
    return model


PROMPTS = [[1, 5 + i, *range(20, 20 + 3 * (i % 7))] for i in range(30)]


def alone(model, tokenizer, prompt, max_new_tokens):
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    return ids[0, len(prompt) :].tolist()


def test_greedy_completions_do_not_depend_on_batches_or_rounds(model, tokenizer, monkeypatch):
    expected = [alone(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 3 and 24 in lengths, "some end early and some not at all"
    for batch_size, stragglers in ((4, 0.5), (8, 0.25), (30, 1.0), (8, 0.0)):
        monkeypatch.setattr(generation, "_STRAGGLERS", stragglers)
        ids, _ = generate(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=batch_size)
        assert ids == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(12, 200))},
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
        {"min_new_tokens": 20},
        {"forced_eos_token_id": 5},
        {"do_sample": True, "temperature": 9.0, "top_k": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("sample", [False, True])
def test_settings_of_the_models_folder_change_no_completion(settings, sample, model, tokenizer, monkeypatch):
    def completions():
        return generate(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=8, sample=sample)[0]

    expected = completions()
    ours = GenerationConfig(**(model.generation_config.to_dict() | settings))
    monkeypatch.setattr(model, "generation_config", ours)
    assert completions() == expected
    assert model.generation_config is ours


def test_a_batch_does_not_wait_for_its_stragglers(model, tokenizer, monkeypatch):
    def forwards(stragglers):
        monkeypatch.setattr(generation, "_STRAGGLERS", stragglers)
        calls = []
        handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
        generate(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=4)
        handle.remove()
        return len(calls)

    assert forwards(0.5) < 0.9 * forwards(0.0)


def test_no_completion_is_longer_than_asked_for(model, tokenizer, monkeypatch):
    monkeypatch.setattr(generation, "_STRAGGLERS", 0.5)
    ids, _ = generate(model, tokenizer, PROMPTS, max_new_tokens=7, batch_size=4, sample=True)
    assert max(map(len, ids)) == 7 and min(map(len, ids)) >= 1


def test_the_seed_decides_the_samples_and_the_global_generator_is_left_alone(model, tokenizer):
    before = torch.get_rng_state()
    first, second, other = (
        generate(model, tokenizer, PROMPTS, max_new_tokens=12, sample=True, batch_size=8, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert torch.equal(before, torch.get_rng_state())
