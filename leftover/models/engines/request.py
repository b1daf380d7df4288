"""What an engine is asked for, and what it gives back."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from leftover.errors import UserError

# vLLM refuses hotter sampling, and raises colder.
_COLDEST, _HOTTEST = 0.01, 2.0


class EngineFault(UserError):
    """What vLLM cannot do, or has not done; `evaluate.engine: auto` then turns to transformers."""


class Sampling(NamedTuple):
    """How the completions of a call are chosen."""

    max_new_tokens: int
    temperature: float | None  # None: greedy
    ends: tuple[int, ...]  # the tokens that end a completion


class Request(NamedTuple):
    prompt_ids: list[int]
    seed: int | None  # None: greedy


class Written(NamedTuple):
    """A completion, its end included if it was reached, and the log-probabilities of its tokens."""

    ids: list[int]
    logprobs: list[float]


class Model(NamedTuple):
    """What is known of a model before its weights are looked at."""

    dtype: str
    positions: int  # of the longest prompt with its completion
    max_positions: int | None  # that the model has


class Engine(Protocol):
    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Written]: ...


def draw_key(seed: int, prompt_ids: Sequence[int], copy: int) -> int:
    """128 bits that belong to one completion: of a prompt, and of its number among those of an equal prompt."""
    key = hashlib.blake2b(np.array([seed, copy, *prompt_ids], np.int64).tobytes(), digest_size=16)
    return int.from_bytes(key.digest(), "little")


def request(prompt_ids: Sequence[int], copy: int, seed: int, sample: bool) -> Request:
    """Of a sampled completion the seed is its own (63 bits), so that it does not depend on its neighbours."""
    return Request([int(token) for token in prompt_ids], draw_key(seed, prompt_ids, copy) >> 65 if sample else None)


def fields(asked: Request, sampling: Sampling) -> dict[str, Any]:
    """One request in vLLM's terms, which its `SamplingParams` and its server share.

    Everything is named that a model's folder or a server could set otherwise: top-p, top-k, min-p and penalties are
    off, and a completion ends at the model's ends alone. `logprobs: 0`: that of the chosen token, of no others.
    """
    temperature = sampling.temperature
    if temperature is not None and not _COLDEST <= temperature <= _HOTTEST:
        raise EngineFault(f"vLLM samples at temperatures from {_COLDEST} to {_HOTTEST:g}, not at {temperature:g}")
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    return neutral | {
        "temperature": 0.0 if temperature is None else temperature,
        "seed": asked.seed,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.ends),
        "ignore_eos": True,
        "logprobs": 0,
    }


def check_written(written: Written, sampling: Sampling) -> None:
    """EngineFault for a completion that stopped elsewhere, went on after an end, or lacks a log-probability."""
    ids, ends = written.ids, set(sampling.ends)
    ended = bool(ids) and ids[-1] in ends
    if len(ids) != len(written.logprobs):
        raise EngineFault(f"vLLM gave {len(written.logprobs)} log-probabilities for {len(ids)} tokens")
    if not ended and len(ids) != sampling.max_new_tokens:
        raise EngineFault(
            f"vLLM ended a completion after {len(ids)} of {sampling.max_new_tokens} tokens, at none of the model's "
            "ends: start the server with --generation-config vllm, and with a --max-model-len for the longest text"
        )
    if len(ids) > sampling.max_new_tokens or ends & set(ids[:-1]):
        raise EngineFault("vLLM wrote a completion beyond its end")
