"""Whole comparisons on a few rows: one table, one budget, killed and continued, in one process and in several."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import leftover.commands.compare.run as compare_run
import leftover.evaluation.run
import leftover.training.run
from leftover import cli
from leftover.commands.compare.budget import plan_updates
from leftover.commands.compare.jobs import Job
from leftover.commands.compare.methods import Entry
from leftover.commands.compare.run import Options, compare
from leftover.demo.grammar import make_rows
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.runs.run import Run
from leftover.store.sealed import read_sealed, write_sealed
from leftover.training.settings import cadence
from tests.forked import forked

METHODS = "nll,wbc,a_lol_seq"
RUDE = " That is not our problem."


def rows_of_groups(num_prompts: int = 30) -> list[dict[str, Any]]:
    """Three completions a prompt: an answer, an empty one and a rude one, whose reward is negative."""
    return [
        row | {"completion": completion}
        for row in make_rows(num_prompts, seed=0)
        for completion in (row["completion"], " It.", RUDE)
    ]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> dict[str, Any]:
    return tiny_recipe(
        tmp_path_factory.mktemp("compare"),
        rows=rows_of_groups(),
        policies={"a_lol_seq": {"objective": "a_lol_seq", "max_steps": 9}},
        train={"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1},
        evaluate={
            "max_prompts": 8,
            "max_selection_prompts": 4,
            "max_new_tokens": 8,
            "judges": [{"type": "text", "function": "length", "name": "long"}],
        },
    )


@pytest.fixture(scope="module")
def finished(content: dict[str, Any]) -> tuple[Path, dict[str, Any], dict[Job, str]]:
    """The folder, the results and the failures of a comparison with two seeds."""
    results, failed = compare(make_recipe(content), Options(methods=METHODS, seeds=2))
    return Path(content["output_dir"]), results, failed


def elsewhere(content: dict[str, Any], run: Path, folder: Path, policies: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recipe with the prepared run in another folder, of its policies only those named."""
    shutil.copytree(run, folder)
    manifest = read_sealed(folder / "manifest.json")
    for name in list(manifest):
        if name.startswith(("policy", "evaluation")) and not any(policy in name for policy in policies):
            del manifest[name]
    write_sealed(folder / "manifest.json", manifest)
    for path in folder.glob("policies/*"):
        if path.name not in policies:
            shutil.rmtree(path)
    for path in folder.glob("comparison*"):
        path.unlink()
    return content | {"output_dir": str(folder)}


