"""The contestants do the same work: the released method's losses and gradients equal ours on a batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.models import training_flops
from benchmarks.released import step_loss
from benchmarks.report import bars
from benchmarks.rows import HISTOGRAM, histogram_rows
from benchmarks.steps import ENTRIES, Entry, Measured
from leftover.data.collate import Collator
from leftover.models.logprobs import completion_logprobs
from leftover.models.reference import prompt_hidden, reference_pass
from leftover.objectives import OBJECTIVES, CompletionBatch
from leftover.objectives.advantage import advantage
from leftover.objectives.pointwise import ClipSettings
from leftover.prepare.value import ValueHead
from tests.models.test_logprobs import make_rows


def test_the_released_method_computes_our_losses_and_gradients(tiny_llama_path, tokenizer):
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    with torch.no_grad():  # so that importance weights are not 1
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = ValueHead(policy.config.hidden_size).eval()
    rows = [row | {"reward": float(r)} for row, r in zip(make_rows(), np.linspace(-1, 2, 9), strict=True)]

    loss, losses = step_loss(policy, reference, head, rows, tokenizer.pad_token_id)
    loss.backward()
    theirs = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()

    logprobs, _ = reference_pass(reference, tokenizer, rows, features=False)
    states = dict(prompt_hidden(reference, tokenizer, [row["prompt_ids"] for row in rows]))
    with torch.no_grad():
        value = torch.cat([head(states[i][None], torch.ones(1, len(states[i]))) for i in range(len(rows))])
    rewards = torch.tensor([row["reward"] for row in rows])
    batch = Collator(tokenizer.pad_token_id)(
        [row | {"reference_logprobs": lp} for row, lp in zip(rows, logprobs, strict=True)]
    )
    ours = OBJECTIVES["a_lol_seq"].loss(
        CompletionBatch(
            completion_logprobs(policy, batch),
            batch["reference_logprobs"],
            batch["completion_mask"],
            rewards,
            value,
            advantage(rewards, value),
            torch.arange(len(rows)),
        ),
        ClipSettings(0.9),
    )
    ours.mean().backward()
    torch.testing.assert_close(losses, ours, atol=1e-3, rtol=1e-4)
    assert (ours != 0).any()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(theirs[name], parameter.grad, atol=1e-4, rtol=1e-3)


def test_rows_of_the_histogram_have_its_lengths():
    rows = histogram_rows(4000)
    assert 100 < np.mean([len(row["prompt_ids"]) for row in rows]) < 150
    assert 35 < np.mean([len(row["completion_ids"]) for row in rows]) < 55
    assert HISTOGRAM.stat().st_size < 100_000


@pytest.mark.parametrize(("prompt", "completion"), [(3, 2), (10, 1)])
def test_the_floor_counts_the_products_of_a_step(prompt, completion):
    hidden, layers, feed_forward, vocabulary = 4, 2, 6, 11
    fed = prompt + completion - 1
    products = 0
    for _ in range(layers):
        products += fed * 4 * hidden * hidden + fed * 3 * hidden * feed_forward
        products += sum(2 * hidden * seen for seen in range(1, fed + 1))  # scores and mixing, causal
    products += completion * hidden * vocabulary
    found = training_flops(
        [(prompt, completion)], vocabulary, hidden=hidden, layers=layers, feed_forward=feed_forward, key_value=hidden
    )
    assert found == 2 * 3 * products


def test_a_bar_is_held_where_its_ratio_of_medians_is():
    measured = {entry: Measured(rates=[10.0, 10.0, 100.0], peaks=[1000.0]) for entry in ENTRIES}
    for entry in ENTRIES:
        if entry.contestant == "ours" and not entry.bf16:
            measured[entry] = Measured(rates=[75.0, 1.0, 80.0], peaks=[450.0])
    found = {what: (value, held) for what, value, _, held in bars(measured)}
    assert found["against the released method, float32"] == ("7.5 x", True)
    assert found["against TRL SFT, float32"] == ("7.5 x", False)
    assert found["ours in bf16 against the released method in float32"] == ("1.0 x", False)
    assert found["against the released method, each at its best precision"] == ("7.5 x", True)
    assert found["peak memory against the released method, float32"] == ("45%", True)
    assert Entry("ours").precision == "float32"
