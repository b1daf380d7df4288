"""Loading and saving a model."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.integrations import deepspeed

from leftover.errors import UserError
from leftover.models.load import load_model, save_model
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
