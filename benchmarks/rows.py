"""The rows that every contestant trains on: real Helpful-and-Harmless rows, or stand-ins where there are none."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.models import SHAPES

Row = dict[str, Any]

SHARED = Path(__file__).parents[2] / "shared"
GPT2_FOLDER = SHARED / "models/gpt2_tokenizer"
HH_FILES = ("test_helpful_base.jsonl.gz", "test_harmless_base.jsonl.gz")
HISTOGRAM = Path(__file__).with_name("hh_lengths.json")
SPEAKERS = {"<|prompter|>": "user", "<|assistant|>": "assistant"}
PLAIN = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant:"}
MAX_PROMPT, MAX_COMPLETION = 768, 256
VOCABULARY = 50_257  # of GPT-2's tokenizer, in which the lengths are counted

# Of a real model, whose steps take seconds: prompts are cut on the left, longer completions left out.
REAL_PROMPT, REAL_COMPLETION, REAL_PROMPTS = 128, 48, 1_000


class Answer(NamedTuple):
    """One of the completions of a conversation."""

    messages: list[dict[str, str]]
    completion: str
    reward: float

    @property
    def prompt(self) -> str:
        """The conversation as plain text."""
        return "".join(PLAIN[m["role"]] + m["content"] for m in self.messages) + PLAIN["assistant"]


@cache
def answers() -> list[Answer] | None:
    """Every completion of the HH test files that is not empty; None where there are no data."""
    folder = SHARED / "data/hh"
    if not folder.is_dir():
        return None
    found = []
    for name in HH_FILES:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                for turns, suffix, reward in zip(row["prefix"], row["suffix"], row["reward"], strict=True):
                    if suffix.strip():  # the last turn is the bare tag of the assistant
                        found.append(Answer([_message(turn) for turn in turns[:-1]], " " + suffix.strip(), reward))
    return found


def pairs(seed: int = 0) -> tuple[list[list[Answer]], str]:
    """Conversations in random order, each with its two completions, and a word on where they come from.

    Without the HH files: the customers of the demonstration, each with answers to two of them.
    """
    found, source = answers(), "HH test rows (helpful and harmless)"
    if found is None:
        found, source = _demonstration(), "rows of the demonstration"
    by_prompt: dict[str, list[Answer]] = {}
    for answer in found:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    whole = [group[:2] for group in by_prompt.values() if len(group) > 1]
    return [whole[i] for i in np.random.default_rng(seed).permutation(len(whole))], source


def _demonstration(num_prompts: int = 400) -> list[Answer]:
    from leftover.demo.grammar import make_rows, score_answers

    rows = make_rows(2 * num_prompts, seed=0)
    rows = [row | {"prompt": rows[i // 2]["prompt"]} for i, row in enumerate(rows)]
    scores = score_answers([row["prompt"] for row in rows], [row["completion"] for row in rows])
    return [
        Answer([{"role": "user", "content": row["prompt"]}], row["completion"], score)
        for row, score in zip(rows, scores, strict=True)
    ]


def encoded(found: list[Answer], tokenizer: Any, max_prompt: int, max_completion: int) -> list[Row]:
    """Rows of token ids; completions of more than `max_completion` tokens, the end included, are left out."""
    prompts = tokenizer([answer.prompt for answer in found])["input_ids"]
    completions = tokenizer([answer.completion for answer in found], add_special_tokens=False)["input_ids"]
    return [
        {
            "prompt": answer.prompt,
            "completion": answer.completion,
            "reward": answer.reward,
            "prompt_ids": prompt_ids[-max_prompt:],
            "completion_ids": [*completion_ids, tokenizer.eos_token_id],
        }
        for answer, prompt_ids, completion_ids in zip(found, prompts, completions, strict=True)
        if len(completion_ids) < max_completion
    ]


def load_tokenizer(model: str = "small") -> Any:
    """The tokenizer of a real model's folder; of random weights GPT-2's.

    Where GPT-2's files are absent, one whose tokens are the numbers 0 to 50,256.
    """
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    if model not in SHAPES:
        from leftover.data.tokenizer import load_tokenizer

        return load_tokenizer(model)
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


def histogram_rows(num_rows: int = 8000, seed: int = 0) -> list[Row]:
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


def tiny_rows() -> list[Row]:
    """A few rows of a few tokens, to try a script out."""
    rows = histogram_rows(64)
    return [row | {"prompt_ids": row["prompt_ids"][:6], "completion_ids": row["completion_ids"][:4]} for row in rows]


@cache  # tokenising them takes seconds, and every part asks for them
def load_rows(model: str = "small") -> tuple[list[Row], str]:
    """The rows for a model, and a word on where they come from."""
    if model == "tiny":
        return tiny_rows(), "random tokens"
    if model not in SHAPES:
        groups, source = pairs()
        found = [answer for group in groups[:REAL_PROMPTS] for answer in group]
        return encoded(found, load_tokenizer(model), REAL_PROMPT, REAL_COMPLETION), source
    if answers() is None or not GPT2_FOLDER.is_dir():
        return histogram_rows(), "random tokens, lengths from the stored histogram of HH"
    return _hh_rows(), "HH test rows (helpful and harmless)"


def _hh_rows() -> list[Row]:
    return encoded(answers() or [], load_tokenizer(), MAX_PROMPT, MAX_COMPLETION)


def write_histogram() -> None:
    """Store the lengths of the real rows, in bins of 8 (prompt) by 4 (completion) tokens."""
    lengths: dict[tuple[int, int], int] = {}
    for row in _hh_rows():
        key = (-(-len(row["prompt_ids"]) // 8) * 8, -(-len(row["completion_ids"]) // 4) * 4)
        lengths[key] = lengths.get(key, 0) + 1
    assert lengths, "the histogram is made from the real rows"
    stored = {"unit": "tokens of GPT-2's tokenizer", "pairs": [[*key, lengths[key]] for key in sorted(lengths)]}
    HISTOGRAM.write_text(json.dumps(stored, separators=(",", ":")) + "\n")


def _message(turn: str) -> dict[str, str]:
    tag = next(tag for tag in SPEAKERS if turn.startswith(tag))
    return {"role": SPEAKERS[tag], "content": turn.removeprefix(tag)}
