"""A reward of which one process of a launch dies: the demonstration's score, until a given call."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from leftover.demo.grammar import score_answers

_calls = 0


def score(prompts: list[Any], completions: list[str]) -> list[float]:
    """Scores; the process whose rank is DEADLY_RANK writes the time to DEADLY_FILE at its call DEADLY_CALL and dies."""
    global _calls
    _calls += 1
    if os.environ.get("DEADLY_RANK") == os.environ.get("RANK") and _calls == int(os.environ.get("DEADLY_CALL", "0")):
        Path(os.environ["DEADLY_FILE"]).write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    return score_answers(prompts, completions)
