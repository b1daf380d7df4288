"""Weights of which each process holds a part (FSDP2): all pass together, and what is saved is whole."""

from pathlib import Path

import numpy as np
import torch

from leftover.models.generate import generate
from leftover.models.load import load_model, save_model, whole_weights
from leftover.models.reference import reference_pass
from leftover.monitoring import ranks
from tests.forked import as_ranks

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
ROWS = [{"prompt_ids": prompt, "completion_ids": [4, 5, 6]} for prompt in PROMPTS]


def _numbers(model: torch.nn.Module, tokenizer: object) -> tuple[list, list]:
    written = generate(model, tokenizer, PROMPTS, max_new_tokens=6, sample=True)
    return written.ids, [values.tolist() for values in reference_pass(model, tokenizer, ROWS)[0]]


def _sharded(path: str, folder: Path, expected: tuple[list, list], adapter: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    from leftover.data.tokenizer import load_tokenizer

    ranks.join()
    model, tokenizer = load_model(path), load_tokenizer(path)
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    base = model.get_base_model() if adapter else model
    for layer in base.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert ranks.is_sharded(model) and not ranks.is_sharded(torch.nn.Linear(1, 1))
    ids, logprobs = _numbers(model, tokenizer)
    assert ids == expected[0]
    for own, whole in zip(logprobs, expected[1], strict=True):
        np.testing.assert_allclose(own, whole, atol=1e-5)
    save_model(model, tokenizer, folder, whole_weights(model, None))  # type: ignore[arg-type]
    ranks.wait()


def test_a_sharded_model_writes_reads_and_is_saved_as_a_whole_one(tmp_path: Path, tiny_llama_path: str) -> None:
    from leftover.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_llama_path)
    model = load_model(tiny_llama_path)
    as_ranks(2, _sharded, tiny_llama_path, tmp_path / "full", _numbers(model, tokenizer), False)
    saved = load_model(str(tmp_path / "full"))
    for name, values in model.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], values)


def test_a_sharded_adapter_is_saved_as_an_adapter(tmp_path: Path, tiny_llama_path: str) -> None:
    from leftover.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_llama_path)
    expected = _numbers(load_model(tiny_llama_path), tokenizer)  # a new adapter changes nothing
    as_ranks(2, _sharded, tiny_llama_path, tmp_path / "adapter", expected, True)
    ids, _ = _numbers(load_model(str(tmp_path / "adapter")), tokenizer)
    assert ids == expected[0] and not (tmp_path / "adapter" / "model.safetensors").exists()
