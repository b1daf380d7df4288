"""Times of the dry run: those of this machine against a run, those of a published device against its numbers."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from leftover import cli, pipeline
from leftover.commands.dry_run import here
from leftover.commands.dry_run.estimate import Work, estimate_run
from leftover.commands.dry_run.pace import DEVICES, HERE, Pace, device_name, exchange
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from tests.commands.dry_run.test_scorers import fine_tuned

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


def miniature(name: str, folder: Path, tiny_recipe: Callable, tiny_gpt2_path: str) -> dict[str, Any]:
    """Three recipes in which the work of the steps is most of a run of seconds."""
    train = {"max_steps": 150, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    more: dict[str, Any] = {"train": train, "reference": {"train": train}}
    if name == "deep":  # more layers than are built
        model = {"path": None, "config": LLAMA | {"num_hidden_layers": 9}, "tokenizer": {"vocab_size": 300}}
        more |= {"model": model, "train": train | {"max_steps": 60}, "reference": {"train": train | {"max_steps": 60}}}
    if name == "scorer":
        spec = fine_tuned(folder, tiny_gpt2_path)
        more |= {"reward": {"functions": [spec | {"train": {"max_steps": 100, "per_device_train_batch_size": 8}}]}}
    return tiny_recipe(folder, **more)


@pytest.mark.parametrize("name", ["shallow", "deep", "scorer"])
def test_times_of_this_machine_are_those_of_a_run(
    name: str, tmp_path: Path, tiny_recipe: Callable, tiny_gpt2_path: str
) -> None:
    recipe = make_recipe(miniature(name, tmp_path, tiny_recipe, tiny_gpt2_path))
    found = []
    for attempt in range(3):  # other processes may take a core away from one of the two
        recipe = recipe.model_copy(update={"output_dir": str(tmp_path / str(attempt))})
        told = [_trainings_told(recipe)]
        pipeline.run(recipe, until="train")
        told.append(_trainings_told(recipe))
        costs = json.loads((tmp_path / str(attempt) / "manifest.json").read_text())
        taken = sum(
            _seconds(entry) for stage, entry in costs.items() if stage.startswith(("reference", "policy", "rew"))
        )
        found.append((*told, taken))
        if min(told) / 1.5 <= taken <= 1.5 * max(told):
            return
    pytest.fail(f"told before and after, and taken: {found}")


def _trainings_told(recipe: Any) -> float:
    work = estimate_run(recipe, "train", with_memory=False, device=HERE).work
    assert all(line.seconds is not None for line in work if line.operations is not None)
    parts = ("train", "fit", "validation", "  their rewards")
    return sum(line.seconds or 0.0 for line in work if line.what.startswith(parts))


def _seconds(entry: dict[str, Any]) -> float:
    return float((entry.get("cost") or entry).get("seconds") or 0.0)


@pytest.mark.parametrize(
    ("kinds", "few"),
    [
        (["linear_attention"] * 3 + ["full_attention"], ["full_attention", "linear_attention"]),
        (["sliding_attention"] * 3 + ["full_attention"], ["sliding_attention"] * 2),
        (["linear_attention"] * 4, ["linear_attention"] * 2),
    ],
)
def test_the_few_layers_of_a_hybrid_hold_a_cache(kinds: list[str], few: list[str]) -> None:
    from transformers import PretrainedConfig

    config: Any = PretrainedConfig(num_hidden_layers=4, layer_types=kinds)
    assert here._shortened(config, 1).layer_types == few[:1]
    assert here._shortened(config, 2).layer_types == few
    assert config.layer_types == kinds


def test_layers_that_are_not_built_are_counted() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**LLAMA | {"num_hidden_layers": 12, "vocab_size": 50})
    built = []

    def build(shortened: Any) -> Any:
        from transformers import AutoModelForCausalLM

        built.append(shortened.num_hidden_layers)
        return AutoModelForCausalLM.from_config(shortened)

    # 5 beside the layers, 2 each; one that seems to take less than nothing takes nothing.
    found = here.by_layers(config, build, lambda model: [5 + 2 * len(model.model.layers), 9 - len(model.model.layers)])
    assert found == [5 + 2 * 12, 8]
    assert max(built) == 5 and config.num_hidden_layers == 12
    few = AutoConfig.for_model(**LLAMA | {"num_hidden_layers": 3, "vocab_size": 50})
    assert here.by_layers(few, build, lambda model: [len(model.model.layers)]) == [3]


def test_a_published_device_is_bound_by_arithmetic_memory_or_its_calls(tiny_recipe: Callable, tmp_path: Path) -> None:
    from leftover.commands.dry_run.shape import find_config, measure
    from leftover.commands.dry_run.trace import skeleton
    from leftover.models.load import torch_dtype
    from leftover.recipe.sections import ModelSection

    config, _ = find_config(ModelSection(path="huggyllama/llama-7b"))
    shape = measure(skeleton(config, None, torch_dtype("bfloat16")), config, False)
    pace = DEVICES["h100"].pace(shape, 1000)
    # 6.7e9 weights of 2 bytes at 60 % of .3 TB/s; on an h100 the calls of 32 layers take longer.
    assert DEVICES["l4"].pace(shape, 1000).decode_step == pytest.approx(6.74e9 * 2 / (0.6 * 0.3e12), rel=0.01)
    assert pace.decode_step == pytest.approx(32 * 5e-4)
    # 32 layers with keys and values of 4,096 numbers of 2 bytes, of 1,000 tokens.
    assert pace.decode_row == pytest.approx(1000 * 32 * 2 * 4096 * 2 / (0.6 * 3.35e12), rel=0.01)
    assert pace.steps(1e15, 100) == pytest.approx(1e15 / (0.4 * 989e12) + 100 * 32 * 1.5e-3)
    assert pace.passes(1e12, 3 * 16_384) == pytest.approx(1e12 / (0.5 * 989e12) + 3 * 32 * 5e-4)
    # 130 completions of 10 tokens, 64 at once: three batches.
    assert Pace(1, 1, 2, 0.5).decoding(130, 10, 64) == 10 * (3 * 2 + 130 * 0.5)
    # All gradients twice through 50 GB/s.
    assert exchange(shape, 10) == pytest.approx(10 * 2 * 6.74e9 * 2 / 5e10, rel=0.01)


def test_several_devices_share_all_but_fits() -> None:
    training = Work("train policies", "", 1e15, False, 80.0, exchange=8.0)
    assert [training.seconds_on(n) for n in (1, 8)] == [80, 11]
    assert dataclasses.replace(training, shared=False).seconds_on(8) == 80
    assert dataclasses.replace(training, seconds=None).seconds_on(8) is None
    # A token needs its decoding step on any number of devices: ten tokens of one batch at 2 s, and 130 rows at .5 s.
    pace = Pace(1, 1, 2, 0.5)
    written = Work("samples", "", None, True, pace.decoding(130, 10, 64), waits=partial(pace.decode_waits, 130, 10, 64))
    assert [written.seconds_on(n) for n in (1, 8)] == [10 * (3 * 2 + 65), 10 * (2 + 65 / 8)]


def test_the_hours_count_smaller_batches_of_completions_and_those_of_ppo(tiny_recipe: Callable, tmp_path: Path) -> None:
    def seconds(**settings: Any) -> dict[str, float | None]:
        found = estimate_run(make_recipe(tiny_recipe(tmp_path, **settings)), with_memory=False, device="h100")
        return {line.what: line.seconds for line in found.work}

    many, one = seconds(), seconds(evaluate={"max_batch_tokens": 40})
    assert one["value: samples of the reference"] > 10 * many["value: samples of the reference"]
    ppo = {"ppo": {"objective": "ppo", "max_steps": 4, "rollout_batch_size": 8}}
    quick, slow = seconds(policies=ppo), seconds(policies=ppo, evaluate={"max_batch_tokens": 40})
    assert slow["train policies"] > 2 * quick["train policies"]


def test_the_tables_name_the_device(tiny_recipe: Callable, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("leftover.commands.dry_run.memory.try_to_trace", lambda *args: None)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny_recipe(tmp_path)))
    shown = CliRunner().invoke(cli.cli, ["run", str(path), "--dry-run"])
    assert "this machine" in shown.output and "64 x" not in shown.output, shown.output
    shown = CliRunner().invoke(cli.cli, ["run", str(path), "--dry-run", "--device", "H100"])
    assert "64 x h100" in shown.output and "this machine" not in shown.output.split("Times are")[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--dry-run", "--device", "h10"], ["--device", "h100"]])
def test_a_device_that_is_not_known_or_not_asked_for_is_refused(
    arguments: list[str], tiny_recipe: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny_recipe(tmp_path)))
    result = CliRunner().invoke(cli.cli, ["run", str(path), *arguments])
    assert isinstance(result.exception, UserError)
    assert "did you mean 'h100'" in str(result.exception) or "--dry-run" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_names_of_devices_are_read_as_people_write_them() -> None:
    assert [device_name(name) for name in ("H100", "RTX 4090", "l40s")] == ["h100", "rtx4090", "l40s"]
