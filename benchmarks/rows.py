"""The rows that every contestant trains on: real Helpful-and-Harmless lengths, or a stored histogram of them."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).parents[2] / "shared"
GPT2_FOLDER = SHARED / "models/gpt2_tokenizer"
HH_FILES = ("test_helpful_base.jsonl.gz", "test_harmless_base.jsonl.gz")
HISTOGRAM = Path(__file__).with_name("hh_lengths.json")
TAGS = {"<|prompter|>": "\n\nHuman: ", "<|assistant|>": "\n\nAssistant:"}
MAX_PROMPT, MAX_COMPLETION = 768, 256
VOCABULARY = 50_257  # of GPT-2's tokenizer, in which the lengths are counted


def real_rows() -> list[dict[str, Any]] | None:
    """Token ids, text and reward of every completion of at most MAX_COMPLETION tokens; None where there are no data."""
    folder = SHARED / "data/hh"
    if not (folder.is_dir() and GPT2_FOLDER.is_dir()):
        return None
    tokenizer = load_tokenizer()
    texts = []
    for name in HH_FILES:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                for turns, suffix, reward in zip(row["prefix"], row["suffix"], row["reward"], strict=True):
                    if suffix.strip():
                        texts.append(("".join(map(_untag, turns)), " " + suffix.strip(), reward))
    prompts = tokenizer([prompt for prompt, _, _ in texts])["input_ids"]
    completions = tokenizer([completion for _, completion, _ in texts])["input_ids"]
    rows = []
    for (prompt, completion, reward), prompt_ids, completion_ids in zip(texts, prompts, completions, strict=True):
        if len(completion_ids) < MAX_COMPLETION:
            ids = {"prompt_ids": prompt_ids[-MAX_PROMPT:], "completion_ids": [*completion_ids, tokenizer.eos_token_id]}
            rows.append({"prompt": prompt, "completion": completion, "reward": reward, **ids})
    return rows


def load_tokenizer() -> Any:
    """GPT-2's tokenizer; where its files are absent, one whose tokens are the numbers 0 to 50,256."""
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    if GPT2_FOLDER.is_dir():
        tokenizer = GPT2Tokenizer.from_pretrained(GPT2_FOLDER)  # the folder has no config to tell AutoTokenizer
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers

        numbers = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
        numbers.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        end = str(VOCABULARY - 1)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=numbers, eos_token=end, bos_token=end)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def histogram_rows(num_rows: int = 8000, seed: int = 0) -> list[dict[str, Any]]:
    """Random tokens and rewards in rows whose pairs of lengths are drawn from the stored histogram, two a prompt."""
    rng = np.random.default_rng(seed)
    stored = json.loads(HISTOGRAM.read_text())
    counts = np.array([count for _, _, count in stored["pairs"]], np.float64)
    bins = rng.choice(len(counts), num_rows // 2, p=counts / counts.sum())
    rows = []
    for i in bins:
        prompt, completion, _ = stored["pairs"][i]
        prompt_ids = rng.integers(VOCABULARY, size=prompt).tolist()
        for _ in range(2):
            ids = rng.integers(VOCABULARY, size=completion).tolist()
            row = {"prompt_ids": prompt_ids, "completion_ids": ids, "reward": float(rng.normal())}
            rows.append(row | {"prompt": None, "completion": None})
    return rows


def tiny_rows() -> list[dict[str, Any]]:
    """A few rows of a few tokens, to try a script out."""
    rows = histogram_rows(64)
    return [row | {"prompt_ids": row["prompt_ids"][:6], "completion_ids": row["completion_ids"][:4]} for row in rows]


@cache  # tokenising them takes seconds, and every part asks for them
def load_rows() -> tuple[list[dict[str, Any]], str]:
    """The rows, and a word on where they come from."""
    rows = real_rows()
    if rows is None:
        return histogram_rows(), "random tokens, lengths from the stored histogram of HH"
    return rows, "HH test rows (helpful and harmless)"


def write_histogram() -> None:
    """Store the lengths of the real rows, in bins of 8 (prompt) by 4 (completion) tokens."""
    rows = real_rows()
    assert rows is not None, "the histogram is made from the real rows"
    pairs: dict[tuple[int, int], int] = {}
    for row in rows:
        key = (-(-len(row["prompt_ids"]) // 8) * 8, -(-len(row["completion_ids"]) // 4) * 4)
        pairs[key] = pairs.get(key, 0) + 1
    stored = {"unit": "tokens of GPT-2's tokenizer", "pairs": [[*key, pairs[key]] for key in sorted(pairs)]}
    HISTOGRAM.write_text(json.dumps(stored, separators=(",", ":")) + "\n")


def _untag(turn: str) -> str:
    tag = next(tag for tag in TAGS if turn.startswith(tag))
    return TAGS[tag] + turn.removeprefix(tag)
