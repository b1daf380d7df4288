"""vLLM by the address of a running `vllm serve`."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from leftover.errors import UserError
from leftover.models.engines.request import EngineFault, Model, Request, Sampling, Written, fields
from leftover.models.engines.weights import Weights
from leftover.monitoring.ranks import is_main_process, told
from leftover.recipe.engine import VllmSection
from leftover.services.client import Answer, Key, Patience, ask, shown
from leftover.services.credentials import read_token

_WHERE = "evaluate.vllm.address"
_PARALLEL = 64  # requests at a time, one completion each; the server makes batches of them
_RETRIES, _BACKOFF = 3, 1.0


class ServerEngine:
    """A server's model, and adapters of it that the server is given. It reads weights from folders of this machine."""

    def __init__(self, settings: VllmSection):
        assert settings.address is not None
        self.address, self.patience = settings.address, Patience(settings.timeout, _RETRIES, _BACKOFF)
        self.token_env = settings.token_env
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=_PARALLEL))
        self._name: str | None = None  # what requests call the model
        self._base: str | None = None
        self._adapter: str | None = None
        self._folder: TemporaryDirectory | None = None

    @contextlib.contextmanager
    def serving(self, weights: Weights, model: Model) -> Iterator["ServerEngine"]:
        """Inside, the server has these weights; of several processes the first one gives them."""
        fault: EngineFault | None = None
        if is_main_process():
            try:
                self._hand_over(weights, model)
            except EngineFault as found:
                fault = found
        fault, self._name = told((fault, self._name))
        if fault is not None:
            raise fault
        yield self

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Written]:
        payloads = [
            {"model": self._name, "prompt": asked.prompt_ids, "n": 1, "return_token_ids": True}
            | fields(asked, sampling)
            for asked in requests
        ]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return list(pool.map(self._complete, payloads))

    def _complete(self, payload: dict[str, Any]) -> Written:
        answer = self._json("POST", "/v1/completions", payload)
        try:
            choice = answer["choices"][0]
            return Written(
                [int(i) for i in choice["token_ids"]], [float(x) for x in choice["logprobs"]["token_logprobs"]]
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineFault(
                f"{_WHERE} {self.address}: the answer holds no token ids with log-probabilities: is it vLLM's server?"
            ) from None

    def _hand_over(self, weights: Weights, model: Model) -> None:
        served = self._served()
        base = next((card for card in served if not card.get("parent")), None)
        if base is None:
            raise EngineFault(f"{_WHERE} {self.address}: the server names no model")
        room = base.get("max_model_len")
        if room is not None and room < model.positions:
            raise EngineFault(
                f"{_WHERE} {self.address}: the server takes texts of {room} tokens, and the longest has "
                f"{model.positions}: start it with --max-model-len {model.positions}"
            )
        if weights.base != self._base:
            self._give_base(weights)
        name = str(base["id"])
        if weights.adapter is not None:
            name = f"leftover-{weights.adapter}"
            if name not in {card.get("id") for card in served}:
                self._give_adapter(weights, name)
        self._name = name

    def _served(self) -> list[dict[str, Any]]:
        found = self._json("GET", "/v1/models")
        cards = found.get("data") if isinstance(found, dict) else None
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def _give_base(self, weights: Weights) -> None:
        """Give the server new weights if it takes some; else it has its own, which completions are compared with."""
        if self._ask("POST", "/collective_rpc", {}).status_code != 404:  # without a method it does nothing
            with TemporaryDirectory(prefix="leftover-vllm-") as folder:
                Path(folder).chmod(0o755)  # the server may be another user's
                weights.write_base(Path(folder))
                call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
                self._expect(self._ask("POST", "/collective_rpc", call), "it did not take the model's weights")
            self._expect(self._ask("POST", "/reset_prefix_cache", {}), "it kept what it had computed before")
        self._base = weights.base

    def _give_adapter(self, weights: Weights, name: str) -> None:
        folder = TemporaryDirectory(prefix="leftover-adapter-")
        Path(folder.name).chmod(0o755)
        call = {"lora_name": name, "lora_path": str(weights.write_adapter(Path(folder.name)))}
        self._expect(
            self._ask("POST", "/v1/load_lora_adapter", call),
            "it takes no adapter: start it on this machine with --enable-lora, a --max-lora-rank of at least "
            f"{weights.rank}, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        )
        if self._folder is not None:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
            self._folder.cleanup()
        self._adapter, self._folder = name, folder

    def _json(self, method: str, path: str, payload: Any = None) -> Any:
        response = self._ask(method, path, payload)
        self._expect(response, f"it refuses {path}")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise EngineFault(f"{_WHERE} {self.address}: the answer is not JSON: is it vLLM's server?") from None

    def _expect(self, response: Answer, otherwise: str) -> None:
        if not 200 <= response.status_code < 300:
            answer = shown(response, read_token(self.token_env, _WHERE))
            raise EngineFault(
                f"{_WHERE} {self.address}: {otherwise} (status {response.status_code}, it answered {answer})"
            )

    def _ask(self, method: str, path: str, payload: Any = None) -> Answer:
        token = read_token(self.token_env, _WHERE)
        try:
            return ask(
                self._session,
                method,
                self.address + path,
                payload,
                where=_WHERE,
                patience=self.patience,
                key=Key(token) if token else None,
                remedy="Start it (vllm serve MODEL), or raise evaluate.vllm.timeout",
            )
        except EngineFault:
            raise
        except UserError as error:
            raise EngineFault(str(error)) from error
