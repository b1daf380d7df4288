"""Encoder-decoders: log-probabilities are those of transformers' own labels, and completions are written with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from leftover.data.collate import Collator
from leftover.errors import UserError
from leftover.models import logprobs as module
from leftover.models.engines.weights import unsupported
from leftover.models.generate import generate
from leftover.models.load import (
    align_generation_config,
    build_model,
    load_model,
    max_positions,
    save_model,
    start_token,
)
from leftover.models.logprobs import completion_logprobs, head_is_last, output_head
from leftover.models.probe import batching, check_causal
from leftover.models.reference import prompt_hidden, reference_pass
from tests.models.encoder_decoders import plainly, settings, tiny
from tests.models.test_logprobs import make_rows

KINDS = ["t5", "mt5", "bart", "marian", "pegasus"]


@pytest.fixture(params=["t5", "bart"])
def model(request: Any, tokenizer: Any) -> Any:
    """Distances between tokens, and positions from the first on."""
    return tiny(request.param, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_completion_as_labels(kind: str, tokenizer: Any) -> None:
    model, rows = tiny(kind, tokenizer), make_rows(vocabulary=len(tokenizer))
    check_causal(model, kind)
    found = completion_logprobs(model, Collator(tokenizer.pad_token_id)(rows))
    for i, row in enumerate(rows):
        length = len(row["completion_ids"])
        torch.testing.assert_close(found[i, :length], plainly(model, row), atol=1e-5, rtol=0)
        assert (found[i, length:] == 0).all()


def test_gradients_are_those_of_plain_passes(model: Any) -> None:
    rows = make_rows()
    weights = [1.0 + i for i in range(len(rows))]
    found = completion_logprobs(model, Collator(0)(rows), overwrite_logits=True)
    (found.sum(1) * torch.tensor(weights)).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(weight * plainly(model, row).sum() for weight, row in zip(weights, rows, strict=True)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=5e-4, rtol=5e-4)


def test_neither_padding_nor_the_order_of_rows_changes_a_row(model: Any) -> None:
    rows = make_rows()
    wider = {"prompt_ids": [5] * 40, "completion_ids": [6] * 30}
    alone, turned = Collator(0)(rows), Collator(7)([wider, *reversed(rows)])  # another padding token
    found, other = completion_logprobs(model, alone), completion_logprobs(model, turned)
    width = found.shape[1]
    torch.testing.assert_close(other[1:].flip(0)[:, :width], found, atol=1e-5, rtol=0)
    assert (other[1:, width:] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_head_in_parts_gives_the_same(model: Any, temperature: float, monkeypatch: Any) -> None:
    batch, found = Collator(0)(make_rows()), []
    assert head_is_last(model)
    for most in (2**28, 2_000):
        monkeypatch.setitem(module.MOST_LOGITS, "cpu", most)
        found.append(completion_logprobs(model, batch, temperature=temperature))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_only_completion_positions_reach_the_head(model: Any) -> None:
    rows, seen = make_rows(), list[int]()
    with output_head(model).register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel())):
        completion_logprobs(model, Collator(0)(rows))
    assert seen == [sum(len(row["completion_ids"]) for row in rows)]


def test_a_prompt_without_a_token_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="without a token"):
        completion_logprobs(model, Collator(0)([*make_rows(2), {"prompt_ids": [], "completion_ids": [4]}]))


def test_features_are_what_the_encoder_makes_of_the_prompt_alone(model: Any, tokenizer: Any) -> None:
    rows = make_rows()
    _, features = reference_pass(model, tokenizer, rows)
    assert features is not None and features.shape == (len(rows), 64)
    hidden = dict(prompt_hidden(model, tokenizer, [row["prompt_ids"] for row in rows]))
    for i, row in enumerate(rows):
        with torch.no_grad():
            states = model.get_encoder()(input_ids=torch.tensor([row["prompt_ids"]])).last_hidden_state[0]
        torch.testing.assert_close(hidden[i], states, atol=1e-5, rtol=1e-5)
        pooled = torch.cat([states.mean(0), states[-1]])
        torch.testing.assert_close(torch.from_numpy(features[i]), pooled, atol=1e-5, rtol=1e-5)


def ending(kind: str, tokenizer: Any) -> Any:
    """One whose completions end at different places: every eleventh token is an end of sequence."""
    model = tiny(kind, tokenizer, decoder_start_token_id=tokenizer.bos_token_id)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, len(tokenizer), 11)]
    model.generation_config.forced_eos_token_id = None
    return model


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_samples_have_the_log_probabilities_of_a_pass_whatever_the_batch(kind: str, tokenizer: Any) -> None:
    prompts, model = [row["prompt_ids"] for row in make_rows(20)], ending(kind, tokenizer)
    whole = generate(model, tokenizer, prompts, max_new_tokens=24, sample=True, temperature=0.9)
    assert len({len(ids) for ids in whole.ids}) > 5
    for size in (1, 7):
        parts = generate(model, tokenizer, prompts, max_new_tokens=24, sample=True, temperature=0.9, batch_size=size)
        assert parts.ids == whole.ids
    rows = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompts, whole.ids, strict=True)]
    read, _ = reference_pass(model, tokenizer, rows, features=False, temperature=0.9)
    for told, own in zip(whole.logprobs, read, strict=True):
        np.testing.assert_allclose(told, own, atol=2e-4)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_greedy_completions_are_those_of_transformers(kind: str, tokenizer: Any) -> None:
    prompts, model = [row["prompt_ids"] for row in make_rows(6)], ending(kind, tokenizer)
    found = generate(model, tokenizer, prompts, max_new_tokens=10).ids
    assert len({tuple(ids) for ids in found}) > 2
    for prompt, ids in zip(prompts, found, strict=True):
        plain = model.generate(input_ids=torch.tensor([prompt]), do_sample=False, num_beams=1, max_new_tokens=10)
        assert ids == plain[0, 1:].tolist(), "without the start token"


def test_texts_of_unequal_length_go_on_together_where_the_model_can(tokenizer: Any) -> None:
    kinds = {kind: batching(tiny(kind, tokenizer), tokenizer.pad_token_id) for kind in ("t5", "bart")}
    assert kinds == {"t5": "any", "bart": "equally long"}


@pytest.mark.parametrize(("kind", "rows"), [("t5", [8, 8, 2]), ("bart", [8, 8])])
def test_stragglers_of_batches_go_on_in_one(kind: str, rows: list[int], tokenizer: Any, monkeypatch: Any) -> None:
    """Of BART, whose texts must be equally long, each batch is written to its end."""
    model = tiny(kind, tokenizer)
    batching(model, tokenizer.pad_token_id)
    seen, made = list[int](), model.generate
    monkeypatch.setattr(model, "generate", lambda **given: seen.append(len(given["input_ids"])) or made(**given))
    ends, step = iter(range(10**6)), tokenizer.eos_token_id

    def end_most(module: Any, inputs: Any, logits: Any) -> Any:
        """At every fourth step all rows but the first of a batch end."""
        logits[:, -1, step] = -1e4
        if next(ends) % 4 == 3:
            logits[1:, -1, step] = 1e4
        return logits

    with output_head(model).register_forward_hook(end_most):
        written = generate(model, tokenizer, [[5 + i] for i in range(16)], max_new_tokens=12, batch_size=8)
    assert seen == rows and {len(ids) for ids in written.ids} >= {4, 12}


def test_a_new_model_begins_with_the_end_of_sequence_and_is_itself_when_read_back(
    tokenizer: Any, tmp_path: Path
) -> None:
    for kind in ("t5", "bart"):
        model = build_model(settings(kind), tokenizer, seed=0)
        assert start_token(model) == tokenizer.eos_token_id
        save_model(model, tokenizer, tmp_path / kind)
        again = load_model(str(tmp_path / kind)).eval()
        assert type(again) is type(model) and start_token(again) == tokenizer.eos_token_id
        batch = Collator(0)(make_rows())
        torch.testing.assert_close(completion_logprobs(again, batch), completion_logprobs(model.eval(), batch))


def test_an_adapter_leaves_the_head_alone_and_is_scored(model: Any) -> None:
    adapted: Any = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear")).eval()
    assert not [name for name, _ in adapted.named_parameters() if "lora" in name and "lm_head" in name]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    check_causal(adapted, "X")
    rows = make_rows()
    found = completion_logprobs(adapted, Collator(0)(rows))
    for i, row in enumerate(rows):
        expected = plainly(adapted, row)
        torch.testing.assert_close(found[i, : len(expected)], expected, atol=1e-5, rtol=0)


def test_what_cannot_be_scored_is_refused(tokenizer: Any, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"^X: .*no decoder_start_token_id"):
        check_causal(tiny("t5", tokenizer, decoder_start_token_id=None), "X")
    virtual = get_peft_model(tiny("t5", tokenizer), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match=r"^X: .*virtual tokens.*LoRA"):
        check_causal(virtual, "X")
    blind = tiny("bart", tokenizer)
    encode = blind.get_encoder().forward
    monkeypatch.setattr(blind.get_encoder(), "forward", lambda *args, **given: encode(*args, **_unmasked(given)))
    with pytest.raises(UserError, match=r"^X: .*reads the padding behind a prompt"):
        check_causal(blind, "X")


def _unmasked(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "attention_mask"}


def test_an_encoder_decoder_has_its_positions_twice_or_none(tokenizer: Any) -> None:
    assert max_positions(tiny("bart", tokenizer).config) == 64
    assert max_positions(tiny("t5", tokenizer, n_positions=512).config) is None, "the length it was trained at"


def test_vllm_serves_none(tokenizer: Any) -> None:
    assert unsupported(tiny("t5", tokenizer)) == "it is an encoder-decoder"


def test_the_end_that_is_forced_at_the_limit_is_the_tokenizers(tokenizer: Any) -> None:
    model = tiny("bart", tokenizer)
    model.generation_config.forced_eos_token_id = 7
    align_generation_config(model, tokenizer)
    assert model.generation_config.forced_eos_token_id == tokenizer.eos_token_id
