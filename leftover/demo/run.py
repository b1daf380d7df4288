"""Make the demonstration's files from a seed, then run its recipe like any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover.demo.grammar import make_rows
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import Recipe
from leftover.runs.run import Run
from leftover.store.folders import LOCK, held, make_folder

NUM_PROMPTS = 3000
_VOCABULARY = 1200  # so many that every word is one token


def run_demo(
    output_dir: str | Path, seed: int = 0, tell_time: Callable[[Run, str], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Generate data, tokenizer and a random model under `output_dir`, and run everything; returns (results, folder).

    tell_time: as of `leftover.pipeline.run`.
    """
    import torch

    from leftover.pipeline import run

    # A model this small gains nothing from more threads, and loses much time where cores are shared.
    torch.set_num_threads(1)
    folder = Path(output_dir) / f"seed-{seed}"
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - {"inputs", "run", LOCK}):
        raise UserError(f"{folder} holds something else ({min(others)}): name another --output-dir")
    make_folder(folder, "--output-dir")
    with held(folder):
        recipe = demo_recipe(folder, seed)
        results = run(recipe, tell_time=tell_time)
    assert results is not None
    return results, recipe.output_dir


def demo_recipe(folder: Path, seed: int, **overrides: Any) -> Recipe:
    """The demonstration's recipe; writes its inputs below `folder`, unless they exist."""
    inputs = folder / "inputs"
    rows_file, tokenizer_folder = inputs / "rows.jsonl", inputs / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").is_file():
        inputs.mkdir(parents=True, exist_ok=True)
        rows = make_rows(NUM_PROMPTS, seed, details=True)
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        train_tokenizer([row["prompt"] + row["completion"] for row in rows], _VOCABULARY).save_pretrained(
            tokenizer_folder
        )
    content: dict[str, Any] = {
        "name": "demo",
        "output_dir": str(folder / "run"),
        "seed": seed,
        "seeds": [seed],
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 128,
                "intermediate_size": 352,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 192,
                "tie_word_embeddings": True,
            },
            "tokenizer": str(tokenizer_folder),
        },
        "data": {"path": str(rows_file), "max_prompt_tokens": 96, "max_completion_tokens": 64},
        "reward": {
            "functions": [
                {"type": "python", "function": "leftover.demo.grammar:score_answers", "name": "answer_quality"}
            ]
        },
        "reference": {"train": {"num_train_epochs": 5, "learning_rate": 3e-3, "per_device_train_batch_size": 32}},
        "value": {"num_prompts": 2400},
        "policies": {"a_lol_seq": {"objective": "a_lol_seq"}, "nll": {"objective": "nll"}},
        "train": {
            "max_steps": 200,
            "learning_rate": 7e-5,
            "per_device_train_batch_size": 32,
            "eval_decoding": "sample",
        },
        "evaluate": {"max_prompts": 400, "max_selection_prompts": 128, "max_new_tokens": 48},
    }
    return make_recipe(content | overrides, where="demo")


def train_tokenizer(texts: list[str], vocab_size: int = 600) -> Any:
    """The demonstration's tokenizer."""
    from leftover.data.tokenizer import train_tokenizer

    return train_tokenizer(texts, vocab_size)