def completions(folder: Path, subject: str) -> list[dict[str, Any]]:
    lines = (folder / "evaluation" / f"{subject}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The list that every training from now on is added to."""
    trained: list[tuple[str, int]] = []
    train = leftover.training.run.train_policy

    def spy(run: Run, name: str, seed: int) -> dict[str, Any]:
        trained.append((name, seed))
        return train(run, name, seed)

    monkeypatch.setattr(leftover.training.run, "train_policy", spy)
    return trained


def test_every_method_takes_as_many_updates_of_about_as_many_tokens(finished: Any) -> None:
    folder, results, failed = finished
    assert not failed
    facts = [facts for runs in results["training"].values() for facts in runs.values()]
    assert [fact["steps"] for fact in facts] == [4] * 4
    tokens = [fact["trained_tokens"] for fact in facts]
    assert max(tokens) < 2 * min(tokens)  # as many rows, of unequal lengths
    assert results["methods"]["nll"]["planned_tokens"] == results["training"]["nll"][0]["trained_tokens"]
    # What was fed, as the training itself counted it.
    for policy, runs in results["training"].items():
        for seed, fact in runs.items():
            lines = (folder / f"policies/{policy}/seed-{seed}/metrics.jsonl").read_text().splitlines()
            assert max(json.loads(line).get("num_tokens", 0) for line in lines) == fact["trained_tokens"]
    assert all(fact["peak_memory"] > 50 * 2**20 for fact in facts)


def test_a_method_that_the_rows_cannot_serve_is_told_with_its_reason(finished: Any) -> None:
    folder, results, _ = finished
    assert list(results["methods"]) == ["nll", "a_lol_seq"]
    assert "needs rewards >= 0" in results["not_applicable"]["wbc"]
    said = (folder / "comparison.md").read_text()
    assert re.search(r"Caveat: only \d test prompts", said)
    assert re.search(r"`wbc`: n/a, .*rewards >= 0", said)
    assert not (folder / "policies/wbc").exists()


def test_only_named_methods_are_refused_loudly_and_before_the_reference(
    content: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    recipe = make_recipe(content | {"output_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=r"none of the methods.*wbc: .*rewards >= 0"):
        compare(recipe, Options(methods="wbc"))
    assert [r.levelname for r in caplog.records if "compare: wbc n/a" in r.getMessage()] == ["WARNING"]
    assert not (tmp_path / "run/reference").exists()


def test_one_prepared_table_serves_all_runs(finished: Any) -> None:
    folder, _, _ = finished
    manifest = read_sealed(folder / "manifest.json")
    assert all(entry["complete"] for entry in manifest.values())
    keys = {name: entry["key"]["from"] for name, entry in manifest.items() if name.startswith("policy")}
    value = keys["policy a_lol_seq, seed 0"]["value"]
    assert len(keys) == 4
    for name, key in keys.items():
        # NLL reads no value: another value trains it no more than it trains on it.
        assert ("value" in key) == ("a_lol_seq" in name)
        assert {"value": value} | key == keys["policy a_lol_seq, seed 1"]


def test_markdown_csv_and_json_tell_the_same(finished: Any) -> None:
    folder, results, _ = finished
    saved = json.loads((folder / "comparison.json").read_text())
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["decoding"]) for r in rows] == [
        (name, "sampled") for name in ("data", "reference", "nll", "a_lol_seq")
    ]
    for row, told in zip(rows, saved["rows"], strict=True):
        assert {name: value for name, value in row.items() if value != ""} == {
            name: str(value) for name, value in told.items() if value != ""
        }
    nested = results["sampled"]["table"]["nll"]
    (row,) = (r for r in rows if (r["method"], r["decoding"]) == ("nll", "sampled"))
    assert float(row["reward"]) == nested["reward"]["mean"] and float(row["judge/long"]) == nested["judge/long"]["mean"]
    assert float(row["reward highest seed"]) == max(nested["reward_by_seed"].values())
    line = next(x for x in (folder / "comparison.md").read_text().splitlines() if x.startswith("| `nll`"))
    mean, low, high = (float(row[name]) for name in ("reward", "reward low", "reward high"))
    assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in line
    assert f"| {float(row['win_rate_against_data']):.2f} |" in line


def test_the_win_rate_against_the_data_is_of_the_tables_rewards(finished: Any, content: dict[str, Any]) -> None:
    folder, results, _ = finished
    table = open_run(make_recipe(content)).table.open("split", "reward")
    rewards: dict[int, list[float]] = {}
    for row in table:
        rewards.setdefault(row["group"], []).append(row["reward"])
    shares = []
    for seed in (0, 1):
        for record in completions(folder, f"nll-seed-{seed}"):
            if record["decoding"] == "sampled":
                theirs = np.array(rewards[record["group"]])
                assert len(theirs) == 3
                shares.append(np.mean((record["reward"] > theirs) + 0.5 * (record["reward"] == theirs)))
    row = results["sampled"]["table"]["nll"]
    assert row["win_rate_against_data"] == pytest.approx(np.mean(shares))
    assert 0 < row["win_rate_against_data"] < 1


def test_pictures_and_costs_are_there(finished: Any) -> None:
    folder, _, _ = finished
    for name in ("comparison_reward_diversity.png", "comparison_reward_diversity.svg", "comparison_training.png"):
        assert (folder / name).stat().st_size > 5000
        assert name.endswith("svg") or f"({name})" in (folder / "comparison.md").read_text()
    told = (folder / "comparison.md").read_text()
    for heading in ("effective sample size", "tokens trained", "peak memory", "Judges, on which", "range over seeds"):
        assert heading in told


def test_the_same_command_again_computes_nothing(
    finished: Any, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_runs(monkeypatch)
    results, _ = compare(make_recipe(content), Options(methods=METHODS, seeds=2))
    assert not trained
    assert results == finished[1]


def test_what_a_smaller_comparison_leaves_out_is_said(
    finished: Any, content: dict[str, Any], tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_runs(monkeypatch)
    recipe = make_recipe(elsewhere(content, finished[0], tmp_path / "run", ("nll", "a_lol_seq")))
    compare(recipe, Options(methods=METHODS, seeds=2))
    assert "comparison.md no longer shows" not in caplog.text
    compare(recipe, Options(methods="nll", seeds=1))
    assert re.search(r"comparison\.md no longer shows .*a_lol_seq.* 1;", caplog.text)
    assert "what another would change is unknown" in (tmp_path / "run/comparison.md").read_text()
    assert not trained


def test_a_fault_of_the_shared_settings_is_an_error_and_no_method_is_blamed(
    content: dict[str, Any], tmp_path: Path
) -> None:
    train = content["train"] | {"eval_steps": 2, "save_steps": 3}
    recipe = make_recipe(content | {"output_dir": str(tmp_path / "run"), "train": train})
    with pytest.raises(UserError, match=r"^training settings .*load_best_model_at_end"):
        compare(recipe, Options(methods=METHODS, seeds=1))
    assert not (tmp_path / "run/table").exists()


def test_checkpoints_are_saved_where_they_are_evaluated() -> None:
    assert cadence({})["save_steps"] == cadence({})["eval_steps"] == 0.2
    assert cadence({"eval_steps": 2})["save_steps"] == 2
    assert cadence({"eval_strategy": "epoch"})["save_strategy"] == "epoch"


def test_a_killed_comparison_continues_with_the_runs_that_are_missing(
    finished: Any, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, _ = finished
    mine = elsewhere(content, folder, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mine))
    command, said = ["compare", str(tmp_path / "recipe.yaml"), "--methods", METHODS, "--seeds", "2"], tmp_path / "said"
    process = forked(lambda: cli.main(command), said)
    manifest, deadline = tmp_path / "run/manifest.json", time.monotonic() + 120
    while not json.loads(manifest.read_text()).get("evaluation of nll-seed-0", {}).get("complete"):
        assert process.is_alive(), said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    entries = json.loads(manifest.read_text())
    done = {name for name, entry in entries.items() if name.startswith("policy") and entry["complete"]}
    assert "policy nll, seed 0" in done and "policy a_lol_seq, seed 1" not in done
    trained = trained_runs(monkeypatch)
    results, failed = compare(make_recipe(mine), Options(methods=METHODS, seeds=2))
    assert not failed
    assert {f"policy {name}, seed {seed}" for name, seed in trained} == {
        f"policy {name}, seed {seed}" for name in ("nll", "a_lol_seq") for seed in (0, 1)
    } - done
    assert results["sampled"] == whole["sampled"]


def test_processes_give_the_same_numbers_and_a_failure_does_not_lose_the_others(
    finished: Any, content: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many threads as here
    folder, _, _ = finished
    mine = elsewhere(content, folder, tmp_path / "run", ("reference",))
    # No rounding is below it, so that the first step stops.
    mine["policies"] = content["policies"] | {"broken": {"objective": "nll", "max_initial_logratio": 1e-30}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mine))
    command = ["compare", str(tmp_path / "recipe.yaml"), "--methods", "broken,a_lol_seq", "--seeds", "1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--jobs", "2"])
    assert stopped.value.code == 2
    assert "1 of 2 runs failed" in capsys.readouterr().err
    saved = json.loads((tmp_path / "run/comparison.json").read_text())
    assert list(saved["failed"]) == ["broken-seed-0"]
    assert "set max_initial_logratio" in saved["failed"]["broken-seed-0"]
    assert "max_initial_logratio" in (tmp_path / "run/logs/broken-seed-0.log").read_text()
    subject = "a_lol_seq-seed-0"
    assert completions(tmp_path / "run", subject) == completions(folder, subject)
    entries = read_sealed(tmp_path / "run/manifest.json")
    incomplete = [name for name, entry in entries.items() if not entry["complete"]]
    assert incomplete == ["policy broken, seed 0"] and "policy a_lol_seq, seed 0" in entries


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "leftover.commands.compare.worker", str(tmp_path), '{"policy": "nll"}'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.close()
    # It ends before it finds that the folder holds no run.
    assert process.wait(timeout=60) == 1 and process.stderr.read() == b""


def test_settings_are_chosen_on_the_selection_prompts_alone(
    finished: Any, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = finished
    recipe = make_recipe(elsewhere(content, folder, tmp_path / "run"))
    trained, events = trained_runs(monkeypatch), list[str]()
    test_rows, tune = leftover.prepare.readers.test_rows, compare_run._tune

    def reads_test_rows(*arguments: Any) -> Any:
        events.append("test rows")
        return test_rows(*arguments)

    def tunes(*arguments: Any) -> Any:
        found = tune(*arguments)
        events.append("chosen")
        return found

    monkeypatch.setattr(leftover.evaluation.run, "test_rows", reads_test_rows)
    monkeypatch.setattr(compare_run, "_tune", tunes)
    results, _ = compare(recipe, Options(methods="nll,a_lol_seq", seeds=2, grid=("learning_rate=1e-3,3e-2",)))
    assert events[0] == "chosen" and "test rows" in events
    assert results["num_trials"] == 2
    manifest = read_sealed(tmp_path / "run/manifest.json")
    for name, method in results["methods"].items():
        scores = [trial["selection"] for trial in method["trials"]]
        assert scores == [manifest[f"policy {name}/trial-{i}, seed 0"]["best_metric"] for i in (0, 1)]
        assert method["chosen"] == int(np.argmax(scores))
        assert method["settings"]["learning_rate"] == [1e-3, 3e-2][method["chosen"]]
    # The chosen trial is the run of its seed: no test completion is made of a trial, and no run is made twice.
    assert sorted(trained) == [
        *(("a_lol_seq", 1), ("a_lol_seq/trial-0", 0), ("a_lol_seq/trial-1", 0)),
        *(("nll", 1), ("nll/trial-0", 0), ("nll/trial-1", 0)),
    ]
    assert not list((tmp_path / "run/evaluation").glob("*trial*"))
    said = (tmp_path / "run/comparison.md").read_text()
    assert "the best of 2 trials a method on the selection prompts" in said and "## Trials" in said


def planned(content: dict[str, Any], budget: str, policies: dict[str, dict[str, Any]], **train: Any) -> Any:
    run = open_run(make_recipe(content | {"train": content["train"] | train}))
    entries = [Entry(name, fields, "") for name, fields in policies.items()]
    return entries, plan_updates(run, entries, budget)


def test_the_papers_budget_scales_updates_by_the_share_of_selected_rows(finished: Any, content: dict[str, Any]) -> None:
    _, results, _ = finished
    policies = {"nll": {"objective": "nll"}, "a_lol": {"objective": "a_lol"}}
    policies["top"] = {"objective": "nll", "rows": "top", "top_percent": 25.0}
    entries, plans = planned(content, "paper", policies, max_steps=40)
    share = results["prepare"]["leftover"]["share"]
    assert 0.2 < share < 0.8
    assert {name: plan.updates for name, plan in plans.items()} == {"nll": 40, "a_lol": round(40 * share), "top": 10}
    assert [entry.fields["max_steps"] for entry in entries] == [40, round(40 * share), 10]


def test_without_steps_the_budget_is_the_epochs_of_all_rows(finished: Any, content: dict[str, Any]) -> None:
    _, results, _ = finished
    policies = {"a_lol": {"objective": "a_lol"}}
    _, plans = planned(content, "equal", policies, max_steps=-1, num_train_epochs=2)
    assert plans["a_lol"].updates == -(-2 * results["prepare"]["split"]["train"] // 4)


def test_methods_of_whole_prompts_take_fewer_of_them_a_batch(finished: Any, content: dict[str, Any]) -> None:
    policies = {"nll": {"objective": "nll"}, "groups": {"objective": "nll", "whole_groups": True}}
    entries, plans = planned(content, "equal", policies, per_device_train_batch_size=12, max_steps=10)
    assert entries[1].fields["per_device_train_batch_size"] == 4  # of three rows each
    assert plans["groups"].tokens == pytest.approx(plans["nll"].tokens, rel=0.1)


def test_a_dry_run_tells_the_plan_and_writes_nothing(content: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    mine = content | {"output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mine))
    cli.main(["compare", str(tmp_path / "recipe.yaml"), "--methods", "paper", "--grid", "declared", "--dry-run"])
    said = capsys.readouterr().out
    assert "a_lol_seq" in said and "the recipe" in said
    assert "48 runs in all" in said or "runs in all, seeds 0, 1, 2" in said
    assert not (tmp_path / "run").exists()
