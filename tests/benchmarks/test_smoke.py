"""Every script and every contestant of the benchmarks takes a step; a new script without a run here fails."""

import importlib
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks
from benchmarks import contestants, dry_run_memory, gpu, others, report, steps
from benchmarks.contestants import CONTESTANTS, Setting, scored_rows
from benchmarks.models import TINY, build_llama

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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_trl] if name.startswith("trl") else []) for name in CONTESTANTS]
)
def test_every_contestant_takes_a_step(name: str) -> None:
    measured = list(CONTESTANTS[name](Setting(50_257, bf16=False, steps=2, seed=0, tiny=True)))
    assert len(measured) == 1 and all(seconds > 0 and tokens > 0 for seconds, tokens in measured)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[needs_trl] * (n == "trl_sft")) for n in gpu.CONTESTANTS])
def test_every_contestant_of_the_gpu_takes_a_step(name: str) -> None:
    found = gpu.contest(name, gpu.TINY, "cpu", steps=2, warmup=0, batch_size=4)
    assert found["completion_tokens_s"] > 0 and found["flops_s"] > 0


def smoke_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(monkeypatch, "benchmarks.worker", "ceiling", "--tiny", "--bf16", "--steps", "3")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["seconds"]) == 2 and found["peak_mib"] > 0


def smoke_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny = ["--tiny", "--device", "cpu", "--batch", "4", "--steps", "2", "--warmup", "0"]
    run(monkeypatch, "benchmarks.gpu", "--contestant", "released", *tiny)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tokens_s"] > 0


def smoke_dry_run_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(dry_run_memory, "ROWS", 1)
    monkeypatch.setattr(dry_run_memory, "VOCABULARY", 600)  # of the demonstration's tokenizer
    for what in ("planned", "tensors", "process"):
        dry_run_memory._worker(what, ("llama", what == "process", True, False, 6, 2, 1))
    planned, *measured = (float(line) for line in capsys.readouterr().out.splitlines() if line.isdigit())
    assert planned > 0 and len(measured) == 2


def smoke_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The whole of `make bench`, with every process replaced by small work in this one."""

    def rows(tiny: bool = True) -> list[dict[str, Any]]:
        return scored_rows(tiny=True)

    def small(vocabulary: int, **_: Any) -> Any:
        return build_llama(vocabulary, **TINY)

    def worker(entry: steps.Entry, seed: int) -> dict[str, Any]:
        return {"seconds": [1.0], "tokens": [100], "peak_mib": 500.0}

    monkeypatch.setattr(steps, "run_worker", worker)
    for module in (contestants, others, report):
        monkeypatch.setattr(module, "scored_rows", rows)
    monkeypatch.setattr(others, "build_llama", small)
    for name, size in {"HEAD_EPOCHS": 3, "HEAD_PROMPTS": 16, "NUM_ROWS": 16}.items():
        monkeypatch.setattr(others, name, size)
    monkeypatch.setattr(others, "SHARED", tmp_path)  # without the real model: generation has none to compare
    line = {"what": "x", "seconds": 0.1, "spread": [0.1], "bar": "< 1 s"}
    monkeypatch.setattr(others, "import_times", lambda: [line])
    monkeypatch.setattr(others, "many_rows_apart", lambda size: others.many_rows(120, tmp_path) | {"rows": size})
    monkeypatch.setattr(report, "load_rows", lambda: (rows(), "tiny rows"))
    monkeypatch.setattr(contestants, "load_rows", lambda: (rows(), "tiny rows"))
    monkeypatch.setattr(report, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path / "results.md")
    monkeypatch.setattr("benchmarks.__main__.PARTS", tmp_path / "parts")
    run(monkeypatch, "benchmarks.__main__", "--turns", "1")
    written = (tmp_path / "results.md").read_text()
    assert "tiny rows" in written and "reference pass" in written and "100,000" in written


SMOKE: dict[str, Callable[..., None]] = {
    "__main__.py": smoke_all,
    "dry_run_memory.py": smoke_dry_run_memory,
    "gpu.py": smoke_gpu,
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
