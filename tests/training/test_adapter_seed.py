"""An adapter's initial weights follow the seed, whatever was drawn before; a resumed run ends in the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from leftover import LoLConfig, LoLTrainer, PPOConfig, PPOTrainer
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from tests.conftest import scored_rows

ADAPTER = "adapter_model.safetensors"


def trainer(path: str, folder: Path, *, seed: int = 7, adapter: bool = True, **settings: Any) -> LoLTrainer:
    args = LoLConfig(
        output_dir=str(folder), objective="nll", seed=seed, max_completion_length=64, per_device_train_batch_size=4,
        learning_rate=1e-2, disable_tqdm=True, **({"max_steps": 4, "save_strategy": "no"} | settings),
    )  # fmt: skip
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    return LoLTrainer(path, args, scored_rows(16), peft_config=config)


def trained(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_the_initial_weights_of_an_adapter_follow_the_seed(tiny_llama_path: str, tmp_path: Path) -> None:
    one = trained(trainer(tiny_llama_path, tmp_path).model)
    torch.rand(17)  # whatever the user drew before
    assert torch.equal(one, trained(trainer(tiny_llama_path, tmp_path).model))
    assert not torch.equal(one, trained(trainer(tiny_llama_path, tmp_path, seed=8).model))


def test_the_initial_weights_of_an_online_adapter_follow_the_seed(tiny_llama_path: str, tmp_path: Path) -> None:
    def start() -> torch.Tensor:
        torch.rand(17)
        args = PPOConfig(output_dir=str(tmp_path), seed=3, max_completion_length=8, use_cpu=True)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        made = PPOTrainer(
            tiny_llama_path, args, scored_rows(4), reward_funcs=lambda prompts, completions: [1.0] * len(prompts),
            peft_config=config,
        )  # fmt: skip
        return trained(made.model)

    assert torch.equal(start(), start())


@pytest.mark.parametrize("source", ["fit", "as_is"])
def test_two_runs_of_one_recipe_with_an_adapter_end_in_the_same_weights(
    source: str, tiny_recipe: Any, tmp_path: Path
) -> None:
    ended = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        recipe = tiny_recipe(
            tmp_path / name, policies={"nll": {"objective": "nll"}}, reward={"functions": [{"type": "column"}]}
        )
        recipe["model"]["lora"] = {"r": 4, "alpha": 8}
        recipe["reference"] |= {"source": source}
        torch.rand(len(name) + len(ended))
        run(make_recipe(recipe), until="train")
        ended.append(load_file(tmp_path / name / "run/policies/nll/seed-0" / ADAPTER))
    assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[1])


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
def test_a_resumed_training_ends_in_the_weights_of_an_undisturbed_one(
    adapter: bool, tiny_llama_path: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"adapter": adapter, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
    undisturbed = trainer(tiny_llama_path, tmp_path / "whole", **settings)
    undisturbed.train()
    trainer(tiny_llama_path, tmp_path / "killed", **settings).train()
    resumed = trainer(tiny_llama_path, tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
    assert torch.equal(trained(resumed.model), trained(undisturbed.model))
    start = trained(trainer(tiny_llama_path, tmp_path, adapter=adapter).model)
    assert not torch.equal(start, trained(resumed.model))
