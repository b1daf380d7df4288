"""Encoder-decoders through the whole method: prepared, trained, evaluated, written down, exported, generated from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from leftover import LoLConfig, LoLTrainer, PPOConfig, PPOTrainer, cli
from leftover.demo.grammar import score_answers
from leftover.errors import UserError
from leftover.models.reference import reference_pass
from leftover.pipeline import run
from leftover.publish.export import export_policy
from leftover.recipe.files import make_recipe
from leftover.store.table import Table
from tests.conftest import scored_rows
from tests.models.encoder_decoders import plainly, settings, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")


@pytest.fixture(scope="session")
def tiny_t5_path(tmp_path_factory: Any, tokenizer: Any) -> str:
    folder = tmp_path_factory.mktemp("tiny-t5")
    tiny("t5", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_importance_weights_are_one_at_step_0_and_the_loss_falls(tiny_t5_path: str, tmp_path: Path) -> None:
    args = LoLConfig(
        output_dir=str(tmp_path), objective="a_lol_seq", max_steps=6, per_device_train_batch_size=4,
        learning_rate=3e-3, logging_steps=1, report_to="none", eval_strategy="no",
    )  # fmt: skip
    trainer = LoLTrainer(tiny_t5_path, args, scored_rows(24), eval_dataset=scored_rows(6, seed=1))
    row = trainer.train_dataset[0]
    with torch.no_grad():
        expected = plainly(trainer.model.eval(), row)
    np.testing.assert_allclose(row["reference_logprobs"], expected, atol=1e-5)
    before = trainer.evaluate()["eval_nll"]
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "importance_weight/mean" in entry)
    assert first["importance_weight/min"] == pytest.approx(1, abs=1e-4)
    assert first["importance_weight/max"] == pytest.approx(1, abs=1e-4)
    assert first["logratio/initial_max"] < 1e-4
    assert trainer.evaluate()["eval_nll"] < before - 0.05


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_run_from_rows_to_an_exported_model_that_writes(
    kind: str, tiny_recipe: Any, tiny_t5_path: str, tmp_path: Path
) -> None:
    model = {"path": tiny_t5_path} if kind == "t5" else {"path": None, "config": settings("bart")}
    model |= {} if kind == "t5" else {"tokenizer": {"vocab_size": 600}}
    recipe = make_recipe(tiny_recipe(tmp_path, model=model, value={"candidates": ["ridge", "head"]}))
    results = run(recipe)
    assert results is not None and results["sampled"]["table"]["a_lol_seq"]["prompts"] > 0
    folder = tmp_path / "run"
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    exported = export_policy(folder)
    assert "AutoModelForSeq2SeqLM.from_pretrained" in (exported / "README.md").read_text("utf-8")
    policy, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(exported).eval(), AutoTokenizer.from_pretrained(exported)
    rows = [row for row in Table(folder / "table").open("tokens") if row["kept"]][:3]
    for row, found in zip(rows, reference_pass(policy, tokenizer, rows, features=False)[0], strict=True):
        np.testing.assert_allclose(found, plainly(policy, row).detach(), atol=1e-5)
    # The report's completions have the log-probabilities that the policy gives them.
    written = [json.loads(line) for line in next((folder / "evaluation").glob("a_lol_seq*.jsonl")).open()]
    assert all(np.isfinite(record["logprob"]) and record["logprob"] < 0 for record in written)
    out = tmp_path / "drawn.jsonl"
    options = ["--n", "2", "--max-prompts", "3", "--max-new-tokens", "12", "--unfinished", "keep"]
    cli.main(["generate", str(folder), "--output", str(out), *options])
    made = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert made and not any("<s>" in row["completion"][:3] or row["num_tokens"] > 12 for row in made)
    weights = folder / "policies/a_lol_seq/seed-0/model.safetensors"
    made_at = weights.stat().st_mtime_ns
    run(recipe)
    assert weights.stat().st_mtime_ns == made_at, "nothing is computed again"


def test_an_adapter_trains_and_is_merged(tiny_recipe: Any, tiny_t5_path: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, model={"path": tiny_t5_path, "lora": {"r": 4}})
    run(make_recipe(recipe), until="train")
    config = json.loads((tmp_path / "run/policies/a_lol_seq/seed-0/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert (export_policy(tmp_path / "run", merge=True) / "config.json").is_file(), "and scores rows as it did"


def test_ppo_trains_one(tiny_t5_path: str, tmp_path: Path) -> None:
    args = PPOConfig(
        output_dir=str(tmp_path), total_episodes=8, num_rollouts_per_step=8, max_completion_length=8, report_to="none",
        logging_steps=1,
    )  # fmt: skip
    trainer = PPOTrainer(tiny_t5_path, args, scored_rows(8), reward_funcs=score_answers)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-4), "the policy still is the reference"


def test_what_cannot_work_is_refused_before_rows_are_read(
    tiny_recipe: Any, tiny_t5_path: str, tiny_llama_path: str, tmp_path: Path
) -> None:
    t5, bart = {"path": tiny_t5_path}, {"path": None, "config": settings("bart"), "tokenizer": {"vocab_size": 600}}
    engine = {"engine": "vllm", "vllm": {"address": "http://127.0.0.1:1"}}
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"model": t5, "evaluate": engine}, ("evaluate.engine", "encoder-decoder", "transformers")),
        ({"model": bart, "data": {"max_prompt_tokens": 65}}, ("data.max_prompt_tokens = 65", "64 positions")),
        ({"model": bart, "evaluate": {"max_new_tokens": 65}}, ("evaluate.max_new_tokens = 65", "64 positions")),
        ({"model": t5, "reference": {"source": "path", "path": tiny_llama_path}}, ("reference.path", "no encoder-dec")),
    ]
    for number, (overrides, facts) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = tiny_recipe(folder, rows=["no row"], **overrides)
        if "reference" in overrides:
            recipe["reference"] = overrides["reference"]
        with pytest.raises(UserError) as refused:
            run(make_recipe(recipe))
        message = str(refused.value)
        assert not [fact for fact in facts if fact not in message] and "\n" not in message, message


def test_prompt_and_completion_may_each_fill_the_positions(tiny_recipe: Any, tmp_path: Path) -> None:
    from leftover.runs.claim import check_limits

    model = {"path": None, "config": settings("bart"), "tokenizer": {"vocab_size": 600}}
    data = {"max_prompt_tokens": 64, "max_completion_tokens": 64}
    recipe = make_recipe(tiny_recipe(tmp_path, model=model, data=data))
    check_limits(recipe, 64, two_texts=True)
    with pytest.raises(UserError, match="128 exceeds"):
        check_limits(recipe, 64)


def test_a_dry_run_counts_rows_and_says_that_costs_are_not_estimated(
    tiny_recipe: Any, tiny_t5_path: str, tmp_path: Path
) -> None:
    from leftover.commands.dry_run.estimate import estimate_run

    found = estimate_run(make_recipe(tiny_recipe(tmp_path, model={"path": tiny_t5_path})))
    assert found.shape is None and "encoder-decoder" in found.shape_from
    assert any("time, memory and disk are not estimated for an encoder-decoder" in note for note in found.notes)
    assert not isinstance(found.rows, str) and found.rows.lengths is not None
