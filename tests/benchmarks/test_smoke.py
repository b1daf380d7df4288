"""Every script and every contestant of the benchmarks takes a step; a new script without a run here fails."""

import importlib
import importlib.util
import json
import logging
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pyarrow import parquet

import benchmarks
from benchmarks import dry_run_memory, end_to_end, gpu, launches, others, report, reproduction, rows, shapes, steps
from benchmarks.contestants import CONTESTANTS
from benchmarks.models import SHAPES, build_llama, write_tiny
from benchmarks.setting import Setting, scored_rows
from leftover.cli import cli

FOLDER = Path(benchmarks.__file__).parent
SCRIPTS = sorted(
    path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh") and '"__main__"' in path.read_text()
)
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """Scripts silence logs and warnings for good."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(1)


def run(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    importlib.import_module(module).main()


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a tiny model with a chat template, for which there are no HH files."""
    monkeypatch.setattr(rows, "answers", lambda: None)
    return write_tiny(tmp_path / "model")


def params(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[needs_trl] * name.startswith("trl")) for name in names]


@pytest.mark.parametrize("name", params(CONTESTANTS))
def test_every_contestant_takes_a_step(name: str) -> None:
    check_steps(name, Setting("tiny", steps=2))


@pytest.mark.parametrize("name", params(CONTESTANTS))
def test_every_contestant_takes_a_step_on_a_real_model(name: str, tiny_model: str) -> None:
    check_steps(name, Setting(tiny_model, precision="bf16 autocast", lora=True, batch=4, steps=2))


@pytest.mark.parametrize("name", params(["ours, LoRA", "released method", "trl"]))
def test_every_contestant_of_the_gpu_takes_a_step(name: str) -> None:
    setting = Setting("tiny", gpu.VOCABULARY, precision="bf16", batch=4, steps=2)
    entry = gpu.entries(setting, warmup=1)[name.replace("trl", "TRL SFT")]
    check_steps(entry.contestant, entry.setting)
    assert gpu.flops(entry.setting, [(6, 4)]) > 0


def check_steps(name: str, setting: Setting) -> None:
    [(seconds, lengths)] = CONTESTANTS[name](setting)
    assert seconds > 0 and len(lengths) == setting.batch * (1 + name.startswith("trl_dpo"))
    assert all(prompt > 0 and completion > 0 for prompt, completion in lengths)


@pytest.mark.parametrize("name", params(end_to_end.CONTESTANTS))
def test_every_way_from_raw_rows_gives_the_same_numbers(name: str, tiny_model: str, tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    end_to_end.write_rows(tiny_model, raw, (6, 2, 3))
    task = end_to_end.Task(tiny_model, str(raw), str(tmp_path), steps=1, batch=4, max_new_tokens=4)
    found = end_to_end.CONTESTANTS[name](task)
    assert set(found) == {"reference", "policy"}
    for numbers in found.values():
        assert set(numbers) == set(end_to_end.NAMES) and all(map(math.isfinite, numbers.values()))
        assert numbers["own_perplexity_under_reference"] > 1 and 0 < numbers["length"] <= 4
    assert found["reference"]["kl"] == 0 != found["policy"]["kl"]


def smoke_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    setting = {"model": "tiny", "precision": "bf16 autocast", "steps": 3}
    run(monkeypatch, "benchmarks.worker", "ceiling", json.dumps(setting))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["seconds"]) == len(found["lengths"]) == 2 and found["peak_mib"] > 0


def smoke_end_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(end_to_end.CONTESTANTS, "ours", lambda task: {"policy": {"kl": float(task.steps)}})
    task = {"model": "m", "rows": "r", "folder": "f", "steps": 7}
    run(monkeypatch, "benchmarks.end_to_end", "ours", json.dumps(task))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["numbers"] == {"policy": {"kl": 7.0}} and found["peak_mib"] > 0


def smoke_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "run_worker", small_work)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run(monkeypatch, "benchmarks.gpu", "--tiny", "--device", "cpu")
    written = capsys.readouterr().out
    assert "failed" not in written and all(name in written for name in ("| ours, LoRA |", "| TRL SFT |"))


