"""Out of memory: a batch is tried again in halves, and no larger one is tried in the rest of the process."""

import gc
import logging

import torch

from leftover.errors import UserError

log = logging.getLogger(__name__)

OutOfMemory = torch.OutOfMemoryError  # of a GPU; a CPU's process is ended by the system without a word
_most: dict[str, int] = {}  # work -> positions (rows times the longest) that it has room for, once that was found out


def room_for(work: str, positions: int) -> int:
    """`positions`, or as many as there was room for."""
    return min(positions, _most.get(work, positions))


def halve(work: str, rows: int, longest: int) -> None:
    """Note that a batch did not fit, and free what is not used. Raises UserError if it was of one row."""
    if rows == 1:
        raise UserError(
            f"{work}: out of memory with a single row of {longest:,} tokens: lower data.max_prompt_tokens or "
            "data.max_completion_tokens, set train.gradient_checkpointing: true, or take a smaller model.dtype"
        )
    _most[work] = rows * longest // 2
    log.warning(
        "%s: out of memory with %d rows of %d tokens: goes on with at most %d tokens at a time, padding included",
        work, rows, longest, _most[work],
    )  # fmt: skip
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget() -> None:
    """As if nothing had been found out; for tests."""
    _most.clear()
