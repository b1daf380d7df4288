"""Completions: the same as the model's own generate gives, whatever batch they are made in."""

import pytest
import torch
from transformers import (
    BlenderbotConfig,
    BlenderbotForCausalLM,
    GenerationConfig,
    RwkvConfig,
    RwkvForCausalLM,
)

from leftover.errors import UserError
from leftover.models import generate as generation
from leftover.models.generate import generate
from leftover.models.load import load_model
from leftover.models.probe import batching
from tests.models.ending import ending_model


@pytest.fixture(scope="module")
def model(tiny_llama_path, tokenizer):
    return ending_model(tiny_llama_path, tokenizer)


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
        ids, *_ = generate(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=batch_size)
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
    ids, *_ = generate(model, tokenizer, PROMPTS, max_new_tokens=7, batch_size=4, sample=True)
    assert max(map(len, ids)) == 7 and min(map(len, ids)) >= 1


def test_the_seed_decides_the_samples_and_the_global_generator_is_left_alone(model, tokenizer):
    before = torch.get_rng_state()
    first, second, other = (
        generate(model, tokenizer, PROMPTS, max_new_tokens=12, sample=True, batch_size=8, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert torch.equal(before, torch.get_rng_state())


def sampled(model, tokenizer, prompts=PROMPTS, **settings):
    return generate(model, tokenizer, prompts, max_new_tokens=24, sample=True, **settings)[0]


def test_a_sampled_completion_depends_neither_on_batches_nor_on_the_order_of_rows(model, tokenizer, monkeypatch):
    expected = sampled(model, tokenizer, batch_size=30)
    assert len({len(ids) for ids in expected}) > 3
    for batch_size, stragglers in ((1, 0.0), (4, 0.5), (8, 0.25), (7, 1.0)):
        monkeypatch.setattr(generation, "_STRAGGLERS", stragglers)
        assert sampled(model, tokenizer, batch_size=batch_size) == expected
    assert sampled(model, tokenizer, PROMPTS[::-1], batch_size=4)[::-1] == expected
    assert sampled(model, tokenizer, PROMPTS[5:6]) == expected[5:6]


@pytest.mark.parametrize(("sample", "temperature"), [(True, 1.0), (True, 0.5), (False, 1.0)])
def test_every_token_comes_with_the_log_probability_that_it_was_chosen_by(
    sample, temperature, model, tokenizer, monkeypatch
):
    """That of a plain pass over the whole row, whatever batch and round the token was written in."""
    monkeypatch.setattr(generation, "_STRAGGLERS", 0.5)
    settings = {"max_new_tokens": 24, "sample": sample, "temperature": temperature, "batch_size": 8}
    written = generate(model, tokenizer, PROMPTS, **settings)
    for prompt, ids, logprobs, total in zip(PROMPTS, written.ids, written.logprobs, written.sums, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.from_numpy(logprobs), expected, atol=1e-4, rtol=1e-4)
        assert total == pytest.approx(float(expected.sum()), abs=1e-3)


def test_equal_prompts_get_completions_of_their_own_which_their_numbers_give_back(model, tokenizer):
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    found = sampled(model, tokenizer, prompts)
    assert len({tuple(found[i]) for i in (0, 2, 3)}) == 3
    assert sampled(model, tokenizer, [PROMPTS[0]], copies=[2]) == [found[3]]
    assert generation.copy_numbers(prompts) == [0, 0, 1, 2]


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, (4, 2, 1, 1)), (0.5, (16, 4, 1, 1))])
def test_tokens_are_drawn_by_their_probabilities_at_the_temperature(temperature, shares):
    """Of evenly spaced numbers as many give a token as its share says: 4:2:1:1, squared at a temperature of 1/2."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125]).log()
    rows = 5 * sum(shares)
    even = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows
    chosen = generation._Draw(even, temperature)(None, logits.repeat(rows, 1)).argmax(-1)
    assert chosen.bincount(minlength=5).tolist() == [5 * shares[0], 0, *(5 * share for share in shares[1:])]
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert generation._Draw(ends, 1.0)(None, logits.repeat(2, 1)).argmax(-1).tolist() == [0, 4]


def test_no_token_is_drawn_from_logits_that_are_no_numbers(model, tokenizer):
    weight = model.get_input_embeddings().weight
    before = weight.data[20].clone()
    weight.data[20] = torch.nan
    try:
        with pytest.raises(UserError, match="NaN or infinite"):
            sampled(model, tokenizer)
    finally:
        weight.data[20] = before


def with_ends(model, tokenizer):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, *range(10, len(tokenizer), 11)])
    return model.eval()


def rwkv(vocabulary):
    """Mixes the rows of a batch."""
    return RwkvForCausalLM(
        RwkvConfig(vocab_size=vocabulary, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    )


def blenderbot(vocabulary):
    """Counts the positions of the padding."""
    config = BlenderbotConfig(
        vocab_size=vocabulary, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64,
        max_position_embeddings=64,
    )  # fmt: skip
    return BlenderbotForCausalLM(config)


@pytest.mark.parametrize(("build", "together"), [(rwkv, "single"), (blenderbot, "equally long")])
def test_rows_that_a_model_cannot_continue_together_are_continued_apart(build, together, tokenizer):
    model = with_ends(build(len(tokenizer)), tokenizer)
    assert batching(model, tokenizer.pad_token_id) == together
    expected = [alone(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) > 3
    for batch_size in (4, 30):
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=batch_size)[0] == expected
    assert sampled(model, tokenizer, batch_size=30) == sampled(model, tokenizer, batch_size=1)


def test_a_transformer_continues_any_rows_together(model, tokenizer, tiny_gpt2_path):
    assert batching(model, tokenizer.pad_token_id) == "any"
    assert batching(load_model(tiny_gpt2_path), tokenizer.pad_token_id) == "any"


@pytest.mark.parametrize(("noise", "together"), [(0.035, "any"), (0.3, "single"), (float("nan"), "single")])
def test_rounding_in_batches_of_another_shape_keeps_no_rows_apart(noise, together, tiny_llama_path, tokenizer):
    """Of SmolLM2 in bfloat16 it is .02 to .045 of what another text changes: once taken for a model that mixes rows."""
    model = ending_model(tiny_llama_path, tokenizer).to(torch.bfloat16)

    def round_by_shape(_, __, output):
        shape = output.logits.shape
        by_shape = torch.Generator().manual_seed(100 * shape[0] + shape[1])
        noisy = torch.randn(shape[-1], generator=by_shape) * noise * output.logits.float().std()
        output.logits = output.logits.float() + noisy
        return output

    with model.register_forward_hook(round_by_shape):
        assert batching(model, tokenizer.pad_token_id) == together


def test_the_head_gets_no_slice_that_torch_would_multiply_row_by_row(model, tokenizer):
    """torch copies a frozen head once for every row if its input is a slice (3.6 GB for 64 rows of SmolLM2)."""
    seen = []
    model.requires_grad_(False)
    with model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0])):
        generate(model, tokenizer, PROMPTS[:4], max_new_tokens=3)
    model.requires_grad_(True)
    of_batch = [states for states in seen if states.shape[:2] == (4, 1)]
    assert len(of_batch) == 3 and all(states.is_contiguous() for states in of_batch)


@pytest.mark.parametrize("max_batch_tokens", [1, 60, 200, 10**9])
def test_batches_keep_within_the_budget_of_tokens_and_give_the_same_completions(
    max_batch_tokens, model, tokenizer, monkeypatch
):
    expected = sampled(model, tokenizer)
    monkeypatch.setattr(generation, "_STRAGGLERS", 0.25)
    seen = []
    original = model.generate

    def spy(**options):
        seen.append((*options["input_ids"].shape, options["max_new_tokens"]))
        return original(**options)

    monkeypatch.setattr(model, "generate", spy)
    assert sampled(model, tokenizer, max_batch_tokens=max_batch_tokens) == expected
    assert all(rows == 1 or rows * (width + new) <= max_batch_tokens for rows, width, new in seen)
    assert (max(rows for rows, *_ in seen) > 1) == (max_batch_tokens > 1)


def test_a_budget_that_holds_all_rows_leaves_the_batches_as_they_are():
    lengths, left = dict.fromkeys(range(10), 5), dict.fromkeys(range(10), 7)
    assert [len(batch) for batch in generation._batches(lengths, left, 4, 10**6, "any")] == [4, 4, 2]
    assert [len(batch) for batch in generation._batches(lengths, left, 4, 36, "any")] == [3, 3, 3, 1]
    # A row that has written nothing yet may write most, though its text is shorter.
    assert list(generation._batches({0: 20, 1: 19}, {0: 1, 1: 30}, 4, 99, "any")) == [[0], [1]]
