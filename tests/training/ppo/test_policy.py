"""What PPO reads off a policy: against a plain forward of every row alone."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from leftover.data.collate import Collator
from leftover.models.divergence import FrozenStart
from leftover.objectives.ppo import entropy
from leftover.training.ppo.policy import attach_value_head, score_tokens, token_outputs
from tests.models.test_logprobs import make_rows, plainly


@pytest.fixture(params=["llama", "gpt2"])
def policy(request: Any, tiny_llama_path: str, tiny_gpt2_path: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained({"llama": tiny_llama_path, "gpt2": tiny_gpt2_path}[request.param])
    torch.manual_seed(1)
    head = attach_value_head(model.eval())
    torch.nn.init.normal_(head.weight, std=0.1)
    torch.nn.init.constant_(head.bias, 0.25)
    return model


def values_plainly(model: Any, row: dict) -> torch.Tensor:
    """The definition: a linear map of the last hidden state before each completion token."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
    start = len(row["prompt_ids"])
    return hidden[start - 1 : -1] @ model.value_head.weight[0] + model.value_head.bias


def entropies_plainly(model: Any, row: dict) -> torch.Tensor:
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
    return torch.distributions.Categorical(logits=logits).entropy()


@torch.no_grad()
def test_padded_batches_give_what_each_row_alone_gives(policy: Any) -> None:
    rows = make_rows()
    for found in (
        token_outputs(policy, Collator(0)(rows), entropies=True),
        score_tokens(policy, 0, rows, entropies=True),
    ):
        for i, row in enumerate(rows):
            length = len(row["completion_ids"])
            expected = (plainly(policy, row), values_plainly(policy, row), entropies_plainly(policy, row))
            for ours, theirs in zip(found, expected, strict=True):
                assert ours is not None
                torch.testing.assert_close(ours[i, :length], theirs, atol=2e-5, rtol=1e-5)
                assert (ours[i, length:] == 0).all()


def test_the_value_loss_reaches_head_and_trunk_as_in_a_plain_forward(policy: Any) -> None:
    rows = make_rows(5)
    batch = Collator(0)(rows)
    errors = (token_outputs(policy, batch).values - 1.0).square() * batch["completion_mask"]
    (errors.sum(1) * torch.arange(1.0, 6)).sum().backward()
    ours = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    plain = [(i + 1.0) * (values_plainly(policy, row) - 1.0).square().sum() for i, row in enumerate(rows)]
    torch.stack(plain).sum().backward()
    assert {"value_head.weight", "value_head.bias"} <= ours.keys() and len(ours) > 10
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=2e-4)


def test_the_temperature_divides_the_logits(policy: Any) -> None:
    row = make_rows(1)[0]
    with torch.no_grad():
        found = token_outputs(policy, Collator(0)([row]), temperature=0.5, entropies=True)
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        logits = policy(ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / 0.5
    targets = torch.tensor(row["completion_ids"])[:, None]
    torch.testing.assert_close(found.logprobs[0], logits.log_softmax(-1).gather(1, targets)[:, 0])
    assert found.entropies is not None
    torch.testing.assert_close(found.entropies[0], entropy(logits))


def test_the_reference_is_the_start_to_the_last_bit_and_the_policy_comes_back(policy: Any) -> None:
    rows = make_rows()
    reference = FrozenStart(policy)
    before = score_tokens(policy, 0, rows).logprobs
    with reference.in_place():
        assert torch.equal(score_tokens(policy, 0, rows).logprobs, before)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = score_tokens(policy, 0, rows).logprobs
    assert not torch.allclose(moved, before, atol=1e-2)
    with reference.in_place():
        assert torch.equal(score_tokens(policy, 0, rows).logprobs, before)
    assert torch.equal(score_tokens(policy, 0, rows).logprobs, moved)


def test_under_an_adapter_the_reference_is_the_adapter_as_it_was(tiny_llama_path: str) -> None:
    """A policy that goes on training the reference's own adapter: without the adapter it would be the base."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    policy = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    rows = make_rows()
    reference = FrozenStart(policy)
    attach_value_head(policy)
    at_first = score_tokens(policy, 0, rows).logprobs
    assert sum(p.numel() for _, p in reference.weights) < 0.2 * sum(p.numel() for p in policy.parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
    with reference.in_place():
        assert torch.equal(score_tokens(policy, 0, rows).logprobs, at_first)
    with policy.disable_adapter():
        assert not torch.allclose(score_tokens(policy, 0, rows).logprobs, at_first, atol=1e-2)


def test_the_value_head_is_not_saved_with_the_policy(policy: Any, tmp_path: Any) -> None:
    from safetensors.torch import load_file

    policy.save_pretrained(tmp_path)
    assert not any("value_head" in name for name in load_file(tmp_path / "model.safetensors"))
