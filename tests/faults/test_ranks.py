"""A process of a launch is killed: the others end soon, its rank is named, and the run goes on (`make faults`)."""

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

from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from tests.distributed.test_run import columns, recipe

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

PROCESSES = 4
# The calls of the reward in each process, and what a run does at the time.
CALLS = {1: "scores of the rows", 2: "samples for the value", 3: "a checkpoint's completions", 7: "the test"}
A_CHECKPOINT = 5
DEEPSPEED = Path(".venv/deepspeed").absolute()  # which `make faults` installs, apart from what other tests import
POLICY = "policies/a_lol_seq/seed-0/model.safetensors"


def deadly(tiny_recipe: Callable, folder: Path, accumulation: int = 1) -> dict[str, Any]:
    scores = {"functions": [{"type": "python", "function": "tests.faults.deadly:score"}]}
    return recipe(tiny_recipe, folder, accumulation, reward=scores, train={"save_steps": 1, "eval_steps": 1})


def launch(launcher: list[str], content: dict[str, Any], **variables: str) -> subprocess.CompletedProcess[str]:
    path = Path(content["output_dir"]).parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", *launcher, "run", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def torchrun(number: int) -> list[str]:
    return ["torch.distributed.run", "--nproc_per_node", str(number), "-m", "leftover"]


def accelerate(configuration: str, module: str = "leftover") -> list[str]:
    path = f"recipes/accelerate/{configuration}.yaml"
    return ["accelerate.commands.launch", "--config_file", path, "--num_processes", "2", "-m", module]


def kill(launcher: list[str], content: dict[str, Any], folder: Path, rank: int, call: int, **variables: str) -> None:
    """Launch; the process of this rank kills itself at a call of the reward."""
    file = folder / "died"
    dies = {"DEADLY_RANK": str(rank), "DEADLY_CALL": str(call), "DEADLY_FILE": str(file)}
    died = launch(launcher, content, **dies, **variables)
    assert died.returncode != 0
    assert time.time() - float(file.read_text()) < 60
    assert f"rank      : {rank} " in died.stderr
    assert "SIGKILL" in died.stderr


def weights_agree(one: Path, other: Path, within: float) -> None:
    expected, found = load_file(one / "run" / POLICY), load_file(other / "run" / POLICY)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=within, rtol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> Path:
    """The undisturbed run of four processes."""
    folder = tmp_path_factory.mktemp("whole") / "of-four"
    done = launch(torchrun(PROCESSES), deadly(tiny_recipe, folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_four_processes_make_the_run_of_one(tmp_path: Path, tiny_recipe: Callable, whole: Path) -> None:
    run(make_recipe(deadly(tiny_recipe, tmp_path / "one", PROCESSES)), until="evaluate")
    weights_agree(whole, tmp_path / "one", 1e-4)


@pytest.mark.parametrize("call", CALLS, ids=CALLS.values())
def test_a_dead_process_ends_the_others_and_the_run_goes_on(
    call: int, tmp_path: Path, tiny_recipe: Callable, whole: Path
) -> None:
    content = deadly(tiny_recipe, tmp_path / "killed")
    kill(torchrun(PROCESSES), content, tmp_path, 2, call)
    again = launch(torchrun(PROCESSES), content)
    assert again.returncode == 0, again.stderr
    expected, found = columns(whole), columns(tmp_path / "killed")
    assert {name: values for name, values in expected.items() if name != "rows/where"} == {
        name: values for name, values in found.items() if name != "rows/where"
    }
    weights_agree(whole, tmp_path / "killed", 0)
    name = "run/evaluation/a_lol_seq-seed-0.jsonl"
    assert (whole / name).read_text() == (tmp_path / "killed" / name).read_text()


@pytest.mark.parametrize("configuration", ["fsdp2", "zero2", "zero3"])
def test_weights_in_parts_survive_a_dead_process(configuration: str, tmp_path: Path, tiny_recipe: Callable) -> None:
    """FSDP2 and DeepSpeed on two processes: checkpoints, continuation and saved weights are those of one process."""
    variables = {}
    if configuration.startswith("zero"):
        if not DEEPSPEED.is_dir():
            pytest.skip("DeepSpeed is not installed: `make faults` does it")
        path = os.pathsep.join(filter(None, [str(DEEPSPEED), os.environ.get("PYTHONPATH")]))
        variables = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
    launcher = accelerate(configuration, "tests.distributed.fsdp_on_cpu" if configuration == "fsdp2" else "leftover")
    content = deadly(tiny_recipe, tmp_path / "killed")
    kill(launcher, content, tmp_path, 1, A_CHECKPOINT, **variables)
    again = launch(launcher, content, **variables)
    assert again.returncode == 0, again.stderr
    assert "continues at checkpoint-2" in again.stdout + again.stderr
    run(make_recipe(deadly(tiny_recipe, tmp_path / "one", 2)), until="evaluate")
    weights_agree(tmp_path / "one", tmp_path / "killed", 1e-5)
