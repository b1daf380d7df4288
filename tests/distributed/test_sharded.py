"""Weights of which each process holds a part (FSDP2): all pass together, and what is saved is whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from leftover.models.generate import generate
from leftover.models.load import load_model, save_model, whole_weights
from leftover.models.reference import reference_pass
from leftover.monitoring import ranks
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from tests.distributed.fsdp_on_cpu import allow
from tests.distributed.test_run import recipe
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


def _whole_run(content: dict[str, Any], kept: dict[str, str]) -> None:
    from accelerate.state import AcceleratorState

    os.environ |= kept
    allow()
    run(make_recipe(content), until="evaluate")
    assert AcceleratorState().distributed_type.value == "FSDP"
    assert ranks.processes() == 2


def variables_of(configuration: str) -> dict[str, str]:
    """What `accelerate launch --config_file` tells its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", configuration, "--num_processes", "2", "x"])
    before = dict(os.environ)
    found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in found.items() if before.get(name) != value}


@pytest.mark.parametrize(
    ("lora", "checkpoints"),
    [(None, "FULL_STATE_DICT"), ({"r": 2}, "FULL_STATE_DICT"), (None, "SHARDED_STATE_DICT")],
    ids=["full", "adapter", "checkpoints in parts"],
)
def test_a_run_under_fsdp2_is_that_of_one_process(
    lora: dict | None, checkpoints: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    model = {"lora": lora}
    one, two = (recipe(tiny_recipe, tmp_path / n, steps, model=model) for n, steps in (("one", 2), ("two", 1)))
    run(make_recipe(one), until="evaluate")
    kept = variables_of("recipes/accelerate/fsdp2.yaml")
    as_ranks(2, _whole_run, two, kept | {"FSDP_STATE_DICT_TYPE": checkpoints})
    for folder in ("reference", "policies/a_lol_seq/seed-0"):
        name = "adapter_model.safetensors" if lora else "model.safetensors"
        weights = [load_file(tmp_path / of / "run" / folder / name) for of in ("one", "two")]
        assert weights[0].keys() == weights[1].keys(), "of tied weights one is stored"
        for key, values in weights[0].items():
            torch.testing.assert_close(weights[1][key], values, atol=1e-5, rtol=0)
    written = [(tmp_path / of / "run/evaluation/a_lol_seq-seed-0.jsonl").read_text() for of in ("one", "two")]
    assert [line.split('"logprob"')[0] for line in written[0].splitlines()] == [
        line.split('"logprob"')[0] for line in written[1].splitlines()
    ]
