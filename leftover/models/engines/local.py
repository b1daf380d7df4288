"""vLLM beside the model on this machine's GPU: its memory is free again between uses."""

import contextlib
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from leftover.errors import first_line
from leftover.models.engines.request import EngineFault, Model, Request, Sampling, Written, fields
from leftover.models.engines.weights import Weights
from leftover.recipe.engine import VllmSection

log = logging.getLogger(__name__)

# Positions that vLLM is started for at least: a start takes a minute, and the next call may have longer rows.
_POSITIONS = 2_048


class LocalEngine:
    """One `vllm.LLM`, of one base model at a time, in a process that vLLM starts."""

    def __init__(self, settings: VllmSection):
        self.settings = settings
        self._llm: Any = None
        self._folder: TemporaryDirectory | None = None  # of the adapter, which vLLM may read again
        self._started: tuple[Model, int] | None = None  # and the rank of adapters that there is room for
        self._base: str | None = None
        self._adapter: tuple[str, Any] | None = None
        self._count = 0

    @contextlib.contextmanager
    def serving(self, weights: Weights, model: Model) -> Iterator["LocalEngine"]:
        """Inside, vLLM is awake and has these weights."""
        torch.cuda.empty_cache()  # does nothing without a GPU
        with self._ended_by_faults():
            self._wake(weights, model)
            self._hand_over(weights)
        try:
            yield self
        except BaseException:
            self.close()
            raise
        if self._llm is None:  # ended by a fault
            return
        try:
            self._llm.sleep(level=1)  # weights wait in the memory of the CPU
        except Exception as error:
            log.warning("vLLM does not fall asleep, and is ended: %s", first_line(error))
            self.close()

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Written]:
        from vllm import SamplingParams, TokensPrompt

        with self._ended_by_faults():
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=asked.prompt_ids) for asked in requests],
                [SamplingParams(**fields(asked, sampling), detokenize=False) for asked in requests],
                use_tqdm=False,
                lora_request=None if self._adapter is None else self._adapter[1],
            )
            return [_read(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """End vLLM's process, which its object does when it goes."""
        self._llm = self._started = self._base = self._adapter = None
        gc.collect()

    @contextlib.contextmanager
    def _ended_by_faults(self) -> Iterator[None]:
        """Whatever vLLM raises, in one line. It is ended then: requests of a call that failed may still wait in it."""
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, EngineFault) or not isinstance(error, Exception):
                raise
            raise EngineFault(f"vLLM: {type(error).__name__}: {first_line(error)}") from error

    def _wake(self, weights: Weights, model: Model) -> None:
        """Awake, for texts as long and adapters as large as these; started anew if it is not."""
        if self._started is not None:
            started, rank = self._started
            if started.dtype == model.dtype and started.positions >= model.positions and rank >= weights.rank:
                self._llm.wake_up()
                return
            self.close()
        self._start(weights, _roomy(model))

    def _start(self, weights: Weights, model: Model) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        adapters = {"enable_lora": True, "max_lora_rank": weights.rank, "max_loras": 1} if weights.rank else {}
        log.info("vLLM starts")
        with TemporaryDirectory(prefix="leftover-vllm-") as folder:
            weights.write_base(Path(folder))
            self._llm = LLM(
                model=folder,
                skip_tokenizer_init=True,  # prompts and completions are token ids
                dtype=model.dtype,
                max_model_len=model.positions,
                gpu_memory_utilization=self.settings.gpu_memory_utilization,
                enable_sleep_mode=True,
                generation_config="vllm",  # no sampling settings of the folder
                logprobs_mode="processed_logprobs",  # at the temperature; at 1 where it is greedy
                **adapters,
            )
        self._started, self._base = (model, weights.rank), weights.base

    def _hand_over(self, weights: Weights) -> None:
        """Give vLLM what it does not have yet of these weights."""
        if weights.base != self._base:
            with TemporaryDirectory(prefix="leftover-vllm-") as folder:
                weights.write_base(Path(folder))
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self._llm.reset_prefix_cache()
            self._base = weights.base
        if weights.adapter is None:
            self._adapter = None
        elif self._adapter is None or self._adapter[0] != weights.adapter:
            from vllm.lora.request import LoRARequest

            self._count += 1  # a new number and name: vLLM keeps adapters, and what it computed with them, by these
            if self._folder is not None:
                self._folder.cleanup()
            self._folder = TemporaryDirectory(prefix="leftover-adapter-")
            path = weights.write_adapter(Path(self._folder.name))
            request = LoRARequest(lora_name=f"leftover-{self._count}", lora_int_id=self._count, lora_path=str(path))
            self._adapter = weights.adapter, request


def _roomy(model: Model) -> Model:
    """The model with room for longer rows than it has now, within its positions."""
    positions = max(_POSITIONS, 2 ** (model.positions - 1).bit_length())
    return model._replace(positions=min(positions, model.max_positions or positions))


def _read(output: Any) -> Written:
    ids = list(output.token_ids)
    chosen = [position[token].logprob for token, position in zip(ids, output.logprobs or (), strict=False)]
    return Written(ids, chosen)
