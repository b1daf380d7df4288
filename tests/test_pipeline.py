"""Whole runs: every kind of score, what is reused and what is not, adapters, export, the report."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leftover.prepare.rows
from leftover import pipeline
from leftover.data.tokenizer import train_tokenizer
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.prepare.checks import value_targets
from leftover.recipe.files import load_recipe, make_recipe
from leftover.runs.claim import open_run
from tests.conftest import evaluated, scored_rows, told_states


def recorded(**more: Any) -> dict[str, Any]:
    return {"reward": {"functions": [{"type": "column"}], **more}, "value": {"targets": "recorded", "folds": 3}}


def test_a_run_writes_model_results_and_report(tmp_path: Path, tiny_recipe: Callable) -> None:
    policies = {"a_lol_seq": {"objective": "a_lol_seq"}, "top": {"objective": "nll", "rows": "top"}}
    results = run(make_recipe(tiny_recipe(tmp_path, policies=policies, seeds=[0, 1])))
    folder = tmp_path / "run"
    table = results["sampled"]["table"]
    assert list(table) == ["data", "reference", "a_lol_seq", "top"]
    assert "difference_from_data" in table["top"] and "reward" in table["data"]
    low, mean, high = (table["a_lol_seq"]["reward"][k] for k in ("low", "mean", "high"))
    assert low <= mean <= high and len(table["a_lol_seq"]["reward_by_seed"]) == 2
    assert table["reference"]["kl"]["mean"] == pytest.approx(0, abs=1e-3)
    assert table["reference"]["win_rate"] == 0.5
    assert json.loads((folder / "results.json").read_text())["main"] == "a_lol_seq"
    report = (folder / "report.md").read_text()
    for heading in ("## Data", "## The leftover", "## Results, sampled", "## Learning curves", "side by side"):
        assert heading in report
    assert (folder / "learning_curves.png").stat().st_size > 1000
    lines = [json.loads(x) for x in (folder / "policies/top/seed-1/metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward/mean" in line for line in lines)
    r2 = json.loads((folder / "prepare.json").read_text())["value"]["r2"]
    assert all(line["value/r2"] == r2 for line in lines if "loss" in line)


def test_a_second_run_reuses_everything_and_a_changed_learning_rate_only_retrains(
    tmp_path: Path, tiny_run: Callable, caplog: Any
) -> None:
    """Defect 5: caches keyed by folder alone. Here every change recomputes what depends on it, and no more."""
    content = tiny_run(tmp_path)
    caplog.set_level(logging.INFO, "leftover")
    run(make_recipe(content), until="evaluate")
    assert set(told_states(caplog).values()) == {"reused"}
    caplog.clear()
    content["train"] = content["train"] | {"learning_rate": 5e-4}
    run(make_recipe(content), until="evaluate")
    said = told_states(caplog)
    assert said.pop("policy a_lol_seq, seed 0") == said.pop("evaluation of a_lol_seq-seed-0") == "stale"
    assert set(said.values()) == {"reused"}, said
    changed = "Policy a_lol_seq, seed 0: made again, since something changed (settings.learning_rate: 0.001 -> 0.0005)"
    again = "Evaluation of a_lol_seq, seed 0: made again, since something changed (model)"
    assert changed in caplog.messages and again in caplog.messages
    caplog.clear()
    content["reward"] = {"functions": [{"type": "text", "function": "length"}]}
    run(make_recipe(content), until="evaluate")
    said = told_states(caplog)
    for stale in ("table/reward", "table/value", "policy a_lol_seq, seed 0"):
        assert said[stale] == "stale", (stale, said)
    for kept in ("table/rows", "table/split", "table/tokens", "table/reference", "reference"):
        assert said[kept] == "reused", (kept, said)


def test_changed_rows_are_never_served_stale(tmp_path: Path, tiny_recipe: Callable, caplog: Any) -> None:
    run(make_recipe(tiny_recipe(tmp_path)), until="prepare")
    caplog.set_level(logging.INFO, "leftover")
    caplog.clear()
    run(make_recipe(tiny_recipe(tmp_path, rows=scored_rows(60, seed=3))), until="prepare")
    assert len(told_states(caplog)) == 8
    assert set(told_states(caplog).values()) == {"stale"}


def test_recorded_scores_are_judged_by_the_log_ratio_of_held_out_rows(tmp_path: Path, tiny_recipe: Callable) -> None:
    rows = [
        row | {"completion": completion, "reward": reward}
        for row in scored_rows(60)
        for completion, reward in ((row["completion"], row["reward"]), (" No.", -1.0))
    ]
    results = run(make_recipe(tiny_recipe(tmp_path, rows=rows, **recorded())))
    row = results["sampled"]["table"]["a_lol_seq"]
    assert not any(name.startswith("logratio") for name in results["sampled"]["table"]["reference"])
    assert not results["can_score_new_completions"] and "reward" not in row
    for name, lowest in (("logratio/rank_correlation", -1), ("logratio/pair_accuracy", 0)):
        assert lowest <= row[name]["low"] <= row[name]["mean"] <= row[name]["high"] <= 1
    assert "cannot say whether they are better" in (tmp_path / "run/report.md").read_text()


def test_recorded_scores_train_and_a_stand_in_fitted_on_them_scores_what_is_generated(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    stand_in = {"type": "linear", "fit": "rows"}
    reward = {
        "functions": [{"type": "column", "new_completions": stand_in}],
        "transform": {"scale": 2.0, "offset": 1.0},
    }
    results = evaluated(tiny_recipe(tmp_path, reward=reward))
    this = open_run(load_recipe(tmp_path / "run/recipe.yaml"))
    table = this.table.open("rows", "reward", "value")
    assert np.asarray(table["reward"]) == pytest.approx(2 * np.asarray(table["recorded_reward"]) + 1)
    # the value is of the measure that the rows' rewards are of
    assert value_targets(this.recipe, this.reward) == "recorded"
    records = [json.loads(x) for x in (tmp_path / "run/evaluation/reference.jsonl").read_text().splitlines()]
    assert [r["reward"] for r in records] == pytest.approx([2 * r["reward/column"] + 1 for r in records])
    assert results["sampled"]["table"]["a_lol_seq"]["reward"]["mean"] is not None
    assert "reward column" in json.loads((tmp_path / "run/manifest.json").read_text())


def test_texts_that_run_together_and_a_run_in_the_place_of_a_model_are_told(
    tmp_path: Path, tiny_recipe: Callable, caplog: Any
) -> None:
    rows = [row | {"completion": row["completion"].strip()} for row in scored_rows(60)]
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        pipeline.prepare(open_run(make_recipe(tiny_recipe(tmp_path, rows=rows))), "tokens")
    assert "meet without a space" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pipeline.prepare(open_run(make_recipe(tiny_recipe(tmp_path))), "tokens")
    assert "meet without a space" not in caplog.text
    with pytest.raises(UserError, match=f"{folder}/reference"):
        open_run(make_recipe(tiny_recipe(tmp_path, model={"path": str(folder)}, output_dir=str(tmp_path / "other"))))


def test_test_sets_are_reported_apart_and_what_was_left_out_by_its_reason(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    recipe = tiny_recipe(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    paths = [tmp_path / "helpful.jsonl", tmp_path / "harmless.jsonl"]
    for path, part in zip(paths, (lines[:30], lines[30:]), strict=True):
        path.write_text("\n".join(part))
    recipe["data"] |= {"path": [str(path) for path in paths], "part": [0.0, 0.9], "test_size": 0.3}
    results = run(make_recipe(recipe))
    by_source = results["sampled"]["by_source"]["a_lol_seq"]
    assert set(by_source) == {"helpful", "harmless"}
    assert sum(of["prompts"] for of in by_source.values()) == results["sampled"]["table"]["a_lol_seq"]["prompts"]
    report = (tmp_path / "run/report.md").read_text()
    assert "By source of the test prompts" in report and "Sources: helpful" in report
    assert f"{results['prepare']['rows']['other_parts']} rows belong to families outside data.part" in report


def test_binary_scores_work(tmp_path: Path, tiny_recipe: Callable) -> None:
    for thumbs, until in (([1, 0], "prepare"), ([True, False], "report")):
        rows = [row | {"reward": thumbs[i % 2]} for i, row in enumerate(scored_rows(60))]
        run(make_recipe(tiny_recipe(tmp_path, rows=rows, **recorded())), until=until)
        share = json.loads((tmp_path / "run/prepare.json").read_text())["leftover"]["share"]
        assert 0.3 < share < 0.7


def test_rows_without_a_score_train_the_reference_only(tmp_path: Path, tiny_recipe: Callable) -> None:
    scored = scored_rows(60)
    for row in scored[::3]:
        del row["reward"]
    selection = {"max_selection_prompts": 60, "max_prompts": 8, "max_new_tokens": 8}
    run(make_recipe(tiny_recipe(tmp_path, rows=scored, evaluate=selection, **recorded())), until="train")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    facts = json.loads((tmp_path / "run/prepare.json").read_text())
    assert facts["rows"]["without_reward"] == 20
    assert manifest["reference"]["selected_rows"] == facts["split"]["train"]
    assert facts["leftover"]["training_rows"] < facts["split"]["train"]


def test_gpt2_runs_beside_llama(tmp_path: Path, tiny_recipe: Callable, tiny_gpt2_path: str) -> None:
    results = evaluated(tiny_recipe(tmp_path, model={"path": tiny_gpt2_path}))
    assert results["sampled"]["table"]["a_lol_seq"]["prompts"] > 0


def test_lora_policy_starts_as_the_references_adapter_and_exports_merged(
    tmp_path: Path, tiny_recipe: Callable, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leftover.cli import main
    from leftover.models.load import load_model

    lora = {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    content = tiny_recipe(tmp_path, model=lora, train={"learning_rate": 1e-2, "logging_steps": 1})
    run(make_recipe(content), until="train")
    folder = tmp_path / "run"
    policy = folder / "policies/a_lol_seq/seed-0"
    for saved in (folder / "reference", policy):
        assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()
    first = json.loads((policy / "metrics.jsonl").read_text().splitlines()[0])
    assert first["logratio/initial_max"] < 1e-4
    main(["export", str(folder), "--merge", "--output", str(tmp_path / "plain")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    adapted = load_model(str(policy)).eval()
    ids = torch.tensor([[1, 5, 9, 30]])
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=0)
    generation = json.loads((tmp_path / "plain/generation_config.json").read_text())
    assert generation["eos_token_id"] == AutoTokenizer.from_pretrained(tmp_path / "plain").eos_token_id


def test_reference_by_path_and_as_is(tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str, caplog: Any) -> None:
    given = tiny_recipe(tmp_path, name="given", reference={"source": "path", "path": tiny_llama_path, "train": {}})
    run(make_recipe(given), until="prepare")
    assert not (tmp_path / "run/reference").exists()
    (tmp_path / "as_is").mkdir()
    run(make_recipe(tiny_recipe(tmp_path / "as_is", reference={"source": "as_is", "train": {}})), until="prepare")
    assert "the rows are far from the model as it is" in caplog.text


def test_checkpoints_are_chosen_on_prompts_that_fitted_no_value_and_are_not_the_test(
    tmp_path: Path, tiny_run: Callable
) -> None:
    """Defect 4: the released code chooses on the prompts that trained the value head."""
    from leftover.prepare.readers import selection_rows
    from leftover.prepare.readers import test_rows as rows_of_test

    recipe = make_recipe(tiny_run(tmp_path))
    this = open_run(recipe)
    table = this.table.open("split")
    splits, groups = np.array(table["split"][:]), np.array(table["group"][:])
    selection = set(selection_rows(recipe, this.table)["group"])
    test = {row["group"] for row in rows_of_test(recipe, this.table)}
    assert selection <= set(groups[splits == "validation"]) and test <= set(groups[splits == "test"])
    assert not selection & set(groups[splits == "train"]) and not selection & test


def test_the_demo_recipe_is_another_run_for_another_seed(tmp_path: Path) -> None:
    from leftover.demo.run import demo_recipe

    for seed in (0, 1):
        demo_recipe(tmp_path / str(seed), seed)
    rows = [(tmp_path / str(seed) / "inputs/rows.jsonl").read_text() for seed in (0, 1)]
    assert rows[0] != rows[1] and len(rows[0].splitlines()) == len(rows[1].splitlines())


def test_an_export_never_mixes_with_an_earlier_one(tmp_path: Path, tiny_recipe: Callable) -> None:
    from leftover.publish.export import export_policy

    run(make_recipe(tiny_recipe(tmp_path, model={"lora": {"r": 2}})), until="train")
    adapter = export_policy(tmp_path / "run")
    assert (adapter / "adapter_config.json").is_file()
    merged = export_policy(tmp_path / "run", merge=True)
    assert merged == adapter and not (merged / "adapter_config.json").exists()
    with pytest.raises(UserError, match="is not empty"):
        export_policy(tmp_path / "run", output=merged)


def test_faulty_settings_of_any_policy_are_refused_before_an_earlier_one_makes_way(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    content = tiny_recipe(tmp_path, policies={"nll": {"objective": "nll"}})
    run(make_recipe(content), until="train")
    weights = tmp_path / "run/policies/nll/seed-0/model.safetensors"
    before = weights.read_bytes()
    changed = {"objective": "nll", "learning_rate": 1.7e-4}
    for faulty in (
        {"objective": "a_lol_seq", "draw": "random"},
        {"objective": "a_lol", "objective_settings": {"u": 1}},
    ):
        content["policies"] = {"nll": changed, "other": faulty}
        with pytest.raises(UserError):
            run(make_recipe(content), until="train")
    assert weights.read_bytes() == before


def test_counts_of_a_stage_are_noted_before_it_counts_as_finished(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any
) -> None:
    """Else a run killed in between would lose its rejects, and its report their number."""
    from leftover.store.table import Manifest

    recipe = make_recipe(tiny_recipe(tmp_path))
    finish = Manifest.finish
    noted: dict[str, set] = {}

    def spy(self: Any, name: str, **facts: Any) -> None:
        path = tmp_path / "run/prepare.json"
        noted[name] = set(json.loads(path.read_text())) if path.is_file() else set()
        finish(self, name, **facts)

    monkeypatch.setattr(Manifest, "finish", spy)
    run(recipe, until="prepare")
    for block in ("rows", "split", "tokens", "reference", "value"):
        assert block in noted[block]


def test_a_runs_folder_stands_for_its_recipe(tmp_path: Path, tiny_recipe: Callable) -> None:
    recipe = make_recipe(tiny_recipe(tmp_path))
    run(recipe, until="prepare")
    assert load_recipe(tmp_path / "run") == recipe


def test_only_whole_policies_can_be_exported(tmp_path: Path, tiny_run: Callable) -> None:
    from leftover.publish.export import export_policy

    tiny_run(tmp_path)
    (tmp_path / "run/policies/half/seed-0/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"trained: policies/a_lol_seq/seed-0\)"):
        export_policy(tmp_path / "run", policy="half")


def test_a_missing_data_file_is_refused_before_the_table_makes_way(tmp_path: Path, tiny_run: Callable) -> None:
    content = tiny_run(tmp_path)
    before = (tmp_path / "run/table/manifest.json").read_text()
    content["data"]["path"] = str(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="no data file"):
        run(make_recipe(content), until="prepare")
    assert (tmp_path / "run/table/manifest.json").read_text() == before
    assert list((tmp_path / "run/table/rows").iterdir())


def test_a_tokenizer_is_trained_on_the_training_rows_for_random_weights(tmp_path, tiny_recipe, monkeypatch):
    content = tiny_recipe(tmp_path)
    learnt_from: list[str] = []

    def train(texts, vocab_size):
        learnt_from[:] = list(texts)
        return train_tokenizer(learnt_from, vocab_size)

    monkeypatch.setattr(leftover.prepare.rows, "train_tokenizer", train)
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    content["model"] = {"config": config, "tokenizer": {"vocab_size": 300}}
    assert evaluated(content)["sampled"]["table"]["a_lol_seq"]["reward"]
    first = open_run(make_recipe(content))
    assert len(first.models.tokenizer) == 300
    table = first.table.open("rows", "split")
    training = [row["prompt"] + row["completion"] for row in table if row["split"] == "train"]
    assert learnt_from == training and len(training) < len(table)
    assert first.models.base().get_input_embeddings().num_embeddings == 300
    assert (
        first.models.tokenizer.decode(first.models.tokenizer("naïve ☂").input_ids, skip_special_tokens=True)
        == "naïve ☂"
    )
    # Another size makes a new tokenizer, and with it new tokens.
    content["model"]["tokenizer"] = {"vocab_size": 280}
    second = open_run(make_recipe(content))
    pipeline.prepare(second, "tokens")
    assert len(second.models.tokenizer) == 280
    assert max(max(ids) for ids in second.table.open("tokens")["prompt_ids"]) < 280


def test_a_trained_tokenizer_belongs_to_random_weights(tmp_path, tiny_recipe):
    content = tiny_recipe(tmp_path)
    content["model"] = content["model"] | {"tokenizer": {"vocab_size": 300}}
    with pytest.raises(UserError, match=r"vocab_size.* trains one for random weights"):
        make_recipe(content)
