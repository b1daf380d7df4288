"""SIGTERM and Ctrl-C save a checkpoint; the same command goes on, to the files of a run that nothing disturbed."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import leftover.training.policy_trainer
import leftover.training.run
from leftover import cli, pipeline
from leftover.models.divergence import FrozenStart
from leftover.recipe.files import make_recipe
from leftover.training.ppo.trainer import PPOTrainer
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


def facts(run: Path) -> dict[str, Any]:
    """What the manifest notes of the policy."""
    return json.loads((run / "manifest.json").read_text())["policy a_lol_seq, seed 0"]


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


@pytest.mark.parametrize("where", ["last line", "weights", "twice"])
def test_a_signal_after_the_last_step_stops_and_what_follows_comes_once(
    recipe: dict[str, Any], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    shutil.copytree(recipe["output_dir"], tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"output_dir": str(tmp_path / "run")}))
    log = LoLTrainer.log

    def killed_log(self: LoLTrainer, logs: dict[str, float], *args: Any) -> None:
        if "train_loss" in logs:
            os.kill(os.getpid(), signal.SIGTERM)
        log(self, logs, *args)

    with monkeypatch.context() as patch:
        if where == "last line":
            patch.setattr(LoLTrainer, "log", killed_log)
        else:
            save = leftover.training.run.save_model

            def killed_save(*args: Any) -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                if where == "twice":
                    os.kill(os.getpid(), signal.SIGTERM)
                save(*args)

            patch.setattr(leftover.training.run, "save_model", killed_save)
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 128 + signal.SIGTERM
    caplog.clear()
    cli.main(["train", str(tmp_path / "recipe.yaml")])
    assert ("a_lol_seq, seed 0: kept from before" in caplog.text) == (where != "twice")
    ours, theirs = outcome(tmp_path / "run"), outcome(Path(recipe["output_dir"]).with_name("undisturbed"))
    assert all(theirs[0][name].equal(weights) for name, weights in ours[0].items())
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("where", ["to the reference", "back", "before it is logged", "logged", "logged at the end"])
def test_a_signal_anywhere_in_an_evaluation_leaves_the_policy_as_it_was_and_no_line_twice(
    recipe: dict[str, Any], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recipe["output_dir"], tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"output_dir": str(tmp_path / "run")}))
    calls = list[str]()

    def killing(method: Callable, name: str, at: int, before: bool) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            now = calls.count(name) == at
            if now and before:
                os.kill(os.getpid(), signal.SIGTERM)
            found = method(*args, **kwargs)
            if now and not before:
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        return wrapped

    with monkeypatch.context() as patch:
        if where == "to the reference":
            number = sum(1 for _ in FrozenStart(AutoModelForCausalLM.from_pretrained(recipe["model"]["path"])).weights)
            patch.setattr(FrozenStart, "_put_away", killing(FrozenStart._put_away, "put away", number + 3, True))
        elif where == "back":
            patch.setattr(FrozenStart, "restore", killing(FrozenStart.restore, "restore", 1, True))
        elif where == "before it is logged":
            patch.setattr(LoLTrainer, "log", killing(LoLTrainer.log, "log", 1, True))
        else:
            at = 1 if where == "logged" else 4  # of three evaluations and one line of steps before the last
            patch.setattr(LoLTrainer, "log", killing(LoLTrainer.log, "log", at, False))
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 128 + signal.SIGTERM
    cli.main(["train", str(tmp_path / "recipe.yaml")])
    undisturbed = Path(recipe["output_dir"]).with_name("undisturbed")
    ours, theirs = outcome(tmp_path / "run"), outcome(undisturbed)
    assert all(theirs[0][name].equal(weights) for name, weights in ours[0].items())
    assert ours[1:] == theirs[1:]
    steps = [[entry["step"] for entry in facts(run)["evaluations"]] for run in (tmp_path / "run", undisturbed)]
    assert steps[0] == steps[1] == [2, 4, 6]


def test_a_step_of_ppo_is_finished_before_it_is_saved(
    tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No checkpoint holds the completions of a PPO step, from the middle of which none could go on."""
    ppo = {"objective": "ppo", "max_steps": 8, "ppo_epochs": 2, "num_rollouts_per_step": 8, "learning_rate": 1e-3}
    content = tiny_recipe(
        tmp_path, policies={"p": ppo}, reference={"source": "path", "path": tiny_recipe(tmp_path)["model"]["path"]}
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    train, begun = PPOTrainer.training_step, list[int]()

    def training_step(self: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
        begun.append(self.state.global_step)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "training_step", training_step)
        with pytest.raises(SystemExit):
            cli.main(["train", str(tmp_path / "recipe.yaml")])
    said = capsys.readouterr().err
    stopped = int(said.split("stopped at step ")[1].split(" ")[0])
    assert stopped == 4, "eight completions in batches of four, twice"
    cli.main(["train", str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_reference_that_stops_early_trains_no_step_more(
    where: str, tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 0.3, "eval_steps": 1}
    content = tiny_recipe(tmp_path, reference={"train": train})
    for name in ("whole", "mine"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content | {"output_dir": str(tmp_path / name)}))
    cli.main(["prepare", str(tmp_path / "whole.yaml"), "--only", "reference"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole/reference/metrics.jsonl").read_text().splitlines()]
    last, killed = max(steps), list[int]()
    assert last < 6, "it stops early"
    with monkeypatch.context() as patch:
        if where == "step":
            inner = LoLTrainer.training_step

            def training_step(self: LoLTrainer, *args: Any, **kwargs: Any) -> Any:
                if self.state.global_step == last - 1 and not killed:
                    killed.append(1)
                    os.kill(os.getpid(), signal.SIGTERM)
                return inner(self, *args, **kwargs)

            patch.setattr(LoLTrainer, "training_step", training_step)
        else:
            evaluate = leftover.training.policy_trainer.evaluate_policy

            def evaluate_policy(*args: Any, **kwargs: Any) -> Any:
                killed.append(1)
                if len(killed) == last:
                    os.kill(os.getpid(), signal.SIGTERM)
                return evaluate(*args, **kwargs)

            patch.setattr(leftover.training.policy_trainer, "evaluate_policy", evaluate_policy)
        with contextlib.suppress(SystemExit):
            cli.main(["prepare", str(tmp_path / "mine.yaml"), "--only", "reference"])
    cli.main(["prepare", str(tmp_path / "mine.yaml"), "--only", "reference"])
    mine, whole = (load_file(tmp_path / name / "reference/model.safetensors") for name in ("mine", "whole"))
    assert all(whole[name].equal(weights) for name, weights in mine.items())
    again = [json.loads(line)["step"] for line in (tmp_path / "mine/reference/metrics.jsonl").read_text().splitlines()]
    assert again == steps


def test_a_checkpoint_saved_for_a_signal_is_not_chosen(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where fewer checkpoints are saved than evaluated, the best evaluation may have none."""
    cadence = {"max_steps": 6, "eval_steps": 1, "save_steps": 3, "metric_for_best_model": "nll"}
    mine = recipe | {"train": recipe["train"] | cadence}
    for name in ("whole", "mine"):
        shutil.copytree(recipe["output_dir"], tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(json.dumps(mine | {"output_dir": str(tmp_path / name)}))
    cli.main(["train", str(tmp_path / "whole.yaml")])
    train = LoLTrainer.training_step
    for step in (1, 2, 4):
        with monkeypatch.context() as patch:

            def training_step(self: LoLTrainer, *args: Any, _step: int = step, **kwargs: Any) -> Any:
                if self.state.global_step == _step - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                    patch.setattr(LoLTrainer, "training_step", train)
                return train(self, *args, **kwargs)

            patch.setattr(LoLTrainer, "training_step", training_step)
            with pytest.raises(SystemExit):
                cli.main(["train", str(tmp_path / "mine.yaml")])
    cli.main(["train", str(tmp_path / "mine.yaml")])
    ours, theirs = outcome(tmp_path / "mine"), outcome(tmp_path / "whole")
    assert all(theirs[0][name].equal(weights) for name, weights in ours[0].items())
    assert ours[1:] == theirs[1:]
