"""What is started by a launcher: which commands, and which processes meet."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from leftover import cli
from leftover.errors import UserError
from leftover.monitoring import ranks
from leftover.recipe.files import make_recipe
from leftover.runs.claim import check_launch, open_run

CONFIGURATIONS = sorted(Path("recipes/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("verb", ["compare", "demo", "judge", "inspect"])
def test_commands_that_share_nothing_are_refused(verb: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "x", "--bad"] if verb != "demo" else [verb])
    assert stop.value.code == 2
    assert f"leftover {verb} runs in one process, and a launcher has started 2" in capsys.readouterr().err


def test_processes_that_do_not_meet_are_refused_before_anything_is_written(
    monkeypatch: Any, tmp_path: Path, tiny_recipe: Any
) -> None:
    """Each would take itself for the only one, and all would write into one folder."""
    content = tiny_recipe(tmp_path)
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")  # this test process has met nobody
    with pytest.raises(
        UserError, match=r"has started 2 processes .* this one sees 1: start with `torchrun -m leftover`"
    ):
        open_run(make_recipe(content))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, r"has started 4 processes \(OMPI_COMM_WORLD_SIZE\) and told none of its rank"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, r"has started 2 processes \(SLURM_STEP_NUM_TASKS\)"),
        (
            # accelerate launch --cpu --num_processes 2
            {"ACCELERATE_USE_CPU": "True", "KMP_AFFINITY": "compact", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch was asked for several processes, and has started one",
        ),
    ],
    ids=["mpirun", "srun", "accelerate on CPUs"],
)
def test_launchers_that_tell_no_rank_are_refused_before_anything_is_written(
    variables: dict[str, str], said: str, monkeypatch: Any, tmp_path: Path, tiny_recipe: Any
) -> None:
    content = tiny_recipe(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{said}.*: start with `torchrun .* set WORLD_SIZE=1"):
        open_run(make_recipe(content))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    open_run(make_recipe(content)).close()


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, None),
    ],
)
def test_four_bit_weights_in_parts_are_refused(
    variables: dict[str, str], kind: str | None, monkeypatch: Any, tmp_path: Path, tiny_recipe: Any
) -> None:
    content = tiny_recipe(tmp_path)
    content["model"] |= {"quantization": "nf4", "lora": {}}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = make_recipe(content)
    if kind is None:
        check_launch(recipe)
        return
    with pytest.raises(UserError, match=rf"model\.quantization: {kind} cannot part 4-bit weights: launch whole models"):
        open_run(recipe)
    assert not (tmp_path / "run").exists()


def test_an_error_of_another_process_names_it(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit):
        cli.main(["compare", "x"])
    assert capsys.readouterr().err.startswith("error (process 2 of 3): ")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "two_nodes": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert str(found.distributed_type).rpartition(".")[2] == kinds[path.stem]
    assert found.num_processes == 8 * found.num_machines


def test_one_process_is_alone(monkeypatch: Any) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (ranks.processes(), ranks.told(5), ranks.shared(list, "ab")) == (1, 5, ["a", "b"])
