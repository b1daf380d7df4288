"""Loading and saving a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations import deepspeed

from leftover.errors import UserError
from leftover.models.load import add_adapter, load_model, save_model
from leftover.models.reference import model_identity
from leftover.rewards import load_reward
from leftover.rewards.pretrained import untrained_classifier
from tests.rewards.classifier_models import roberta


@pytest.mark.parametrize("adapter", [False, True])
def test_saved_weights_can_be_read_by_whoever_can_read_the_config(
    adapter: bool, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    save_model(model, tokenizer, tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert any(name.endswith(".safetensors") for name in modes) and len(set(modes.values())) == 1


def test_a_folder_that_is_not_there_is_named():
    # The Hub's library refuses such a name with an error of its own.
    with pytest.raises(UserError, match=r"^\.models/nowhere: there is no such folder"):
        model_identity(".models/nowhere")


@pytest.mark.parametrize("kind", ["policy", "scorer", "new scorer"])
def test_after_a_training_under_zero_3_models_are_still_loaded_whole(
    kind: str, tmp_path: Path, tiny_llama_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would part them, for which it imports DeepSpeed."""

    class Zero3:
        def is_zero3(self) -> bool:
            raise AssertionError("transformers asks whether to part the model")

    current = Zero3()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    path = roberta(tmp_path / "scorer")
    deepspeed.set_hf_deepspeed_config(current)
    if kind == "policy":
        load_model(tiny_llama_path)
    elif kind == "scorer":
        assert load_reward({"type": "classifier", "model": path})(["p"], ["c"])
    else:
        untrained_classifier(path, None, None)
    assert deepspeed._hf_deepspeed_config_weak_ref() is current


def drop(path: Path, part: str) -> None:
    """Leave out the tensors whose names hold `part`."""
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if part not in name}, path, {"format": "pt"})


def test_weights_that_a_folder_lacks_are_never_random(tiny_llama_path: str, tmp_path: Path, caplog: Any) -> None:
    shutil.copytree(tiny_llama_path, tmp_path / "m")
    drop(tmp_path / "m/model.safetensors", "layers.0.mlp")
    with pytest.raises(UserError, match=r"lacks weights: model\.layers\.0\.mlp\.down_proj\.weight"):
        load_model(str(tmp_path / "m"))
    shutil.copytree(tiny_llama_path, tmp_path / "fewer")
    config = json.loads((tmp_path / "fewer/config.json").read_text())
    fewer = {"num_hidden_layers": 1} | ({"layer_types": config["layer_types"][:1]} if config.get("layer_types") else {})
    (tmp_path / "fewer/config.json").write_text(json.dumps(config | fewer))
    load_model(str(tmp_path / "fewer"))
    assert "has weights that this model does not use: model.layers.1." in caplog.text


@pytest.mark.parametrize("part", ["lora_A", "lora"])
def test_an_adapter_that_lacks_weights_is_refused(part: str, tiny_llama_path: str, tmp_path: Path) -> None:
    model = add_adapter(load_model(tiny_llama_path), LoraConfig(r=2, target_modules=["q_proj"]), seed=0)
    model.save_pretrained(tmp_path / "a")
    load_model(str(tmp_path / "a"))
    drop(tmp_path / "a/adapter_model.safetensors", part)
    with pytest.raises(UserError, match="lacks weights"):
        load_model(str(tmp_path / "a"))
