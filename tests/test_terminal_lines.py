"""What reaches the terminal is ours: no warning, log line or bar of another library, whatever a recipe asks for."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from leftover.cli import main
from tests.conftest import scored_rows, write_rows
from tests.rewards.test_fine_tuned import CONFIG

QUICK = {"max_steps": 1, "per_device_train_batch_size": 4}
CHECKPOINTING = QUICK | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python does by default


def run_quietly(arguments: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command as a user would; returns what it writes on stderr, in which there must be nothing of others."""
    capfd.readouterr(), caplog.clear()
    transformers.logging.enable_progress_bar()  # as it is until a command turns it off
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        for category in HIDDEN:
            warnings.simplefilter("ignore", category)
        main(arguments)
    assert [f"{w.filename}:{w.lineno}: {w.message}" for w in seen] == []
    others = [r for r in caplog.records if not r.name.startswith("leftover") and r.levelno >= logging.WARNING]
    assert [r.getMessage() for r in others] == []
    told = capfd.readouterr().err
    assert "it/s" not in told and "Warning" not in told
    return told


def kinds(folder: Path, llama: str, gpt2: str) -> dict[str, dict[str, Any]]:
    rows = scored_rows(40)
    pairs = [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
        for a, b in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    chats = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in rows
    ]
    texts = [{"type": "text", "function": name} for name in ("length", "vader", "tfidf_diversity")]
    fit = {"path": write_rows(folder / "fit.jsonl", rows)}
    fitted = [
        {"type": "linear", "fit": fit, "name": "of_scores"},
        {"type": "fine_tuned", "fit": fit, "config": CONFIG, "tokenizer": llama,
         "train": {"num_train_epochs": 1, "gradient_checkpointing": True}},
    ]  # fmt: skip
    found: dict[str, dict[str, Any]] = {
        "an adapter of GPT-2, bf16, checkpointing": {
            "model": {"path": gpt2, "lora": {"r": 2}},
            "reference": {"train": CHECKPOINTING},
            "train": CHECKPOINTING | {"bf16": True},
        },
        "online, groups, extras": {
            "policies": {
                "ppo": {"objective": "ppo", "num_mini_batches": 1},
                "kto": {"objective": "kto"},
                "qrpo": {"objective": "qrpo", "reference_samples": 2},
            },
            "reward": {"functions": texts},
        },
        "pairs, rewards of our own fitting": {
            "rows": pairs,
            "policies": {"dpo": {"objective": "dpo"}},
            "reward": {"functions": [*fitted, {"type": "linear", "fit": "rows", "name": "of_pairs"}]},
        },
        "conversations": {
            "rows": chats,
            "model": {"path": llama, "chat_template": "plain"},
            "reward": {"functions": texts},
        },
    }
    if importlib.util.find_spec("bitsandbytes"):
        found["4-bit weights"] = {"model": {"path": llama, "quantization": "nf4", "lora": {"r": 2}}}
    return found


@pytest.mark.parametrize("kind", range(5), ids=["adapter", "online", "pairs", "conversations", "nf4"])
def test_a_run_writes_nothing_of_other_libraries(
    kind: int, tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str, tiny_gpt2_path: str, caplog: Any, capfd: Any
) -> None:
    found = kinds(tmp_path, tiny_llama_path, tiny_gpt2_path)
    if kind >= len(found):
        pytest.skip("bitsandbytes is not installed")
    sections: dict[str, Any] = list(found.values())[kind]
    recipe = tiny_recipe(tmp_path, **({"reference": {"train": QUICK}, "train": QUICK} | sections))
    recipe["value"]["candidates"] = ["constant", "ridge", "head"]
    recipe["value"]["head_epochs"] = 1
    recipe["evaluate"] = {"max_prompts": 2, "max_selection_prompts": 2, "max_new_tokens": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_quietly(["run", str(path), "--dry-run"], caplog, capfd)
    run_quietly(["run", str(path)], caplog, capfd)
    run = str(tmp_path / "run")
    run_quietly(["export", run, *(["--merge"] if kind == 0 else [])], caplog, capfd)
    run_quietly(["report", run], caplog, capfd)
    if kind == 1:
        run_quietly(["inspect", run], caplog, capfd)
        out = str(tmp_path / "more.jsonl")
        run_quietly(["generate", run, "--n", "2", "--output", out, "--unfinished", "keep"], caplog, capfd)
        assert json.loads(Path(out).read_text().splitlines()[0])
