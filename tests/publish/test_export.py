"""An export is the policy that was trained, or there is none."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from leftover.errors import UserError
from leftover.models.load import load_model, merged
from leftover.publish import export
from leftover.publish.export import export_policy
from leftover.recipe.files import dump_recipe, make_recipe

TOKENS = torch.arange(5, 65).reshape(3, 20)


def logits(path: str | Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(path)).eval()(TOKENS).logits


def finished(tiny_recipe: Any, folder: Path, base: str, adapter: Any, tokenizer: Any) -> Path:
    """The folder of a run whose one policy is a base with an adapter that changes it much; returns the policy's."""
    recipe = make_recipe(tiny_recipe(folder, model={"path": base}))
    policy = folder / "run/policies/a_lol_seq/seed-0"
    policy.mkdir(parents=True)
    (folder / "run/recipe.yaml").write_text(dump_recipe(recipe))
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    return policy


@pytest.fixture
def base(request: Any, tiny_llama_path: str, tiny_gpt2_path: str) -> str:
    """Of either, embeddings and head are one tensor."""
    return {"llama": tiny_llama_path, "gpt2": tiny_gpt2_path}[request.param]


@pytest.mark.filterwarnings("ignore:.*(tie_word_embeddings|fan_in_fan_out)")
@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("llama", {"target_modules": ["q_proj"]}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("llama", {"target_modules": ["lm_head", "embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 40]}),
        ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
        ("gpt2", {"target_modules": ["wte"]}),
    ],
    indirect=["base"],
)
@pytest.mark.parametrize("merge", [True, False])
def test_an_export_computes_what_the_policy_does(
    base: str, adapter: dict[str, Any], merge: bool, tiny_recipe: Any, tokenizer: Any, tmp_path: Path
) -> None:
    policy = finished(tiny_recipe, tmp_path, base, LoraConfig(task_type="CAUSAL_LM", **adapter), tokenizer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        target = export_policy(tmp_path / "run", merge=merge)
    assert not [warning.message for warning in said if "tie_word_embeddings" in str(warning.message)]
    assert (logits(policy) - logits(base)).abs().max() > 0.01
    torch.testing.assert_close(logits(target), logits(policy), atol=1e-4, rtol=1e-4)
    assert (target / "adapter_config.json").is_file() is not merge


@pytest.mark.parametrize("merge", [True, False])
def test_an_export_that_is_another_model_is_removed(
    merge: bool, tiny_llama_path: str, tiny_recipe: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    finished(tiny_recipe, tmp_path, tiny_llama_path, adapter, tokenizer)
    save = export.save_model

    def spoils(model: Any, tokenizer: Any, folder: Path) -> None:
        next(p for name, p in model.named_parameters() if "v_proj" in name or "lora_B" in name).data += 0.1
        save(model, tokenizer, folder)

    monkeypatch.setattr(export, "save_model", spoils)
    with pytest.raises(UserError, match="log-probabilities"):
        export_policy(tmp_path / "run", merge=merge)
    assert not (tmp_path / "run/export").exists()
    assert not (tmp_path / "run/writer.lock").exists(), "the run is given back"


def test_an_adapter_of_virtual_tokens_is_exported_as_it_is_and_not_merged(
    tiny_llama_path: str, tiny_recipe: Any, tokenizer: Any, tmp_path: Path
) -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    policy = finished(tiny_recipe, tmp_path, tiny_llama_path, adapter, tokenizer)
    with pytest.raises(UserError, match="without --merge"):
        export_policy(tmp_path / "run", merge=True)
    assert isinstance(load_model(str(export_policy(tmp_path / "run"))), PeftModel)
    with pytest.raises(UserError, match="PROMPT_TUNING"):
        merged(load_model(str(policy)))
