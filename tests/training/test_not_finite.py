"""A training stops at the first number that is not finite, names step, rows and remedy, and keeps what was whole."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from leftover import LoLConfig, LoLTrainer, PPOConfig, PPOTrainer
from leftover.cli import main
from leftover.errors import UserError
from leftover.models.generate import generate
from leftover.models.reference import reference_pass
from leftover.objectives import OBJECTIVES, Objective
from leftover.store.checkpoints import last_whole_checkpoint
from tests.conftest import scored_rows
from tests.training.test_trainer import prepared_rows

LENGTH = "reward.functions=[{type: text, function: length}]"
DIVERGING = {"learning_rate": 1e30, "max_grad_norm": 0.0}


def settings(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
    } | fields


@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_loss_that_is_nan_is_not_hidden_in_a_mean(tiny_llama_path, tokenizer, tmp_path, monkeypatch, accumulation):
    # All losses are those of NLL, but for one micro-batch in the middle of the third step.
    calls = [0]
    nll = OBJECTIVES["nll"]

    def loss(batch: Any, own: Any) -> Any:
        calls[0] += 1
        return nll.loss(batch, own) * (math.nan if calls[0] == 2 * accumulation + (accumulation + 1) // 2 else 1.0)

    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss))
    args = LoLConfig(
        **settings(tmp_path, objective="mine", gradient_accumulation_steps=accumulation, logging_nan_inf_filter=True)
    )
    trainer = LoLTrainer(tiny_llama_path, args, prepared_rows(tiny_llama_path, tokenizer))
    bad = trainer.draw_order.batch(2 * accumulation + (accumulation + 1) // 2 - 1)
    with pytest.raises(UserError) as stopped:
        trainer.train()
    said = str(stopped.value)
    assert "step 3 of 8: the loss is nan" in said
    assert all(f"train_dataset[{row}]" in said for row in bad) and said.count("train_dataset[") == len(set(bad))
    assert "learning_rate" in said and "checkpoint-2" in said
    assert Path(last_whole_checkpoint(tmp_path)).name == "checkpoint-2"


@pytest.mark.parametrize("objective", ["a_lol_seq", "dro"])
def test_weights_of_the_last_step_are_looked_at_too(tiny_llama_path, tokenizer, tmp_path, objective):
    # At an infinite rate loss and gradient of the only step are finite, and the weights behind it are not.
    rows = prepared_rows(tiny_llama_path, tokenizer)
    rows = rows.add_column("prompt_features", [[1.0, 2.0]] * len(rows))
    args = LoLConfig(**settings(tmp_path, objective=objective, max_steps=1, learning_rate=1e38, save_strategy="no"))
    trainer = LoLTrainer(tiny_llama_path, args, rows)
    trainer.create_optimizer()
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 1e30
    with pytest.raises(UserError, match="weights are no finite numbers"):
        trainer.train()


def test_an_infinite_gradient_stops_before_the_optimizer_moves(tiny_llama_path, tokenizer, tmp_path, monkeypatch):
    def loss(batch: Any, own: Any) -> Any:  # finite, with a gradient of 1e30 a token, whose squares are infinite
        total = batch.logprobs.sum(-1) * 1e30
        return total - total.detach()

    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss))
    trainer = LoLTrainer(
        tiny_llama_path, LoLConfig(**settings(tmp_path, objective="mine")), prepared_rows(tiny_llama_path, tokenizer)
    )
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=r"step 1 of 8: the norm of the gradient is inf on train_dataset\["):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


def test_ppo_names_its_prompts(tiny_llama_path, tokenizer, tmp_path):
    fields = {"save_strategy": "no", "num_mini_batches": 1, "max_completion_length": 4} | DIVERGING
    trainer = PPOTrainer(
        tiny_llama_path,
        PPOConfig(**settings(tmp_path, **fields)),
        scored_rows(6),
        reward_funcs=lambda prompts, completions: [float(len(c)) for c in completions],
        processing_class=tokenizer,
    )
    with pytest.raises(UserError, match=r"step 2 of 8: .* on train_dataset\[\d+\]") as stopped:
        trainer.train()
    assert "max_grad_norm" in str(stopped.value)


@pytest.mark.parametrize(
    ("command", "overrides", "said"),
    [
        (["prepare", "--only", "reference"], ["reference.train=%s"], "reference: "),
        (["train"], ["train=%s", "reward.functions=[{type: column}]"], "a_lol_seq-seed-0: "),
        (["run"], ["train=%s"], "a_lol_seq-seed-0: "),
        (["train"], ["train=%s", "policies={mine: {objective: ppo, num_mini_batches: 1}}", LENGTH], "mine-seed-0: "),
    ],
)
def test_a_stage_that_diverged_is_never_done(tmp_path, tiny_recipe, capsys, command, overrides, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path, scored_rows(80), data={"validation_size": 0.2})))
    fields = {"max_steps": 8, "per_device_train_batch_size": 4} | DIVERGING
    given = [part for one in overrides for part in ("--set", one % json.dumps(fields) if "%s" in one else one)]
    with pytest.raises(SystemExit) as exit_status:
        main([command[0], str(path), *command[1:], *given])
    assert exit_status.value.code == 2
    found = capsys.readouterr().err
    assert said + "training stopped at step" in found and "rows.jsonl:" in found and "max_grad_norm" in found
    entries = json.loads((tmp_path / "run/manifest.json").read_text())
    assert not any(e["complete"] for name, e in entries.items() if name.startswith(("policy", "reference"))) or (
        command[0] != "prepare" and entries["reference"]["complete"]
    )
    assert not list(tmp_path.glob("run/policies/*/seed-0/model.safetensors"))
    assert not (tmp_path / "run/reference/model.safetensors").exists() or command[0] != "prepare"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(tiny_llama_path, tokenizer, value):
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = value
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 2], "where": "rows.jsonl:7"}]
    with pytest.raises(UserError, match=r"not finite numbers on 1 of 1 rows, the first rows.jsonl:7"):
        reference_pass(model, tokenizer, rows)
    for sample in (True, False):
        with pytest.raises(UserError, match="no probabilities"):
            generate(model, tokenizer, [[3, 4]], max_new_tokens=2, sample=sample)


def test_a_run_that_overflows_without_diverging_writes_json(tmp_path, tiny_recipe):
    from leftover import pipeline
    from leftover.recipe.files import make_recipe

    # At a rate of 10 the weights stay finite, and perplexities, exp of thousands, do not.
    recipe = tiny_recipe(tmp_path, train={"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 10.0})
    results = pipeline.run(make_recipe(recipe))
    assert results is not None
    refuse: Any = pytest.fail
    for path in (tmp_path / "run").rglob("*.json*"):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)
    row = results["sampled"]["table"]["a_lol_seq"]
    assert row["perplexity_of_test_completions"] is None
    assert row["not_finite"]["perplexity_of_test_completions"] in ("nan", "inf")
    text = (tmp_path / "run/report.md").read_text()
    assert not {"inf", "nan", "None"} & set(text.replace("|", " ").split())
    log = map(json.loads, (tmp_path / "run/policies/a_lol_seq/seed-0/metrics.jsonl").read_text().splitlines())
    overflown = [line for line in log if "eval_perplexity" in line]
    assert overflown[-1]["eval_perplexity"] is None and overflown[-1]["not_finite"]["eval_perplexity"] == "inf"


def test_weights_of_a_checkpoint_are_finite_or_it_is_skipped(tiny_llama_path, tokenizer, tmp_path):
    from safetensors.torch import save_file

    args = LoLConfig(**settings(tmp_path, objective="nll", max_steps=2, save_total_limit=2))
    LoLTrainer(tiny_llama_path, args, prepared_rows(tiny_llama_path, tokenizer)).train()
    path = tmp_path / "checkpoint-2/model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    assert Path(last_whole_checkpoint(tmp_path)).name == "checkpoint-1"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_may_be_left_out(
    tiny_llama_path, tokenizer, tmp_path, monkeypatch, caplog, accumulation
):
    """As if the step had not been: the optimizer has not moved, and the log has none of its numbers."""
    calls, seen = [0], []
    nll = OBJECTIVES["nll"]

    def loss(batch: Any, own: Any) -> Any:
        calls[0] += 1
        return nll.loss(batch, own) * (math.nan if calls[0] == 2 * accumulation else 1.0)

    class Watched(LoLTrainer):
        def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
            norm = super()._get_grad_norm(*args, **kwargs)
            seen.append(self.model.get_input_embeddings().weight.detach().clone())
            return norm

    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss))
    fields = settings(tmp_path, objective="mine", gradient_accumulation_steps=accumulation, on_nonfinite="skip")
    args = LoLConfig(**fields, logging_steps=1, weight_decay=0.1, learning_rate=1e-2)
    trainer = Watched(tiny_llama_path, args, prepared_rows(tiny_llama_path, tokenizer))
    trainer.train()
    assert trainer.state.global_step == 8 and trainer.skipped_steps == 1
    assert "step 2 is left out: the loss is nan on " in caplog.text
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(seen)]
    assert moved == [True, False, True, True, True, True, True]
    assert all(math.isfinite(value) for line in trainer.state.log_history for value in line.values())


def test_steps_left_out_are_counted_on_after_a_continuation(tiny_llama_path, tokenizer, tmp_path, monkeypatch):
    calls = [0]
    nll = OBJECTIVES["nll"]

    def loss(batch: Any, own: Any) -> Any:
        calls[0] += 1
        return nll.loss(batch, own) * (math.nan if calls[0] == 2 else 1.0)

    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss))
    args = LoLConfig(**settings(tmp_path, objective="mine", on_nonfinite="skip", save_total_limit=None))
    rows = prepared_rows(tiny_llama_path, tokenizer)
    LoLTrainer(tiny_llama_path, args, rows).train()
    on = LoLTrainer(tiny_llama_path, args, rows)
    on.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert on.skipped_steps == 1 and calls[0] == 12


def test_too_many_steps_left_out_end_the_training(tiny_llama_path, tokenizer, tmp_path, monkeypatch):
    nll = OBJECTIVES["nll"]
    monkeypatch.setitem(OBJECTIVES, "mine", Objective(lambda batch, own: nll.loss(batch, own) * math.nan))
    args = LoLConfig(**settings(tmp_path, objective="mine", on_nonfinite="skip") | {"max_steps": 30})
    trainer = LoLTrainer(tiny_llama_path, args, prepared_rows(tiny_llama_path, tokenizer))
    with pytest.raises(UserError, match=r"11 steps had to be left out, the last because the loss is nan on "):
        trainer.train()
