"""Whole frontiers on a few rows: strengths, checkpoints as points, what is reused, put back and refused."""

import csv
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from leftover import cli
from leftover.commands.compare.frontier import frontier, make_strengths, strength_policies
from leftover.commands.compare.methods import Entry, resolve
from leftover.commands.compare.run import Options, compare
from leftover.errors import UserError
from leftover.evaluation.frontier import best_of_n_kl
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.report.frontier import frontier_of
from leftover.runs.finished import FinishedRun
from leftover.store.sealed import read_sealed, write_sealed
from tests.commands.compare.test_compare import trained_runs
from tests.conftest import scored_rows, write_rows
from tests.forked import ForkedModule

METHODS = "nll,a_lol_kl"
POLICIES = ["nll", "nll/learning_rate_factor-0.3", "nll/learning_rate_factor-3"]
POLICIES += ["a_lol_kl", "a_lol_kl/beta-0.03", "a_lol_kl/beta-0.3"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> dict[str, Any]:
    kinds = {"long": "length", "varied": "ngram_diversity"}
    judges = [{"type": "text", "function": function, "name": name} for name, function in kinds.items()]
    return tiny_recipe(
        tmp_path_factory.mktemp("frontier"),
        rows=scored_rows(160),
        seeds=[0, 1],
        policies={"nll": {"objective": "nll"}},
        train={"max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 3e-2},
        evaluate={"max_prompts": 8, "max_selection_prompts": 16, "max_new_tokens": 8, "judges": judges},
    )


@pytest.fixture(scope="module")
def finished(content: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of a frontier, after a comparison in the same folder."""
    compare(make_recipe(content), Options(methods="nll", seeds=1))
    results, failed = frontier(make_recipe(content), Options(methods=METHODS))
    assert not failed
    return Path(content["output_dir"]), results


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_strength_of_every_method_has_its_checkpoints_as_points(finished: Any) -> None:
    folder, results = finished
    with (folder / "frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["seed"], row["step"]) for row in rows] == [
        (policy, "0", step) for policy in POLICIES for step in ("2", "4")
    ]
    assert {row["policy"]: row["objective_settings.beta"] for row in rows}["a_lol_kl/beta-0.3"] == "0.3"
    manifest = read_sealed(folder / "manifest.json")
    rates = [manifest[f"policy {policy}, seed 0"]["key"]["settings"]["learning_rate"] for policy in POLICIES[:3]]
    assert rates == pytest.approx([0.03, 0.009, 0.09])
    assert results["measures"] == ["reward", "judge/long", "judge/varied", "length"] and results["prompts"] == 16
    assert list(results["over_optimised"]) == ["judge/varied"], "a shorter text is no worse one"


def test_a_point_is_what_its_checkpoint_wrote(finished: Any) -> None:
    folder, results = finished
    for policy in POLICIES:
        own, judged = folder / "policies" / policy / "seed-0", defaultdict(list)
        for record in lines(folder / f"frontier/{policy.replace('/', '_')}-seed-0.jsonl"):
            judged[record["step"]].append(record["judge/long"])
        by_step = defaultdict(list)
        for record in lines(own / "evaluations.jsonl"):
            by_step[record["step"]].append(record)
        assert list(by_step) == [2, 4]
        logged = {line["step"]: line for line in lines(own / "metrics.jsonl") if "eval_kl" in line}
        points = {p["step"]: p for p in results["points"] if p["policy"] == policy}
        for step, records in by_step.items():
            assert len({record["group"] for record in records}) == len(records) == 16
            kl = np.mean([record["logprob"] - record["reference_logprob"] for record in records])
            assert points[step]["kl"] == pytest.approx(kl) and kl == pytest.approx(logged[step]["eval_kl"])
            reward = np.mean([record["reward"] for record in records])
            assert points[step]["reward"] == pytest.approx(reward)
            assert reward == pytest.approx(logged[step]["eval_reward/mean"])
            assert points[step]["length"] == pytest.approx(np.mean([record["tokens"] for record in records]))
            assert points[step]["judge/long"] == pytest.approx(np.mean(judged[step]))
            assert all(record["reward/leftover.demo.grammar:score_answers"] == record["reward"] for record in records)


def test_best_of_n_chooses_among_sixteen_completions_of_the_reference(finished: Any) -> None:
    folder, results = finished
    by_prompt = defaultdict(list)
    for record in lines(folder / "frontier/reference.jsonl"):
        by_prompt[record["group"]].append(record)
    assert len(by_prompt) == 16 and {len(of) for of in by_prompt.values()} == {16}
    curve = results["curves"]["best of n"]
    assert curve["kl"] == pytest.approx([best_of_n_kl(n) for n in (1, 2, 4, 8, 16)])
    assert curve["reward"][0] == pytest.approx(np.mean([[r["reward"] for r in of] for of in by_prompt.values()]))
    assert curve["reward"][-1] == pytest.approx(np.mean([max(r["reward"] for r in of) for of in by_prompt.values()]))
    assert {curve[m][0] for m in ("reward", "length") for curve in results["curves"].values()} == {
        curve["reward"][0], curve["length"][0]
    }  # fmt: skip
    assert all(results["table"]["reward"][name][3] is None for name in ("best of n",))  # KL 8


def test_the_files_tell_the_same(finished: Any) -> None:
    folder, results = finished
    said = (folder / "frontier.md").read_text()
    assert "(frontier.svg)" in said and "serve as test prompts" in said and "seed 0 alone" in said
    assert "| `a_lol_kl` |" in said and "objective_settings.beta 0.03" in said
    cells = next(line for line in said.splitlines() if line.startswith("| best of n |")).split(" | ")
    mean = results["table"]["reward"]["best of n"][0]["mean"]
    assert cells[1].startswith(f"{mean:.3f} [") and cells[2] == cells[3] == "–"
    assert read_sealed(folder / "frontier.json")["curves"] == results["curves"]
    svg = (folder / "frontier.svg").read_text()
    assert "prefers-color-scheme: dark" in svg and svg.count("KL to the reference") == 4


def test_the_comparison_before_it_is_left_as_it_was_and_its_page_has_a_section(
    finished: Any, content: dict[str, Any]
) -> None:
    folder, _ = finished
    assert list(yaml.safe_load((folder / "recipe.yaml").read_text())["policies"]) == ["nll"]
    assert 'id="run-1-frontier"' in (folder / "report.html").read_text()
    assert (folder / "policies/nll/seed-0/model.safetensors").is_file()


def test_a_frontier_of_other_rewards_or_judges_is_in_no_page(
    finished: Any, content: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert frontier_of(FinishedRun(folder)) is not None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"name": "renamed"}))
    assert frontier_of(FinishedRun(folder)) is not None
    for changed in ({"judges": []}, {"unfinished": "drop"}):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"evaluate": recipe["evaluate"] | changed}))
        assert frontier_of(FinishedRun(folder)) is None
        assert "is of other rewards or judges" in caplog.text
        caplog.clear()
    earlier = read_sealed(folder / "frontier.json")
    del earlier["scored_by"]
    write_sealed(folder / "frontier.json", earlier)
    assert frontier_of(FinishedRun(folder)) is not None, "of an earlier version it is not known"


def test_the_same_command_again_computes_nothing_and_others_only_what_is_new(
    finished: Any, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_runs(monkeypatch)
    monkeypatch.setattr("leftover.commands.compare.checkpoints.generate", None)
    shutil.copytree(finished[0], tmp_path / "run")
    mine = make_recipe(content | {"output_dir": str(tmp_path / "run")})
    results, _ = frontier(mine, Options(methods=METHODS))
    assert results == finished[1] and not trained
    results, _ = frontier(mine, Options(methods="nll,a_lol_seq", grid=("learning_rate_factor=3.0,9.0",)))
    assert sorted(trained) == [
        ("a_lol_seq/learning_rate_factor-3", 0),
        ("a_lol_seq/learning_rate_factor-9", 0),
        ("nll/learning_rate_factor-9", 0),
    ]
    assert list(results["curves"]) == ["best of n", "nll", "a_lol_seq"]


def test_what_a_run_has_trained_is_a_strength_already(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make_recipe(content | {"output_dir": str(tmp_path / "run"), "seeds": [0]})
    run(mine, until="train")
    trained = trained_runs(monkeypatch)
    frontier(mine, Options(methods="nll"))
    assert sorted(trained) == [("nll/learning_rate_factor-0.3", 0), ("nll/learning_rate_factor-3", 0)]
    (tmp_path / "run/policies/nll/default").mkdir()  # as an earlier version called it
    _, policies = strength_policies(resolve("nll", mine), {"nll": [{}]}, mine)
    assert list(policies) == ["nll/default"]


def test_a_policy_of_the_run_stays_where_the_budget_gives_its_method_other_settings(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of dpo trains on whole prompts, and gets fewer of them."""
    rows = scored_rows(80)
    others = [row | {"completion": rows[i - 1]["completion"], "reward": 0.0} for i, row in enumerate(rows)]
    own = {"output_dir": str(tmp_path / "run"), "seeds": [0], "policies": {"dpo": {"objective": "dpo"}}}
    own |= {"data": content["data"] | {"path": write_rows(tmp_path / "rows.jsonl", rows + others)}}
    mine = make_recipe(content | own)
    run(mine, until="train")
    weights = tmp_path / "run/policies/dpo/seed-0/model.safetensors"
    before, trained = weights.read_bytes(), trained_runs(monkeypatch)
    results, _ = frontier(mine, Options(methods="dpo"))
    assert ("dpo/frontier", 0) in trained and ("dpo", 0) not in trained
    assert weights.read_bytes() == before
    assert next(iter(results["methods"]["dpo"]["strengths"])) == "dpo/frontier"
    trained.clear()
    frontier(mine, Options(methods="dpo"))
    assert not trained


def test_a_file_that_is_gone_is_named_and_the_other_methods_are_drawn(
    finished: Any, content: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run/policies/nll/seed-0/evaluations.jsonl").unlink()
    manifest = read_sealed(tmp_path / "run/manifest.json")
    del manifest["checkpoints of nll-seed-0"]
    write_sealed(tmp_path / "run/manifest.json", manifest)
    results, failed = frontier(make_recipe(content | {"output_dir": str(tmp_path / "run")}), Options(methods=METHODS))
    assert [str(job) for job in failed] == list(results["failed"]) == ["nll-seed-0"]
    assert re.search(r"evaluations\.jsonl is missing.*output_dir", results["failed"]["nll-seed-0"])
    assert results["curves"]["a_lol_kl"] == finished[1]["curves"]["a_lol_kl"]
    assert {point["policy"] for point in results["points"]} == {*POLICIES} - {"nll"}


def test_what_is_missing_is_made_in_processes_of_their_own_and_gives_the_same_numbers(
    finished: Any, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftover.commands.compare.jobs.Popen", ForkedModule)
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/frontier")
    manifest = read_sealed(tmp_path / "run/manifest.json")
    lost = ("checkpoints of reference", "checkpoints of nll-seed-0", "policy nll, seed 0")
    kept = {name: entry for name, entry in manifest.items() if name not in lost}
    write_sealed(tmp_path / "run/manifest.json", kept)
    for path in finished[0].glob("frontier/*"):
        if path.name not in ("reference.jsonl", "nll-seed-0.jsonl"):
            (tmp_path / "run/frontier").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "run/frontier")
    mine = make_recipe(content | {"output_dir": str(tmp_path / "run")})
    results, failed = frontier(mine, Options(methods=METHODS, jobs=2))
    assert not failed and results == finished[1]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"reward": {"functions": [{"type": "column"}]}}, "scores of 'column' are recorded.*new_completions"),
        ({"train": {"eval_decoding": "greedy"}}, "train.eval_decoding"),
        ({"train": {"eval_strategy": "no", "save_strategy": "no"}}, "train.eval_strategy"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_leaves_points_without_reward_or_kl_is_refused(
    sections: dict[str, Any], expected: str, dry: bool, tmp_path: Path, tiny_recipe: Callable, capsys: Any
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path, **sections)))
    with pytest.raises(SystemExit):
        cli.main(["compare", str(tmp_path / "recipe.yaml"), "--frontier", *(["--dry-run"] * dry)])
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_strengths_runs_and_what_is_scored(
    content: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    mine = content | {"output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mine))
    options = ["--methods", METHODS, "--frontier", "--seeds", "2", "--dry-run"]
    cli.main(["compare", str(tmp_path / "recipe.yaml"), *options])
    said = " ".join(capsys.readouterr().out.split())
    assert "12 runs in all, seeds 0, 1" in said
    assert "Strengths of a_lol_kl: its settings as they are; beta 0.03; beta 0.3" in said
    assert re.search(r"best of n of the reference │ 16 x \d+ completions", said)
    assert "test: completions" not in said and not (tmp_path / "run").exists()


def recipe(**sections: Any) -> Any:
    base = {"name": "r", "output_dir": "o", "model": {"path": "m"}, "data": {"path": "d"}}
    return make_recipe(base | {"policies": {"nll": {"objective": "nll"}}} | sections)


def entries(*names: str) -> list[Entry]:
    return [Entry(name, {"objective": name}, "") for name in names]


def test_strengths_are_the_methods_own_or_those_that_are_asked_for() -> None:
    both = entries("nll", "dpo")
    beta = [{}, {"objective_settings.beta": 0.03}, {"objective_settings.beta": 0.3}]
    assert make_strengths(both, (), recipe())["dpo"] == beta
    assert make_strengths(both, ("learning_rate=1e-3,1e-2",), recipe())["dpo"] == [
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2},
    ]
    own = recipe(compare={"grid": {"nll": [{"max_steps": 5}]}})
    assert make_strengths(both, (), own) == {"nll": [{"max_steps": 5}], "dpo": beta}
    assert make_strengths(both, (), recipe(compare={"grid": "declared"}))["dpo"] == beta
    assert len(make_strengths(both, ("declared",), recipe())["dpo"]) == 4
    assert make_strengths(both, ("none",), recipe()) == {"nll": [{}], "dpo": [{}]}


def test_a_strength_that_a_method_has_already_is_trained_once() -> None:
    entry = Entry("mine", {"objective": "dpo", "objective_settings": {"beta": 0.3}}, "")
    strengths, policies = strength_policies([entry], make_strengths([entry], (), recipe()), recipe())
    assert list(strengths["mine"]) == list(policies) == ["mine", "mine/beta-0.03"]
    assert policies["mine"] == entry.fields


def test_a_strength_of_a_setting_that_a_method_has_not_names_the_method() -> None:
    both = entries("nll", "dpo")
    with pytest.raises(UserError, match=r"strengths of 'nll': .*beta"):
        strength_policies(both, make_strengths(both, ("objective_settings.beta=0.1",), recipe()), recipe())
