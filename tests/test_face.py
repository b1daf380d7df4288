"""What users import from `leftover` itself."""

import importlib
import subprocess
import sys

import pytest

import leftover

PROMISED = (
    *("LoLTrainer", "LoLConfig", "PPOTrainer", "PPOConfig", "run", "load_recipe", "OBJECTIVES", "CompletionBatch"),
    *("completion_logprobs", "ValueHead", "advantage", "leftover_mask", "draw_batches", "DrawOrder", "load_reward"),
    *("distinct_n", "bootstrap_interval", "win_rate"),
    *("inspect", "select", "compare", "generate", "judge"),
)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_are_importable(name: str) -> None:
    assert name in leftover.__all__ and name in dir(leftover)
    assert callable(getattr(leftover, name)) or name == "OBJECTIVES"


@pytest.mark.parametrize("module", ["objectives", "metrics", "rewards"])
def test_promised_modules_keep_their_paths(module: str) -> None:
    importlib.import_module(f"leftover.{module}")


def test_no_room_has_the_name_of_a_function() -> None:
    """Importing a room called `run` would put the module in the place of the function `leftover.run`."""
    importlib.import_module("leftover.runs.run")
    assert callable(leftover.run) and leftover.run.__module__ == "leftover.api"


def test_importing_leftover_loads_nothing_heavy() -> None:
    script = "import leftover, sys; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LolTrainer"):
        leftover.LolTrainer  # noqa: B018
