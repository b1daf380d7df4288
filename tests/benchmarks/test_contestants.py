"""The contestants do the same work: the released method's losses and gradients equal ours on a batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.contestants import CONTESTANTS
from benchmarks.end_to_end import Finished, preferences, sequence_logprobs
from benchmarks.models import training_flops, write_tiny
from benchmarks.released import step_loss
from benchmarks.report import bars, end_to_end_bars, real_bars
from benchmarks.rows import HISTOGRAM, REAL_COMPLETION, histogram_rows
from benchmarks.setting import Setting
from benchmarks.steps import ENTRIES, Measured, completion_rate, real_entries
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
        if entry.contestant == "ours" and entry.setting.precision == "float32" and not entry.setting.lora:
            measured[entry] = Measured(rates=[75.0, 1.0, 80.0], peaks=[450.0])
    found = {what: (value, held) for what, value, _, held in bars(measured)}
    assert found["against the released method, float32"] == ("7.5 x", True)
    assert found["against TRL SFT, float32"] == ("7.5 x", False)
    assert found["ours in bf16 against the released method in float32"] == ("1.0 x", False)
    assert found["against the released method, each at its best precision"] == ("7.5 x", True)
    assert found["peak memory against the released method, float32"] == ("45%", True)


def test_on_a_real_model_ours_is_held_against_every_other_under_the_same_setting(tmp_path):
    measured = {entry: Measured(rates=[10.0]) for entry in real_entries(write_tiny(tmp_path))}
    for entry in measured:
        if entry.contestant == "ours" and entry.setting.lora:
            measured[entry] = Measured(rates=[50.0])
    found = {what: (value, held) for what, value, _, held in real_bars(measured)}
    assert found["against TRL SFT, LoRA, float32"] == ("5.0 x", True)
    assert found["against TRL SFT, float32"] == ("1.0 x", False)
    assert len(found) == len(measured) - 4  # two precisions, with and without an adapter

    ours, theirs = Finished([20.0, 10.0, 30.0], [], []), Finished([60.0, 61.0, 59.0], [], [])
    assert end_to_end_bars({"ours": ours, "trl_dpo": theirs})[0][1:] == ("3.0 x", ">= 3 x", True)


def test_a_rate_counts_completion_tokens():
    assert completion_rate({"seconds": [1.5, 0.5], "lengths": [[[9, 3], [9, 4]], [[9, 1]]]}) == 4.0


@pytest.mark.parametrize("name", ["released", "ours"])
def test_rows_of_a_real_model_are_its_own_tokens(name, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.rows.answers", lambda: None)
    setting = Setting(write_tiny(tmp_path), batch=3, steps=2)
    known = {(len(row["prompt_ids"]), len(row["completion_ids"])) for row in setting.rows()}
    tokenizer = setting.tokenizer()
    for row in setting.rows()[:5]:
        assert tokenizer.decode(row["completion_ids"]) == row["completion"] + tokenizer.eos_token
        assert row["prompt"].endswith(tokenizer.decode(row["prompt_ids"], skip_special_tokens=True))
    [(_, lengths)] = CONTESTANTS[name](setting)
    assert len(lengths) == 3 and set(lengths) <= known
    assert max(completion for _, completion in known) <= REAL_COMPLETION


def test_both_ends_compute_the_same_log_probabilities(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_tiny(tmp_path)).eval()
    with torch.no_grad():  # so that tokens differ in probability
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = Setting(str(tmp_path)).tokenizer()
    prompts, completions = [[9, 8, 7, 6], [5, 11]], [[12, 13, tokenizer.eos_token_id], [14, 15, 16]]
    rows = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompts, completions, strict=True)]
    ours, _ = reference_pass(model, tokenizer, rows, features=False, compute_dtype="bfloat16")
    # As generate leaves them: prompts padded on the left, completions on the right.
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[9, 8, 7, 6, 12, 13, tokenizer.eos_token_id, pad], [pad, pad, 5, 11, 14, 15, 16, pad]])
    kept = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    mask = torch.cat([torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]), kept.long()], dim=1)
    with torch.no_grad():
        theirs = sequence_logprobs(model, ids, mask, kept)
    np.testing.assert_allclose(theirs.numpy(), [lp.sum() for lp in ours], atol=1e-2)
    assert abs(ours[0].sum() - ours[1].sum()) > 0.1  # so that a mistaken row shows


def test_preferences_are_the_best_and_the_worst_of_a_prompt():
    def row(prompt, completion):
        return {"prompt": [{"role": "user", "content": prompt}], "completion": completion}

    [found] = preferences([row("a", "one"), row("b", "same"), row("a", "one two"), row("b", "word")])
    assert found["prompt"] == row("a", "")["prompt"]
    assert [found[side][0]["content"] for side in ("chosen", "rejected")] == ["one two", "one"]
