"""Which engine writes, and whether what vLLM wrote is the model's."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from transformers import PreTrainedTokenizerBase

from leftover.models.engines.local import LocalEngine
from leftover.models.engines.request import EngineFault, Model, Sampling, Written, check_written, request
from leftover.models.engines.server import ServerEngine
from leftover.models.engines.weights import Weights, unsupported
from leftover.models.load import max_positions
from leftover.models.reference import reference_pass
from leftover.monitoring.ranks import processes, shared
from leftover.recipe.engine import EngineSettings, VllmSection
from leftover.recipe.optional_packages import missing_for_vllm

log = logging.getLogger(__name__)

_COMPARED = 8  # completions of every call
# How much a log-probability of vLLM's may differ on average from the model's own pass. Rounding makes some hundredths
# in 16 bits; weights that differ by a KL of .005 a token make .1.
_TOLERANCE, _TOLERANCE_16_BIT = 0.02, 0.1

_engines: dict[str, LocalEngine | ServerEngine] = {}
_refused: WeakSet[Any] = WeakSet()  # models that transformers writes for, once `auto` had to turn to it
_written_for: WeakSet[Any] = WeakSet()  # models of which vLLM has written completions


def by_vllm(
    settings: EngineSettings | None,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    copies: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    compute_dtype: str | None,
) -> list[Written] | None:
    """One completion for each prompt by vLLM; None where transformers is to write them.

    Every process of a launch has to call it. Raises EngineFault for what vLLM cannot do, if vLLM was asked for.
    """
    if settings is None or settings.name == "transformers" or model in _refused:
        return None
    if settings.name == "auto" and missing_for_vllm(settings):
        return None
    try:
        if fault := missing_for_vllm(settings) or _impossible(settings, model):
            raise EngineFault(f"evaluate.engine: vllm {fault}")
        described = _described(model, prompt_ids, sampling, compute_dtype)
        with _engine(settings.vllm).serving(Weights.of(model), described) as engine:

            def complete(prompt_ids: Sequence[Sequence[int]], copies: Sequence[int]) -> list[Written | EngineFault]:
                sample = sampling.temperature is not None
                asked = [request(ids, copy, seed, sample) for ids, copy in zip(prompt_ids, copies, strict=True)]
                try:
                    written = engine.complete(asked, sampling)
                    for one in written:
                        check_written(one, sampling)
                    return list(written)
                except EngineFault as fault:  # told to all processes, which go on together
                    return [fault] * len(asked)

            found = shared(complete, prompt_ids, copies, model=model)
        written = _without_faults(found)
        _check_agreement(model, tokenizer, prompt_ids, written, sampling, compute_dtype)
        if model not in _written_for:
            log.info("evaluate.engine: vLLM writes the completions")
            _written_for.add(model)
        return written
    except EngineFault as fault:
        if settings.name == "vllm":
            raise
        log.warning("evaluate.engine: transformers writes the completions (%s)", fault)
        _refused.add(model)
        return None


def engine_fact(model: Any) -> dict[str, str]:
    """What results tell of the engine: that vLLM wrote completions of the model, or nothing."""
    return {"engine": "vllm"} if model in _written_for else {}


def _impossible(settings: EngineSettings, model: Any) -> str | None:
    """Why vLLM does not serve this model here."""
    if settings.vllm.address is None and processes() > 1:
        return "serves one process: start a server and name it in evaluate.vllm.address, or run one process"
    if reason := unsupported(model):
        return f"cannot serve the model: {reason}"
    return None


def _described(model: Any, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, compute_dtype: str | None) -> Model:
    positions, room = max(map(len, prompt_ids)) + sampling.max_new_tokens, max_positions(model.config)
    if room is not None and positions > room:
        raise EngineFault(f"the longest prompt and its completion have {positions} tokens, the model {room} positions")
    return Model(compute_dtype or str(model.dtype).removeprefix("torch."), positions, room)


def _engine(settings: VllmSection) -> LocalEngine | ServerEngine:
    key = settings.model_dump_json()
    if key not in _engines:
        _engines[key] = LocalEngine(settings) if settings.address is None else ServerEngine(settings)
    return _engines[key]


def _without_faults(found: Sequence[Written | EngineFault]) -> list[Written]:
    for one in found:
        if isinstance(one, EngineFault):
            raise one
    return [one for one in found if isinstance(one, Written)]


def _check_agreement(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    written: Sequence[Written],
    sampling: Sampling,
    compute_dtype: str | None,
) -> None:
    """Compare some completions' log-probabilities with those that the model itself gives them.

    They differ if vLLM has other weights, leaves out a part of an adapter, computes the model otherwise, or tells
    log-probabilities at another temperature.
    """
    chosen = np.unique(np.linspace(0, len(written) - 1, _COMPARED).round().astype(int))
    rows = [{"prompt_ids": prompt_ids[i], "completion_ids": written[i].ids} for i in chosen]
    temperature = sampling.temperature or 1.0
    own, _ = reference_pass(
        model, tokenizer, rows, features=False, compute_dtype=compute_dtype, temperature=temperature
    )
    told = [np.array(written[i].logprobs) for i in chosen]
    differences = np.abs(np.concatenate(told) - np.concatenate(own))
    exact = compute_dtype is None and model.dtype.itemsize >= 4
    tolerance = (_TOLERANCE if exact else _TOLERANCE_16_BIT) / min(temperature, 1.0)
    if not (difference := float(differences.mean())) <= tolerance:  # NaN is none
        raise EngineFault(
            f"vLLM's log-probabilities are not the model's (they differ by {difference:.2g} a token): a server must "
            "serve this very model (or take its weights: VLLM_SERVER_DEV_MODE=1), and be started with "
            "--logprobs-mode processed_logprobs where evaluate.temperature is not 1"
        )
