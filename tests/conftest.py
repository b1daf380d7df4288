"""What the tests share: a tokenizer, two random models and a fast recipe, all made in code."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

# Before any Hugging Face library is imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from leftover.demo.grammar import make_rows, score_answers
from leftover.demo.run import train_tokenizer
from tests.browser import browser  # noqa: F401 (a fixture)

torch.set_num_threads(1)

MAX_POSITIONS = 128

Rows = Sequence[dict[str, Any] | str]


def pytest_collection_finish() -> None:
    """What is imported stays: no collection of garbage has to look through its half a million objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of the demonstration's grammar: <s>, </s>, <pad>; pads on the left."""
    return train_tokenizer([row["prompt"] + row["completion"] for row in make_rows(200, seed=0)])


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """A folder with a random Llama (hidden 32, 2 layers, 128 positions) and the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **_special(tokenizer),
    )
    return _save(LlamaForCausalLM, config, tokenizer, tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_gpt2_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """A folder with a random GPT-2 (learned positions, dropout 0.1 as released) and the tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=MAX_POSITIONS, **_special(tokenizer))
    return _save(GPT2LMHeadModel, config, tokenizer, tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., str]:
    """`rows_file(rows, name="rows.jsonl")` writes rows (a string is a raw line) and returns the path."""

    def write(rows: Rows, name: str = "rows.jsonl") -> str:
        return write_rows(tmp_path / name, rows)

    return write


@pytest.fixture(scope="session")
def tiny_recipe(tiny_llama_path: str) -> Callable[..., dict[str, Any]]:
    """`tiny_recipe(folder, rows=None, **overrides)`: a recipe dictionary whose whole run takes seconds.

    Its rows (default: 60 of the grammar, with their score recorded in `reward`) are written to
    `folder/rows.jsonl`, its run is `folder/run`. An override that is a dictionary is merged into its section,
    except `policies` and `reward`, which are replaced.
    """

    def make(folder: Path, rows: Rows | None = None, **overrides: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "name": "tiny",
            "output_dir": str(folder / "run"),
            "model": {"path": tiny_llama_path},
            "data": {
                "path": write_rows(folder / "rows.jsonl", scored_rows(60) if rows is None else rows),
                "max_prompt_tokens": 48,
                "max_completion_tokens": 64,
            },
            "reward": {"functions": [{"type": "python", "function": "leftover.demo.grammar:score_answers"}]},
            "reference": {"train": {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 3e-3}},
            "value": {"num_prompts": 24, "candidates": ["constant", "ridge"]},
            "policies": {"a_lol_seq": {"objective": "a_lol_seq"}},
            "train": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
            "evaluate": {"max_prompts": 8, "max_selection_prompts": 4, "max_new_tokens": 8},
        }
        for key, value in overrides.items():
            merge = isinstance(value, dict) and isinstance(recipe.get(key), dict) and key not in _REPLACED
            recipe[key] = recipe[key] | value if merge else value
        return recipe

    return make


_REPLACED = ("policies", "reward")


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., dict[str, Any]]
) -> Callable[[Path], dict[str, Any]]:
    """`tiny_run(folder)`: the recipe of a finished run in `folder/run`, a copy of one that was computed once."""
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe

    first = tiny_recipe(tmp_path_factory.mktemp("tiny-run"))
    run(make_recipe(first))

    def copy(folder: Path) -> dict[str, Any]:
        shutil.copytree(first["output_dir"], folder / "run")
        return deepcopy(first) | {"output_dir": str(folder / "run")}

    return copy


def evaluated(content: dict[str, Any]) -> dict[str, Any]:
    """The results of a run that draws no report."""
    from leftover.evaluation.gather import gather
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe
    from leftover.runs.claim import open_run

    recipe = make_recipe(content)
    run(recipe, until="evaluate")
    return gather(open_run(recipe))


def scored_rows(num_prompts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the demonstration's grammar, each with its score recorded in `reward`."""
    rows: list[dict[str, Any]] = list(make_rows(num_prompts, seed))
    scores = score_answers([row["prompt"] for row in rows], [row["completion"] for row in rows])
    return [row | {"reward": score} for row, score in zip(rows, scores, strict=True)]


def write_rows(path: Path, rows: Rows) -> str:
    """JSON lines; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def _special(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(architecture: Any, config: Any, tokenizer: Any, folder: Path) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def told_states(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """artifact -> what was first told of it: done, reused, stale, resumed or damaged; done in a moment is at DEBUG."""
    found: dict[str, str] = {}
    for record in caplog.records:
        if hasattr(record, "artifact"):
            found.setdefault(record.artifact, record.state)
    return found
