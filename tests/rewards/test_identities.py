"""What stands for each reward in the keys of a manifest. A change makes every run folder compute its scores again."""

import json
from pathlib import Path
from typing import Any

import pytest

from leftover.rewards import load_reward
from leftover.store.sealed import digest

ROWS = {"path": "rows.jsonl", "part": [0.0, 0.5]}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a module, a classifier, rows and a fitted reward of fixed contents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pinned_reward.py").write_text("def f(prompts, completions):\n    return [1.0] * len(prompts)\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "reward": 1}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "reward.json").write_text('{"type": "linear", "target": "label", "settings": {}}')


CLASSIFIER = {
    "type": "classifier",
    "model": "b5dc5bb20bfcc671",
    "dtype": "float32",
    "label": None,
    "activation": None,
    "join": "pair",
    "prompt_pattern": None,
    "turns": "{role}: {content}",
    "turn_separator": "\n\n",
    "strip": False,
    "truncation_side": "left",
    "max_length": None,
}
REGEX = {"type": "text", "function": "regex", "mode": "match", "ignore_case": False, "multiline": False}
ANSWER = {"type": "text", "function": "answer", "pattern": None, "strip": True, "ignore_case": True}
FITTED = {"target": "auto", "output": "probability", "held_out": 0.2, "seed": 0}


@pytest.mark.parametrize(
    ("spec", "identity"),
    [
        ({"type": "column"}, {"type": "column", "column": None}),
        (
            {"type": "column", "column": "score", "new_completions": {"type": "text", "function": "length"}},
            {"type": "column", "column": "score", "new_completions": {"type": "text", "function": "length"}},
        ),
        ({"type": "text", "function": "vader"}, {"type": "text", "function": "vader"}),
        ({"type": "text", "function": "ngram_diversity"}, {"type": "text", "function": "ngram_diversity"}),
        (
            {"type": "text", "function": "ngram_diversity", "n": 2},
            {"type": "text", "function": "ngram_diversity", "n": 2},
        ),
        (
            {"type": "text", "function": "regex", "pattern": "a+"},
            REGEX | {"pattern": "a+", "dot_all": False, "negate": False},
        ),
        (
            {"type": "text", "function": "regex", "pattern": "a", "mode": "fullmatch", "dot_all": True, "negate": True},
            REGEX | {"pattern": "a", "mode": "fullmatch", "dot_all": True, "negate": True},
        ),
        (
            {"type": "text", "function": "answer"},
            ANSWER | {"collapse_space": True, "punctuation": "ends"},
        ),
        (
            {"type": "text", "function": "answer", "pattern": "is (.+)", "strip": False, "punctuation": "keep"},
            ANSWER | {"pattern": "is (.+)", "strip": False, "collapse_space": True, "punctuation": "keep"},
        ),
        (
            {"type": "text", "function": "numeric_answer", "tolerance": 1},
            {
                "type": "text",
                "function": "numeric_answer",
                "pattern": None,
                "tolerance": 1.0,
                "decimal": ".",
                "percent": "number",
            },
        ),
        ({"type": "text", "function": "tfidf_diversity"}, {"type": "text", "function": "tfidf_diversity"}),
        ({"type": "classifier", "model": "model"}, CLASSIFIER),
        (
            {"type": "classifier", "model": "model", "label": 1, "join": "completion", "max_length": 9, "strip": True}
            | {"batch_size": 2, "device": "cpu", "activation": "none"},
            CLASSIFIER
            | {"label": 1, "activation": "none", "join": "completion", "strip": True, "max_length": 9}
            | {"truncation_side": "right"},
        ),
        (
            {"type": "classifier", "model": "model", "turns": {"user": "{content}"}, "label": "good"},
            CLASSIFIER | {"turns": {"user": "{content}"}, "label": "good"},
        ),
        (
            {"type": "classifier", "preset": "oasst_1.4b", "model": "model"},
            CLASSIFIER
            | {
                "label": 0,
                "activation": "sigmoid",
                "join": "{prompt}<|assistant|>{completion}<|endoftext|>",
                "turns": {
                    "user": "<|prompter|>{content}<|endoftext|>",
                    "assistant": "<|assistant|>{content}<|endoftext|>",
                },
                "turn_separator": "",
                "strip": True,
                "max_length": 1024,
            },
        ),
        (
            {"type": "linear", "fit": "rows"},
            {"type": "linear", "fit": "rows", "settings": FITTED | {"features": "completion"}},
        ),
        ({"type": "linear", "path": "linear"}, {"type": "linear", "files": "5872ff1e5c1c707a"}),
        (
            {"type": "fine_tuned", "fit": "rows", "model": "model", "train": {"max_steps": 3}, "seed": 2},
            {
                "type": "fine_tuned",
                "fit": "rows",
                "model": "b5dc5bb20bfcc671",
                "settings": FITTED
                | {"seed": 2, "model": "model", "config": None, "tokenizer": None, "features": "pair"}
                | {"max_length": 256, "train": {"max_steps": 3}},
            },
        ),
        (
            {"type": "fine_tuned", "fit": "rows", "config": {"model_type": "bert"}, "tokenizer": "model"},
            {
                "type": "fine_tuned",
                "fit": "rows",
                "tokenizer": "b5dc5bb20bfcc671",
                "settings": FITTED
                | {"model": None, "config": {"model_type": "bert"}, "tokenizer": "model", "features": "pair"}
                | {"max_length": 256, "train": {}},
            },
        ),
        (
            {"type": "python", "function": "pinned_reward:f", "scale": 2},
            {"type": "python", "function": "pinned_reward:f", "source": "a35cbdea7a3519b8", "scale": 2},
        ),
        (
            {"type": "http", "url": "http://host/score", "timeout": 3},
            {"type": "http", "url": "http://host/score", "headers": None, "version": 1},
        ),
        (
            {"type": "http", "url": "http://host/score", "headers": {"X-Model": 3}, "version": "b"},
            {"type": "http", "url": "http://host/score", "headers": "2b36cf5048b1a6fc", "version": "b"},
        ),
        (
            {"type": "sum", "functions": [{"type": "text", "function": "length", "weight": 2, "name": "long"}]},
            {"long": {"type": "text", "function": "length"}},
        ),
    ],
    ids=lambda case: " ".join(str(case.get(key, "")) for key in ("type", "function")).strip(),
)
def test_the_identity_of_a_reward_is_what_it_always_was(spec: dict[str, Any], identity: dict[str, Any]) -> None:
    assert json.loads(json.dumps(load_reward(spec).identity())) == identity


def test_the_identity_of_a_reward_fitted_on_files_is_what_it_always_was() -> None:
    """Its `fit` holds every setting of a data section: a digest stands for them."""
    found = load_reward({"type": "linear", "fit": ROWS, "features": "pair"}).identity()
    assert found["settings"] == FITTED | {"features": "pair"}
    assert found["fit"]["files"] == {"rows.jsonl": "f253225032703a02"}
    assert digest(found) == "e931076e5031e926"
