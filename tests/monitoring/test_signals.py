"""SIGTERM and Ctrl-C save a checkpoint; the same command goes on, to the files of a run that nothing disturbed."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import leftover.training.policy_trainer
from leftover import cli, pipeline
from leftover.recipe.files import make_recipe
from leftover.training.trainer import LoLTrainer

STEPS = {"max_steps": 6, "logging_steps": 4, "eval_steps": 2, "save_steps": 2, "gradient_accumulation_steps": 2}
_TIMES = ("runtime", "seconds", "per_second")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A prepared recipe; its policy is trained, undisturbed, in a copy of its folder, `undisturbed`."""
    folder = tmp_path_factory.mktemp("signals")
    content = tiny_recipe(folder, train=STEPS | {"per_device_train_batch_size": 4, "learning_rate": 1e-3})
    pipeline.run(make_recipe(content), until="prepare")
    shutil.copytree(folder / "run", folder / "undisturbed")
    pipeline.run(make_recipe(content | {"output_dir": str(folder / "undisturbed")}), until="train")
    return content


def outcome(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Weights, lines of the log without times, and what was written at evaluations."""
    folder = run / "policies/a_lol_seq/seed-0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if not any(time in k for time in _TIMES)} for line in lines]
    return load_file(folder / "model.safetensors"), lines, (folder / "evaluations.jsonl").read_text().splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("where", "step"), [("step", 3), ("step", 4), ("step", 6), ("evaluation", 2), ("evaluation", 6)]
)
def test_a_signal_saves_and_the_same_command_ends_as_if_nothing_had_happened(
    recipe: dict[str, Any],
    where: str,
    step: int,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = recipe | {"output_dir": str(tmp_path / "run")}
    shutil.copytree(recipe["output_dir"], tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(json.dumps(mine))
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        if where == "step":
            train = LoLTrainer.training_step

            def training_step(self: LoLTrainer, *args: Any, **kwargs: Any) -> Any:
                if self.state.global_step == step - 1:
                    os.kill(os.getpid(), number)
                    patch.setattr(LoLTrainer, "training_step", train)
                return train(self, *args, **kwargs)

            patch.setattr(LoLTrainer, "training_step", training_step)
        else:
            evaluate, count = leftover.training.policy_trainer.evaluate_policy, list[int]()

            def evaluate_policy(*args: Any, **kwargs: Any) -> Any:
                count.append(1)
                if len(count) == step // STEPS["eval_steps"]:
                    os.kill(os.getpid(), number)
                return evaluate(*args, **kwargs)

            patch.setattr(leftover.training.policy_trainer, "evaluate_policy", evaluate_policy)
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 128 + number
    assert f"stopped at step {step} of 6, which is saved; the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    cli.main(["train", str(tmp_path / "recipe.yaml")])
    ours, theirs = outcome(tmp_path / "run"), outcome(Path(recipe["output_dir"]).with_name("undisturbed"))
    assert all(theirs[0][name].equal(weights) for name, weights in ours[0].items())
    assert ours[1] == theirs[1], "line for line but times"
    assert ours[2] == theirs[2]
