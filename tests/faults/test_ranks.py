"""A process of a launch is killed: the others end soon, its rank is named, and the run can go on (`make faults`)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.test_run import columns, recipe

pytestmark = pytest.mark.faults

PROCESSES, DEADLY = 4, 2
# The calls of the reward in each process, and what a run does at the time.
CALLS = {1: "scores of the rows", 2: "samples for the value", 3: "a checkpoint's completions", 7: "the test"}


def launch(content: dict[str, Any], number: int, **variables: str) -> subprocess.CompletedProcess[str]:
    path = Path(content["output_dir"]).parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number), "-m", "leftover"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([*command, "run", str(path)], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "of-four"
    done = launch(deadly(tiny_recipe, folder), PROCESSES)
    assert done.returncode == 0, done.stderr
    return folder


def deadly(tiny_recipe: Callable, folder: Path) -> dict[str, Any]:
    scores = {"functions": [{"type": "python", "function": "tests.faults.deadly:score"}]}
    train = {"save_steps": 1, "eval_steps": 1}
    return recipe(tiny_recipe, folder, 1, reward=scores, train=train)


@pytest.mark.parametrize("call", CALLS, ids=CALLS.values())
@pytest.mark.timeout(900)
def test_a_dead_process_ends_the_others_and_the_run_goes_on(
    call: int, tmp_path: Path, tiny_recipe: Callable, whole: Path
) -> None:
    content, file = deadly(tiny_recipe, tmp_path / "killed"), tmp_path / "died"
    variables = {"DEADLY_RANK": str(DEADLY), "DEADLY_CALL": str(call), "DEADLY_FILE": str(file)}
    died = launch(content, PROCESSES, **variables)
    assert died.returncode != 0
    assert time.time() - float(file.read_text()) < 60
    assert f"rank      : {DEADLY} " in died.stderr
    assert "SIGKILL" in died.stderr
    again = launch(content, PROCESSES)
    assert again.returncode == 0, again.stderr
    expected, found = columns(whole), columns(tmp_path / "killed")
    assert {name: values for name, values in expected.items() if name != "rows/where"} == {
        name: values for name, values in found.items() if name != "rows/where"
    }
    weights = [load_file(f / "run/policies/a_lol_seq/seed-0/model.safetensors") for f in (whole, tmp_path / "killed")]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, atol=0, rtol=0)
    name = "run/evaluation/a_lol_seq-seed-0.jsonl"
    assert (whole / name).read_text() == (tmp_path / "killed" / name).read_text()


def test_four_processes_make_the_run_of_one(tmp_path: Path, tiny_recipe: Callable, whole: Path) -> None:
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe

    one = deadly(tiny_recipe, tmp_path / "one")
    for section in (one["reference"]["train"], one["train"]):
        section["gradient_accumulation_steps"] = PROCESSES
    run(make_recipe(one), until="evaluate")
    weights = [load_file(f / "run/policies/a_lol_seq/seed-0/model.safetensors") for f in (whole, tmp_path / "one")]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, atol=1e-4, rtol=0)
