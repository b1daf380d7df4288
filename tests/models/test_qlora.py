"""QLoRA and gradient checkpointing: what is asked of the libraries, what is refused, and that numbers stay the same."""

import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from leftover import LoLConfig, LoLTrainer
from leftover.data.collate import Collator
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe import optional_packages as quantization
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.training.metrics import initial_logratio
from leftover.training.run import train_policy
from tests.conftest import evaluated, told_states
from tests.training.test_trainer import prepared_rows

NF4 = {"quantization": "nf4", "lora": {"r": 4, "alpha": 8}}
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def package(monkeypatch: Any) -> Callable[..., None]:
    """`package(devices)`: bitsandbytes as if it were installed with kernels for these; None: as if it were not."""

    def pretend(devices: set[str] | None) -> None:
        find = importlib.util.find_spec
        found = None if devices is None else SimpleNamespace()
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: found if name == "bitsandbytes" else find(name, *more)
        )
        if devices is not None:
            monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices=devices))

    return pretend


@pytest.fixture
def loaded(monkeypatch: Any) -> list[dict[str, Any]]:
    """The keywords of every `from_pretrained`; where they ask for 4-bit weights, the plain ones are loaded instead."""
    calls: list[dict[str, Any]] = []
    original = AutoModelForCausalLM.from_pretrained

    def spy(path: Any, **options: Any) -> Any:
        calls.append({"path": str(path), **options})
        return original(path, **{k: v for k, v in options.items() if k not in ("quantization_config", "device_map")})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    monkeypatch.setattr("leftover.runs.claim.check_quantization", lambda: None)
    return calls


