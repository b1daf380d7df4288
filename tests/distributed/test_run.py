"""A whole run by two processes: the tables, weights and results of one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from leftover.monitoring import ranks
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.training.trainer import LoLTrainer
from tests.forked import as_ranks
from tests.rewards.reward_rows import planted_rows, write


def whole_run(content: dict[str, Any], number: int) -> None:
    run(make_recipe(content), until="evaluate")
    assert ranks.processes() == number == torch.distributed.get_world_size()


def recipe(tiny_recipe: Callable, folder: Path, accumulation: int, **overrides: Any) -> dict[str, Any]:
    folder.mkdir()
    content = tiny_recipe(folder, **overrides)
    for section in (content["reference"]["train"], content["train"]):
        section |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    return content


def columns(folder: Path) -> dict[str, Any]:
    from leftover.store.table import Table

    table = Table(folder / "run" / "table")
    blocks = {block: table.open(block) for block in table.manifest.entries}
    return {f"{block}/{name}": rows[name][:] for block, rows in blocks.items() for name in rows.features}


def test_two_processes_make_the_run_of_one(tmp_path: Path, tiny_recipe: Callable) -> None:
    policies = {"a_lol_seq": {"objective": "a_lol_seq"}, "kto": {"objective": "kto"}}
    one, two = (recipe(tiny_recipe, tmp_path / n, steps, policies=policies) for n, steps in (("one", 2), ("two", 1)))
    run(make_recipe(one), until="evaluate")
    as_ranks(2, whole_run, two, 2)
    expected, found = columns(tmp_path / "one"), columns(tmp_path / "two")
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if values and isinstance(values[0], float) and name != "rows/recorded_reward":
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
        elif "logprob" in name or "features" in name:
            for a, b in zip(values, found[name], strict=True):
                np.testing.assert_allclose(a, b, atol=2e-3 if "features" in name else 1e-5, err_msg=name)
        elif name != "rows/where":  # the path of its file
            assert values == found[name], name
    for policy in policies:
        folders = [tmp_path / name / "run" for name in ("one", "two")]
        weights = [load_file(folder / "policies" / policy / "seed-0/model.safetensors") for folder in folders]
        for name, values in weights[0].items():
            torch.testing.assert_close(weights[1][name], values, atol=1e-4, rtol=0)
        written = [(folder / "evaluation" / f"{policy}-seed-0.jsonl").read_text().splitlines() for folder in folders]
        texts = [[json.loads(line)["text"] for line in lines] for lines in written]
        assert texts[0] == texts[1]


def _share(number: int) -> None:
    ranks.join()
    assert ranks.processes() == number
    asked: list[int] = []

    def work(rows: list[int]) -> list[int]:
        asked.extend(rows)
        return [row * row for row in rows]

    for size in (7, 1, 0):
        asked.clear()
        assert ranks.shared(work, list(range(size))) == [row * row for row in range(size)]
        assert asked == list(range(size))[ranks.rank() :: number]
    with ranks.apart():
        assert ranks.shared(work, [ranks.rank()]) == [ranks.rank() ** 2]
    assert ranks.told(ranks.rank()) == 0


@pytest.mark.parametrize("number", [2, 3])
def test_rows_are_shared_and_come_back_in_order(number: int) -> None:
    as_ranks(number, _share, number)


class Killed(Exception):
    pass


def _until_step(content: dict[str, Any], step: int) -> None:
    whole = LoLTrainer._loss

    def loss(self: LoLTrainer, *args: Any) -> Any:
        if self.state.global_step == step and self.args.objective == "a_lol_seq":
            raise Killed
        return whole(self, *args)

    LoLTrainer._loss = loss  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(make_recipe(content), until="train")


def _continued(content: dict[str, Any]) -> None:
    run(make_recipe(content), until="train")


def test_another_number_of_processes_goes_on_with_the_same_batches_or_is_refused(
    tmp_path: Path, tiny_recipe: Callable, caplog: Any
) -> None:
    train = {"save_steps": 1, "eval_steps": 1}
    whole, killed = (recipe(tiny_recipe, tmp_path / n, 2, train=train) for n in ("whole", "killed"))
    killed["train"]["gradient_accumulation_steps"] = killed["reference"]["train"]["gradient_accumulation_steps"] = 1
    run(make_recipe(whole), until="train")
    as_ranks(2, _until_step, killed, 3)
    launch = tmp_path / "killed/run/policies/a_lol_seq/seed-0/checkpoints/launch.json"
    assert json.loads(launch.read_text()) == {"processes": 2, "gradient_accumulation_steps": 1}
    launch.write_text('{"processes": 3, "gradient_accumulation_steps": 1}')
    with pytest.raises(Exception, match=r"begun by 3 processes, with 3 batches .* start 1 or 3, or remove"):
        as_ranks(2, _continued, killed)
    launch.write_text('{"processes": 2, "gradient_accumulation_steps": 1}')
    with caplog.at_level("INFO"):
        run(make_recipe(killed), until="train")
    assert "begun by 2 processes, goes on with as many rows a step" in caplog.text
    weights = [load_file(tmp_path / n / "run/policies/a_lol_seq/seed-0/model.safetensors") for n in ("whole", "killed")]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, atol=1e-4, rtol=0)


def _rounds(content: dict[str, Any], output: str) -> None:
    from leftover.commands.generate.run import generate_rows
    from leftover.rounds.run import run as run_rounds
    from leftover.runs.names import round_folder

    run_rounds(make_recipe(content))
    generate_rows(
        str(round_folder(Path(content["output_dir"]), 1)),
        output=output, prompts=None, n=2, max_new_tokens=8, greedy=False,
        batch_size=4, overwrite=False, temperature=1.0, seed=3, max_prompts=5, unfinished="keep", recipe=None,
        overrides=(), policy=None, policy_seed=None, reward=None, splits=True,
    )  # fmt: skip


def test_rounds_and_generated_rows_of_two_processes_are_those_of_one(tmp_path: Path, tiny_recipe: Callable) -> None:
    settings = {"rounds": {"number": 2, "completions_per_prompt": 2, "unfinished": "keep"}}
    one, two = (recipe(tiny_recipe, tmp_path / n, steps, **settings) for n, steps in (("one", 2), ("two", 1)))
    _rounds(one, str(tmp_path / "one.jsonl"))
    as_ranks(2, _rounds, two, str(tmp_path / "two.jsonl"))
    samples = [next((tmp_path / n).rglob("samples-*.jsonl")).read_text().splitlines() for n in ("one", "two")]
    generated = [(tmp_path / f"{n}.jsonl").read_text().splitlines() for n in ("one", "two")]
    for expected, found in (samples, generated):
        assert len(expected) == len(found) > 0
        for a, b in zip(expected, found, strict=True):
            assert json.loads(a)["completion"] == json.loads(b)["completion"]
    assert (tmp_path / "two/run/rounds.json").is_file()


def _scored(content: dict[str, Any]) -> None:
    run(make_recipe(content), until="prepare")


def test_a_scorer_is_fine_tuned_by_one_process_and_scores_by_both(
    tmp_path: Path, tiny_recipe: Callable, tiny_gpt2_path: str
) -> None:
    labels = write(tmp_path / "labels.jsonl", planted_rows("label", 30))
    scorer = {"type": "fine_tuned", "name": "s", "model": tiny_gpt2_path, "fit": {"path": labels}}
    functions = [scorer | {"train": {"num_train_epochs": 1, "per_device_train_batch_size": 8}}]
    one, two = (recipe(tiny_recipe, tmp_path / n, 1, reward={"functions": functions}) for n in ("one", "two"))
    for content in (one, two):
        content["reference"]["train"]["max_steps"] = 1
    run(make_recipe(one), until="prepare")
    as_ranks(2, _scored, two)
    facts = [json.loads((tmp_path / n / "run/manifest.json").read_text())["reward s"]["facts"] for n in ("one", "two")]
    assert facts[0] == facts[1]
    scores = [columns(tmp_path / n)["score-s/reward/s"] for n in ("one", "two")]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
