"""Files of rows for the quick starts, under the names and with the columns that their pages show."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover.demo.grammar import NAMES, PRODUCTS, score_answers
from tests.conftest import scored_rows

_MANY = 160
_GOOD = 2.0  # of a score from -1 to 4
_SIDES = ("chosen", "rejected")

Made = list[dict[str, Any]]


def answers() -> Made:
    return [
        {"question": row["prompt"], "answer": row["completion"].strip(), "score": row["reward"]}
        for row in scored_rows(_MANY)
    ]


def log() -> Made:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].strip()},
            ],
            "label": row["reward"] >= _GOOD,
        }
        for row in scored_rows(_MANY)
    ]


def pairs() -> Made:
    rows, made = scored_rows(2 * _MANY), []
    for one, other in zip(rows[:_MANY], rows[_MANY:], strict=True):
        texts = [one["completion"], other["completion"]]
        scores = score_answers([one["prompt"]] * 2, texts)
        better = int(scores[1] > scores[0])
        made.append({"prompt": one["prompt"]} | dict(zip(_SIDES, (texts[better], texts[1 - better]), strict=True)))
    return made


def problems() -> Made:
    rng, made = random.Random(0), []
    for _ in range(_MANY // 2):
        first, second = rng.randint(2, 9), rng.randint(2, 9)
        prompt = (
            f"A {rng.choice(PRODUCTS)} costs {first} and a {rng.choice(PRODUCTS)} {second}. {rng.choice(NAMES)} asks."
        )
        for answer in (first + second, rng.randint(4, 18)):
            made.append({"prompt": prompt, "completion": f" That makes {answer}.", "answer": str(first + second)})
    return made


def prompts() -> Made:
    return [{"prompt": row["prompt"]} for row in scored_rows(40)]


FILES: dict[str, Callable[[], Made]] = {
    "answers.csv": answers,
    "log.jsonl": log,
    "pairs.jsonl": pairs,
    "problems.jsonl": problems,
    "prompts.jsonl": prompts,
    "rows.jsonl": lambda: scored_rows(_MANY),
}


def shown_rows(name: str, text: str) -> Made:
    """The rows that a page shows of a file, without the quotes and types of its format."""
    lines = text.splitlines()
    return list(csv.DictReader(lines)) if name.endswith(".csv") else [json.loads(line) for line in lines]


def write(name: str, folder: Path) -> None:
    """Write the file `name` into `folder`."""
    made = FILES[name]()
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
        else:
            file.writelines(json.dumps(row) + "\n" for row in made)
