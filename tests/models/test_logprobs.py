"""Log-probabilities of completions: equal to a plain padded forward, whatever the layout, batching or chunking."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from leftover.data.collate import Collator
from leftover.models import logprobs as module
from leftover.models.inputs import join
from leftover.models.logprobs import completion_logprobs, head_is_last, output_head, selected_logprobs


def make_rows(count=9, seed=0, vocabulary=200):
    generator = torch.Generator().manual_seed(seed)

    def some(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    return [{"prompt_ids": some(1, 20), "completion_ids": some(1, 15)} for _ in range(count)]


def plainly(model, row):
    """The definition: one row, no padding, logits everywhere."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
    start = len(row["prompt_ids"])
    return torch.stack([logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])])


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def model(request, tiny_llama_path, tiny_gpt2_path):
    """Rotary and learned positions, and a head whose logits are capped after it."""
    if request.param == "gemma2":
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, attn_implementation="eager",
        )  # fmt: skip
        return Gemma2ForCausalLM(config).eval()
    paths = {"llama": tiny_llama_path, "gpt2": tiny_gpt2_path}
    return AutoModelForCausalLM.from_pretrained(paths[request.param]).eval()


def test_they_equal_a_plain_forward_of_each_row_alone(model):
    rows = make_rows()
    found = completion_logprobs(model, Collator(0)(rows))
    for i, row in enumerate(rows):
        length = len(row["completion_ids"])
        torch.testing.assert_close(found[i, :length], plainly(model, row), atol=1e-5, rtol=0)
        assert (found[i, length:] == 0).all()


def test_their_gradients_equal_those_of_a_plain_forward(model):
    rows = make_rows()
    weights = [1.0 + i for i in range(len(rows))]
    found = completion_logprobs(model, Collator(0)(rows))
    (found.sum(1) * torch.tensor(weights)).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(weight * plainly(model, row).sum() for weight, row in zip(weights, rows, strict=True)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("elements", [1, 1000, 2**30])
def test_the_size_of_the_chunks_changes_nothing(elements, overwrite, monkeypatch):
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", elements)
    torch.manual_seed(0)
    logits = (5 * torch.randn(37, 300)).requires_grad_()
    targets, upstream = torch.randint(300, (37,)), torch.randn(37)
    expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(expected, logits, upstream)
    found = selected_logprobs(logits * 1.0, targets, overwrite)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (ours,) = torch.autograd.grad(found, logits, upstream)
    torch.testing.assert_close(ours, gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_head_that_runs_in_parts_gives_the_same_numbers_and_gradients(model, temperature, monkeypatch):
    batch, found = Collator(0)(make_rows()), []
    for most in (2**28, 2_000):
        monkeypatch.setitem(module.MOST_LOGITS, "cpu", most)
        model.zero_grad()
        logprobs = completion_logprobs(model, batch, overwrite_logits=True, temperature=temperature)
        (logprobs.sum(1) * torch.arange(1.0, 10)).sum().backward()
        found.append([logprobs.detach()] + [p.grad.clone() for p in model.parameters()])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    assert head_is_last(model) == (type(model) is not Gemma2ForCausalLM), "what caps its logits runs whole"


def test_a_head_in_parts_never_holds_all_logits(tiny_llama_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    sizes = []
    assert head_is_last(model)
    monkeypatch.setitem(module.MOST_LOGITS, "cpu", 40 * model.config.vocab_size)
    with output_head(model).register_forward_hook(lambda _, __, output: sizes.append(output.numel())):
        completion_logprobs(model, Collator(0)(make_rows())).sum().backward()
    assert max(sizes) <= 5 * model.config.vocab_size, "an eighth at a time"
    assert sum(sizes) > 2 * 40 * model.config.vocab_size, "computed again for the gradient"


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-3e38, 0.0, 1.0]])
    found = selected_logprobs(logits, torch.tensor([1, 2]))
    torch.testing.assert_close(found, torch.tensor([-1e4, -0.313262]), atol=1e-5, rtol=0)


def test_logits_in_bfloat16_are_normalised_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(4, 5000).bfloat16()
    found = selected_logprobs(logits, torch.arange(4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.float().log_softmax(-1).diagonal()[:4], atol=1e-5, rtol=0)


def test_a_second_backward_pass_is_right_or_stopped_and_never_silently_wrong():
    logits = torch.randn(3, 7, requires_grad=True)
    losses = selected_logprobs(logits * 1.0, torch.tensor([0, 1, 2]))
    first, second = (torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
    overwriting = selected_logprobs(logits * 1.0, torch.tensor([0, 1, 2]), overwrite_logits=True).sum()
    overwriting.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        overwriting.backward()


def test_rows_begin_at_position_0_and_every_completion_token_is_predicted_once():
    rows = [{"prompt_ids": [5, 6, 7], "completion_ids": [8]}, {"prompt_ids": [9], "completion_ids": [10, 11]}]
    input_ids, predicting = join(Collator(0)(rows))
    assert input_ids[:, :3].tolist() == [[5, 6, 7], [9, 10, 11]] and input_ids.shape == (2, 3)
    assert predicting.tolist() == [2, 3, 4]


def test_only_completion_positions_reach_the_head(tiny_llama_path):
    """Defect 9: logits for prompt and padding positions are computed and thrown away."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    rows, seen = make_rows(), []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[:-1].numel()))
    completion_logprobs(model, Collator(0)(rows))
    assert seen == [sum(len(row["completion_ids"]) for row in rows)]
    model(input_ids=torch.ones(1, 4, dtype=torch.int64))
    assert seen[1] == 4, "outside, the model is as it was"


def test_a_prompt_without_a_token_is_refused_and_not_read_in_the_row_before_it(model):
    rows = [*make_rows(2), {"prompt_ids": [], "completion_ids": [4, 5]}]
    with pytest.raises(ValueError, match="without a token"):
        completion_logprobs(model, Collator(0)(rows))