def small_work(entry: steps.Entry, seed: int) -> dict[str, Any]:
    return {"seconds": [1.0], "lengths": [[(6, 4)]], "peak_mib": 500.0}


def test_the_check_of_launches_tells_weights_that_are_not_those_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inside(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        cli.main(command[command.index("leftover") + 1 :], standalone_mode=False)
        return subprocess.CompletedProcess(command, 0, "", "")

    ways = [("one process", [], None, {}), ("again", [], None, {}), ("half the rows", ["torchrun"], None, {})]
    monkeypatch.setattr(launches, "ways", lambda *_: [*ways, ("nothing", [], "is not installed", {})])
    monkeypatch.setattr(launches.subprocess, "run", inside)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "benchmarks.gpu", "--check", "--device", "cpu")
    told = capsys.readouterr().out
    assert stop.value.code == 1
    assert "| again | weights within 0.0e+00 of one process |" in told
    assert re.search(r"\| half the rows \| FAILED: weights are \d\.\de-0\d away from those of one process \|", told)
    assert "| nothing | is not installed |" in told


def test_the_reproduction_on_a_gpu_tried_out_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        """In this process, which has imported everything already."""
        assert command[1:3] == ["-m", "leftover.cli"]
        return subprocess.CompletedProcess(command, CliRunner().invoke(cli, command[3:]).exit_code)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(reproduction.subprocess, "run", here)
    options = ("--real", "--tiny", "--device", "cpu", "--methods", "nll,a_lol_seq", "--seeds", "1")
    run(monkeypatch, "benchmarks.gpu", *options)
    written = capsys.readouterr().out
    assert "Nothing is missing" in written and "| `a_lol_seq` |" in written and "minutes, seed by seed" in written
    assert not reproduction.WRITTEN.exists() or "CPU" not in reproduction.WRITTEN.read_text()


def test_a_comparison_that_takes_too_long_is_cut_off_and_one_that_fails_ends_the_script(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(reproduction.tiny_recipe(tmp_path))
    assert reproduction.compare(recipe, tmp_path / "run", "nll", 1, 1, timeout=0.01) is None
    with pytest.raises(SystemExit, match="failed with status"):
        reproduction.compare(tmp_path / "missing.yaml", tmp_path / "run", "nll", 1, 1)


def test_the_recipe_of_the_reproduction_names_the_models_that_are_replaced() -> None:
    recipe = reproduction.RECIPE.read_text()
    assert f"path: {reproduction.MODEL}\n" in recipe and f"model: {reproduction.ENCODER}\n" in recipe


@pytest.mark.parametrize(
    ("finished", "asked", "took"),
    [
        (2, [("all", 1), ("all", 2), ("all", 3)], [5.0, 5.0]),  # the third is cut off
        (0, [("all", 1), ("a,b", 1)], [65.0]),  # the first is: those that are finished remain
    ],
)
def test_what_is_not_finished_in_time_is_missing(
    finished: int, asked: list[tuple[str, int]], took: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, int]] = []

    def compare(recipe: Path, folder: Path, methods: str, seeds: int, jobs: int, timeout: float | None = None) -> Any:
        calls.append((methods, seeds))
        return 5.0 if len(calls) <= finished or timeout is None else None

    monkeypatch.setattr(reproduction, "compare", compare)
    monkeypatch.setattr(reproduction, "methods_of", lambda folder: (["a", "b", "c"], ["a", "b"]))
    found = reproduction.in_time(tmp_path / "recipe.yaml", tmp_path, "all", 3, 1, 60)
    assert calls == asked and found == (took, ["a", "b", "c"])


def smoke_dry_run_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(dry_run_memory, "ROWS", 1)
    monkeypatch.setattr(dry_run_memory, "VOCABULARY", 600)  # of the demonstration's tokenizer
    for what in ("planned", "tensors", "process"):
        dry_run_memory._worker(what, ("llama", what == "process", True, False, 6, 2, 1))
    planned, *measured = (float(line) for line in capsys.readouterr().out.splitlines() if line.isdigit())
    assert planned > 0 and len(measured) == 2


