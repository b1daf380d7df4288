"""Rows for `make real`: the demonstration's customers as conversations, each answer with a thumb up or down.

`python -m leftover.demo.thumbs rows.jsonl` writes them.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.demo.grammar import make_rows, score_answers

NUM_ROWS = 1200
_GOOD = 3  # points of `score_answers` from which a customer is content
_MISTAKES = 0.1  # of the thumbs


def thumb_rows(num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Conversations with `label`, true for a thumb up; a tenth of the thumbs is mistaken, as people's are."""
    rng, rows = random.Random(seed), make_rows(num_rows, seed)
    scores = score_answers([row["prompt"] for row in rows], [row["completion"] for row in rows])
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
            "label": (score >= _GOOD) != (rng.random() < _MISTAKES),
            "family": row["family"],
        }
        for row, score in zip(rows, scores, strict=True)
    ]


def score_replies(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """`score_answers` of conversations: the rule that the thumbs follow."""
    return score_answers([messages[-1]["content"] for messages in prompts], completions)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in thumb_rows(NUM_ROWS, seed=0)), encoding="utf-8")
