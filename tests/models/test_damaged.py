"""Damaged and odd models end in one line that names them, whatever the library raises."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from leftover.commands.dry_run.estimate import estimate_run
from leftover.commands.dry_run.shape import find_config
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError, not_readable
from leftover.models.load import load_model
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import ModelSection
from leftover.runs.claim import model_positions

DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
GONE = object()


def damage(folder: Path, name: str, content: Any) -> None:
    """Replace a file (a text), or some of its keys (a dictionary)."""
    if isinstance(content, dict):
        found = json.loads((folder / name).read_text()) | content
        content = json.dumps({key: value for key, value in found.items() if value is not GONE})
    (folder / name).write_text(content)


@pytest.fixture
def model(tiny_llama_path: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_path, tmp_path / "m"))


@pytest.fixture(scope="module")
def tiny_adapter(tiny_llama_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(folder)
    damage(folder, "adapter_config.json", {"base_model_name_or_path": tiny_llama_path})
    return folder


CONFIGS = {
    "null": "null",
    "a number": "3",
    "too deep": DEEP,
    "a type that is a list": {"model_type": []},
    "a size that is a text": {"hidden_size": "abc"},
}


@pytest.mark.parametrize("read", [model_positions, find_config])
@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config(content: Any, read: Callable[[ModelSection], Any], model: Path) -> None:
    damage(model, "config.json", content)
    with pytest.raises(UserError, match=rf"'{model}' \(key model\.path\)") as refused:
        read(ModelSection(path=str(model)))
    assert len(str(refused.value).splitlines()) == 1


WEIGHTS = {
    "an unknown activation": ("config.json", {"hidden_act": "nope"}),
    "an unknown dtype": ("config.json", {"dtype": "nope"}),
    "no hidden size": ("config.json", {"hidden_size": 0}),
    "a negative size": ("config.json", {"hidden_size": -4}),
    "a size of another model": ("config.json", {"hidden_size": 10**12}),
    "a list of generation settings": ("generation_config.json", "[]"),
    "an index that is a list": ("model.safetensors.index.json", "[]"),
    "an index of nothing": ("model.safetensors.index.json", "{}"),
}


@pytest.mark.parametrize(("name", "content"), WEIGHTS.values(), ids=WEIGHTS)
def test_a_model_that_cannot_be_made(name: str, content: Any, model: Path) -> None:
    if "index" in name:
        (model / "model.safetensors").unlink()
    damage(model, name, content)
    with pytest.raises(UserError, match=rf"^no language model at '{model}': .+"):
        load_model(str(model))


def test_a_tensor_of_another_shape(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(3)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"^no language model at '{model}': .+"):
        load_model(str(model))


SIZES = {"none": 0, "negative": -4, "beyond any machine": 10**12, "that leave no heads": {"num_attention_heads": 0}}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_dry_run_of_odd_sizes(size: Any, model: Path, tmp_path: Path, tiny_recipe: Callable) -> None:
    damage(model, "config.json", size if isinstance(size, dict) else {"hidden_size": size})
    content = tiny_recipe(tmp_path, model={"path": str(model)}, reference={"source": "as_is", "train": {}})
    with pytest.raises(UserError, match=r"model\.path|--device"):
        estimate_run(make_recipe(content), with_memory=False, device="here")


TOKENIZERS = {
    "a list": ("tokenizer.json", "[]"),
    "empty": ("tokenizer.json", "{}"),
    "too deep": ("tokenizer.json", DEEP),
    "of an unknown kind": ("tokenizer.json", {"model": {"type": "NOPE"}}),
    "with a list of settings": ("tokenizer_config.json", "[]"),
    "whose end is a number": ("tokenizer_config.json", {"eos_token": 3}),
}


@pytest.mark.parametrize(("name", "content"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer(name: str, content: Any, model: Path) -> None:
    damage(model, name, content)
    with pytest.raises(UserError, match=rf"^no tokenizer at '{model}' \(key model\.tokenizer or model\.path\): .+"):
        load_tokenizer(str(model))


ADAPTERS = {
    "without a base": {"base_model_name_or_path": GONE},
    "whose base is no name": {"base_model_name_or_path": 3},
    "of an unknown kind": {"peft_type": "NOPE"},
    "of a rank that is a text": {"r": "x"},
    "of another rank": {"r": 4},
    "that is a list": "[]",
}


@pytest.mark.parametrize("content", ADAPTERS.values(), ids=ADAPTERS)
def test_a_damaged_adapter(content: Any, tiny_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "a"))
    damage(folder, "adapter_config.json", content)
    with pytest.raises(UserError, match=str(folder)):
        load_model(str(folder))


def test_an_adapter_that_is_its_own_base(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "a"))
    damage(folder, "adapter_config.json", {"base_model_name_or_path": str(folder)})
    with pytest.raises(UserError, match="has to name the whole model that the adapter was trained on"):
        load_model(str(folder))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), torch.OutOfMemoryError()])
def test_what_says_nothing_of_the_model_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, not_readable("a model"):
        raise error
    assert raised.value is error