# What is refused, before any row is read.


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"path": "x", "quantization": "nf4"}, "model.lora"),
        ({"config": {}, "tokenizer": "x", "quantization": "nf4", "lora": {}}, "give model.path"),
        ({"path": "x", "quantization": "int8", "lora": {}}, "Input should be 'nf4'"),
    ],
)
def test_a_recipe_that_cannot_be_quantised_is_refused(model: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe({"name": "x", "output_dir": "x", "data": {"path": "x"}, "model": model})


def test_without_the_package_the_extra_is_named(tmp_path: Path, tiny_recipe: Callable, package: Callable) -> None:
    package(None)
    with pytest.raises(UserError, match=r"nf4 needs the package bitsandbytes: pip install 'leftover\[qlora\]'"):
        run(make_recipe(tiny_recipe(tmp_path, model=NF4)))
    assert not (tmp_path / "run/table/rows").exists()


def test_without_a_gpu_only_a_package_with_kernels_for_the_cpu_will_do(
    monkeypatch: Any, package: Callable, caplog: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    package({"cuda"})
    with pytest.raises(UserError, match="needs a GPU"):
        quantization.check_quantization()
    package({"cuda", "cpu"})
    quantization.check_quantization()
    assert "slow" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    package({"cuda"})
    quantization.check_quantization()


@pytest.mark.parametrize("section", ["train", "reference", "policies"])
def test_an_optimizer_of_a_missing_package_is_refused_before_any_row_is_read(
    section: str, tmp_path: Path, tiny_recipe: Callable, package: Callable
) -> None:
    package(None)
    settings = {"optim": "paged_adamw_32bit"}
    changed = {
        "train": settings,
        "reference": {"train": settings},
        "policies": {"nll": {"objective": "nll", **settings}},
    }
    key = {"train": "train", "reference": "reference.train", "policies": "policies.nll"}[section]
    with pytest.raises(UserError, match=rf"{key}.optim: paged_adamw_32bit needs the package bitsandbytes"):
        run(make_recipe(tiny_recipe(tmp_path, **{section: changed[section]})))
    assert not (tmp_path / "run/table/rows").exists()
    with pytest.raises(UserError, match=r"^optim: paged_adamw_32bit needs"):
        LoLConfig(output_dir=str(tmp_path), optim="paged_adamw_32bit")


def test_every_optimizer_that_needs_the_package_is_known() -> None:
    from transformers import trainer_optimizer

    theirs = {str(getattr(name, "value", name)) for name in trainer_optimizer._BITSANDBYTES_OPTIMIZERS}
    assert theirs == quantization.BITSANDBYTES_OPTIMIZERS


# What is asked of the libraries.


@pytest.mark.parametrize(
    ("train", "dtype"), [({}, torch.bfloat16), ({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16)]
)
def test_the_base_is_loaded_in_4_bits_and_shares_the_compute_dtype_of_training(
    train: dict, dtype: torch.dtype, tmp_path: Path, tiny_recipe: Callable, loaded: list
) -> None:
    this = open_run(make_recipe(tiny_recipe(tmp_path, model=NF4, train=train)))
    this.models.base()
    (call,) = loaded
    config = call["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == dtype
    assert list(call["device_map"]) == [""], "the whole model on one device"
    assert call["dtype"] == torch.float32, "norms, embeddings and head"


def test_without_quantization_nothing_is_asked_for(tmp_path: Path, tiny_recipe: Callable, loaded: list) -> None:
    open_run(make_recipe(tiny_recipe(tmp_path))).models.base()
    assert not {"quantization_config", "device_map"} & loaded[0].keys()


def test_the_policy_continues_the_references_adapter_on_one_frozen_base(
    tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str, loaded: list, monkeypatch: Any
) -> None:
    """As the released QLoRA runs: no second adapter on top, no second model beside it, the base never written."""
    before = {file.name: file.read_bytes() for file in Path(tiny_llama_path).iterdir()}
    content = tiny_recipe(tmp_path, model=NF4, train={"learning_rate": 1e-2, "logging_steps": 1})
    content["reference"]["train"]["learning_rate"] = 3e-2
    recipe = make_recipe(content)
    run(recipe, until="prepare")
    assert all("quantization_config" in call and call["path"] == tiny_llama_path for call in loaded)
    loaded.clear()
    started: dict[str, torch.Tensor] = {}
    begin = LoLTrainer.train

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        started.update({n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad})
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(LoLTrainer, "train", spy)
    this = open_run(recipe)
    train_policy(this, "a_lol_seq", 0)
    assert len(loaded) == 1
    reference = {n: p for n, p in this.models.reference().named_parameters() if "lora_" in n}
    assert started.keys() == reference.keys()
    assert all(torch.equal(started[n], p) for n, p in reference.items())
    assert any(p.abs().max() > 0 for n, p in reference.items() if "lora_B" in n), "the reference has learnt"
    policy = tmp_path / "run/policies/a_lol_seq/seed-0"
    for folder in (tmp_path / "run/reference", policy):
        assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    assert json.loads((policy / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_llama_path
    assert before == {file.name: file.read_bytes() for file in Path(tiny_llama_path).iterdir()}


def test_quantised_weights_make_the_reference_and_its_columns_stale(
    tmp_path: Path, tiny_recipe: Callable, loaded: list, caplog: Any
) -> None:
    run(make_recipe(tiny_recipe(tmp_path, model={"lora": NF4["lora"]})), until="prepare")
    caplog.set_level(logging.INFO, "leftover")
    caplog.clear()
    run(make_recipe(tiny_recipe(tmp_path, model=NF4)), until="prepare")
    states = told_states(caplog)
    assert states["reference"] == states["table/reference"] == "stale" and states["table/tokens"] == "reused"
    assert "Reference model: made again, since something changed (quantization: new)" in caplog.messages


@pytest.mark.parametrize(("quantised", "refused"), [(True, False), (False, True)])
def test_the_check_at_step_0_knows_that_quantised_products_are_rounded(
    quantised: bool, refused: bool, tmp_path: Path, tiny_llama_path: str, tokenizer: Any
) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    rounded = [[value + 0.01 for value in row] for row in rows["reference_logprobs"]]
    rows = rows.remove_columns("reference_logprobs").add_column("reference_logprobs", rounded)
    trainer = trainer_of(tiny_llama_path, tokenizer, rows, tmp_path)
    batch = trainer.completion_batch(*scored(trainer, rows))
    trainer.model.is_quantized = quantised
    if refused:
        with pytest.raises(UserError, match=r"at step 0 .* 0\.01"):
            initial_logratio(batch, trainer.args, trainer.model)
    else:
        initial_logratio(batch, trainer.args, trainer.model)


def scored(trainer: LoLTrainer, rows: Any) -> tuple[torch.Tensor, dict]:
    from leftover.models.logprobs import completion_logprobs

    inputs = Collator(0)(list(rows))
    with torch.no_grad():
        return completion_logprobs(trainer.model, inputs), inputs


def trainer_of(path: str, tokenizer: Any, rows: Any, folder: Path, lora: bool = False, **settings: Any) -> LoLTrainer:
    from peft import LoraConfig

    args = LoLConfig(
        **({"output_dir": str(folder), "max_steps": 2, "save_strategy": "no", "disable_tqdm": True} | settings)
    )
    torch.manual_seed(0)  # of a new adapter
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    model = AutoModelForCausalLM.from_pretrained(path)
    return LoLTrainer(model, args, rows, processing_class=tokenizer, peft_config=config)


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_run_in_4_bits(checkpointing: bool, tmp_path: Path, tiny_recipe: Callable, tokenizer: Any) -> None:
    """With the real kernels, of the CPU where there is no GPU: they take widths in multiples of 64."""
    from leftover.models.load import build_model
    from leftover.publish.export import export_policy

    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "llama", "max_position_embeddings": 128, "tie_word_embeddings": True, **width}
    build_model(config, tokenizer, seed=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    train = {"gradient_checkpointing": checkpointing, "learning_rate": 1e-2, "logging_steps": 1}
    content = tiny_recipe(
        tmp_path, model=NF4 | {"path": str(tmp_path / "base")}, train=train | {"optim": "paged_adamw_32bit"}
    )
    content["reference"]["train"] |= {"gradient_checkpointing": checkpointing, "learning_rate": 3e-2}
    assert evaluated(content)["sampled"]["table"]["a_lol_seq"]["prompts"] > 0
    model = open_run(make_recipe(content)).models.reference()
    assert model.is_quantized and model.get_base_model().model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    metrics = (tmp_path / "run/policies/a_lol_seq/seed-0/metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[0])["logratio/initial_max"] < 0.1
    merged = export_policy(tmp_path / "run", merge=True)
    assert (merged / "model.safetensors").is_file()


# Gradient checkpointing.


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_checkpointing_saves_activations_and_changes_neither_loss_nor_gradients(
    architecture: str, lora: bool, tmp_path: Path, tiny_llama_path: str, tiny_gpt2_path: str, tokenizer: Any
) -> None:
    path = {"llama": tiny_llama_path, "gpt2": tiny_gpt2_path}[architecture]
    rows = prepared_rows(path, tokenizer)
    found = {}
    for checkpointing in (False, True):
        settings = {"gradient_checkpointing": checkpointing, "max_steps": 1, "max_initial_logratio": 100.0}
        trainer = trainer_of(path, tokenizer, rows, tmp_path, lora, max_grad_norm=0.0, **settings)
        found[checkpointing] = one_step(trainer)
    (loss, gradients, saved), (checked_loss, checked, checked_saved) = found[False], found[True]
    assert torch.equal(loss, checked_loss)
    assert gradients.keys() == checked.keys() and all(g.abs().max() > 0 for g in checked.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(checked[name], gradient, atol=1e-6, rtol=1e-5)
    assert all(("lora_" in name) == lora for name in gradients)
    assert checked_saved < 0.5 * saved


def one_step(trainer: LoLTrainer) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients and bytes that autograd saves for the backward pass, in one step of `train`."""
    saved: dict[int, int] = {}
    losses: list[torch.Tensor] = []
    gradients: dict[str, torch.Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    compute_loss = trainer.compute_loss

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:  # weights are there anyway
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def measured(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses.append(compute_loss(*args, **kwargs))
        return losses[0]

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.compute_loss = measured  # type: ignore[method-assign]
    trainer.add_callback(Gradients)
    trainer.train()
    (loss,) = losses
    return loss.detach(), gradients, sum(saved.values())


def test_checkpointing_is_in_no_key(tmp_path: Path, tiny_recipe: Callable, caplog: Any) -> None:
    content = tiny_recipe(tmp_path)
    run(make_recipe(content), until="train")
    caplog.set_level(logging.INFO, "leftover")
    content["train"] |= {"gradient_checkpointing": True}
    content["reference"]["train"] |= {"gradient_checkpointing": True}
    caplog.clear()
    run(make_recipe(content), until="train")
    states = told_states(caplog)
    assert states["policy a_lol_seq, seed 0"] == "reused" and "stale" not in states.values()


def test_a_run_with_checkpointing_is_the_run_without(tmp_path: Path, tiny_recipe: Callable) -> None:
    from safetensors.torch import load_file

    weights = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        settings = {"gradient_checkpointing": checkpointing}
        content = tiny_recipe(folder, model={"lora": NF4["lora"]})
        content["train"] |= settings
        content["reference"]["train"] |= settings
        run(make_recipe(content), until="train")
        weights.append(load_file(folder / "run/policies/a_lol_seq/seed-0/adapter_model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=1e-5)


# The paper's hyper-parameters.


def test_the_papers_hyper_parameters_reach_optimizer_schedule_and_clipping(
    tmp_path: Path, tiny_llama_path: str, tokenizer: Any, monkeypatch: Any
) -> None:
    """Learning rate 2e-4 held constant (the warm-up steps are ignored), epsilon 1e-6, gradients clipped at 0.3."""
    settings = {
        "learning_rate": 2e-4,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 300,
        "gradient_accumulation_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
    }
    rows = prepared_rows(tiny_llama_path, tokenizer)
    trainer = trainer_of(tiny_llama_path, tokenizer, rows, tmp_path, **settings)
    clipped = []
    clip = trainer.accelerator.clip_grad_norm_
    monkeypatch.setattr(
        trainer.accelerator, "clip_grad_norm_", lambda p, norm, *more: clipped.append(norm) or clip(p, norm, *more)
    )
    trainer.train()
    assert clipped == [0.3, 0.3]
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-6}
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry] == [2e-4, 2e-4]