def smoke_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The whole of `make bench`, with every process replaced by small work in this one."""

    def small(vocabulary: int, **_: Any) -> Any:
        return build_llama(vocabulary, **SHAPES["tiny"])

    monkeypatch.setattr(rows, "answers", lambda: None)
    monkeypatch.setattr(steps, "run_worker", small_work)
    for module in (others, report):
        monkeypatch.setattr(module, "scored_rows", lambda _: scored_rows("tiny"))
    monkeypatch.setattr(others, "build_llama", small)
    for name, size in {"HEAD_EPOCHS": 3, "HEAD_PROMPTS": 16, "NUM_ROWS": 16}.items():
        monkeypatch.setattr(others, name, size)
    monkeypatch.setattr(others, "SHARED", tmp_path)  # without the real model: generation has none to compare
    line = {"what": "x", "seconds": 0.1, "spread": [0.1], "bar": "< 1 s"}
    monkeypatch.setattr(others, "import_times", lambda: [line])
    monkeypatch.setattr(others, "many_rows_apart", lambda size: others.many_rows(120, tmp_path) | {"rows": size})
    monkeypatch.setattr(report, "load_rows", lambda _="": ([], "tiny rows"))
    monkeypatch.setattr(report, "matrix_rate", lambda *_: 1e12)
    numbers = dict.fromkeys(("reference", "policy"), dict.fromkeys(end_to_end.NAMES, 1.0))
    monkeypatch.setattr("benchmarks.process.result_of", lambda *_: {"numbers": numbers, "peak_mib": 1.0})
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path / "results.md")
    run(monkeypatch, "benchmarks.__main__", "--turns", "1", "--real", str(tmp_path))
    written = (tmp_path / "results.md").read_text()
    assert "tiny rows" in written and "reference pass" in written and "100,000" in written
    assert "real model" not in written and "get_models.py" in capsys.readouterr().out

    run(monkeypatch, "benchmarks.__main__", "--turns", "1", "--only", "real", "--real", write_tiny(tmp_path / "model"))
    written = (tmp_path / "results.md").read_text()
    assert "A real model: model" in written and "end to end against TRL DPO" in written and "100,000" in written
    assert re.findall("^## (.*?)(?::.*)?$", written, re.M) == ["Training step", "A real model", "Everything else"]
    assert written.count(", one thread.") == 3, "each says where it was measured"
    run(monkeypatch, "benchmarks.__main__", "--turns", "1", "--only", "others")
    assert len((tmp_path / "results.md").read_text().splitlines()) == len(written.splitlines())


def smoke_many_rows(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    def measured(size: int, recorded: bool) -> dict[str, Any]:
        folder = tmp_path / str(size)
        folder.mkdir()
        return others.many_rows(120, folder, recorded) | {"rows": size}

    monkeypatch.setattr(others, "many_rows_apart", measured)
    run(monkeypatch, "benchmarks.many_rows", "1000")
    assert "| 1,000 | " in capsys.readouterr().out


def smoke_shapes(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    def measured(shape: str, size: int) -> dict[str, float]:
        folder = tmp_path / shape
        folder.mkdir()
        return shapes.whole_run(shape, size, folder)

    monkeypatch.setattr(shapes, "apart", measured)
    monkeypatch.setattr(shapes, "LONG_WORDS", 40)
    run(monkeypatch, "benchmarks.shapes", "--rows", "400")
    told = capsys.readouterr().out
    assert all(f"| {shape} | {40 if 'long' in shape else 400} | " in told for shape in shapes._SHAPES)
    assert parquet.ParquetFile(tmp_path / "row groups/rows.parquet").num_row_groups == 200


SMOKE: dict[str, Callable[..., None]] = {
    "__main__.py": smoke_all,
    "dry_run_memory.py": smoke_dry_run_memory,
    "end_to_end.py": smoke_end_to_end,
    "gpu.py": smoke_gpu,
    "many_rows.py": smoke_many_rows,
    "shapes.py": smoke_shapes,
    "worker.py": smoke_worker,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script in SMOKE, f"benchmarks/{script} has no run of its own here: add one to SMOKE"
    SMOKE[script](monkeypatch, capsys, tmp_path)


def test_the_scripts_are_found() -> None:
    assert sorted(SMOKE) == SCRIPTS
