"""A stand-in for vLLM 0.33 with its signatures, which runs transformers: what it is asked for in vLLM's terms."""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, TypedDict

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

# The names of vLLM 0.33's own parameters that we use, in their order there; `test_the_real_package` holds them to it.
USED: dict[str, list[str]] = {
    "LLM.__init__": ["model", "skip_tokenizer_init", "dtype", "gpu_memory_utilization"],
    "EngineArgs": [
        "max_model_len", "logprobs_mode", "enable_lora", "max_loras", "max_lora_rank", "generation_config",
        "enable_sleep_mode",
    ],
    "LLM.generate": ["prompts", "sampling_params", "use_tqdm", "lora_request"],
    "LLM.sleep": ["level", "mode"],
    "LLM.wake_up": ["tags"],
    "LLM.collective_rpc": ["method", "timeout", "args", "kwargs"],
    "LLM.reset_prefix_cache": ["reset_running_requests", "reset_connector"],
    "Worker.reload_weights": ["weights_iterator", "weights_path", "is_checkpoint_format"],
    "SamplingParams": [
        "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
        "seed", "stop_token_ids", "ignore_eos", "max_tokens", "logprobs", "detokenize",
    ],
    "LoRARequest": ["lora_name", "lora_int_id", "lora_path"],
    "TokensPrompt": ["prompt_token_ids"],
    "CompletionRequest": [
        "model", "prompt", "frequency_penalty", "logprobs", "max_tokens", "n", "presence_penalty", "seed",
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos",
        "return_token_ids",
    ],
    "LoadLoRAAdapterRequest": ["lora_name", "lora_path"],
    "UnloadLoRAAdapterRequest": ["lora_name"],
}  # fmt: skip


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    """Of vLLM's fields those of `USED`, with its defaults."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        neutral = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty, self.top_p, self.min_p)
        assert neutral == (0, 0, 1, 1, 0) and self.top_k == 0 and self.ignore_eos
        assert 0 <= self.temperature <= 2 and self.logprobs == 0
        assert self.seed is None or -(2**63) <= self.seed < 2**63


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class LLM:
    """One at a time; notes every call, and what it must not be asked to do it refuses."""

    made: ClassVar[list["LLM"]] = []
    fail: ClassVar[Callable[["LLM", str], None] | None] = None  # called with the name of every method

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        logprobs_mode: str = "raw_logprobs",
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        generation_config: str = "auto",
        enable_sleep_mode: bool = False,
    ) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._note("__init__", {k: v for k, v in locals().items() if k not in ("self", "model")})
        assert skip_tokenizer_init and enable_sleep_mode and generation_config == "vllm" and gpu_memory_utilization > 0
        self.max_model_len, self.lora_rank = max_model_len, max_lora_rank if enable_lora else 0
        self.mode, self.dtype = logprobs_mode, getattr(torch, dtype)
        self.asleep = self.stale = False
        self.adapters: dict[int, tuple[LoRARequest, Any]] = {}
        self.model: Any = None
        self._load(model)
        LLM.made.append(self)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self._note("sleep", {"level": level})
        assert not self.asleep
        self.asleep, self.stale = True, False  # what was computed before is forgotten

    def wake_up(self, tags: list[str] | None = None) -> bool:
        self._note("wake_up", {"tags": tags})
        assert self.asleep
        self.asleep = False
        return True

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> list[None]:
        self._note("collective_rpc", {"method": method, "kwargs": kwargs})
        assert method == "reload_weights" and not self.asleep and not args and kwargs is not None
        self._load(**{"weights_path": None} | kwargs)
        self.stale = True
        return [None]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self._note("reset_prefix_cache", {})
        self.stale = False
        return True

    def generate(
        self,
        prompts: Sequence[TokensPrompt],
        sampling_params: Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        self._note("generate", {"prompts": list(prompts), "params": sampling_params, "lora": lora_request})
        assert not self.asleep and not self.stale and sampling_params is not None
        model = self._with(lora_request)
        rows = [(one["prompt_token_ids"], of) for one, of in zip(prompts, sampling_params, strict=True)]
        return [SimpleNamespace(outputs=[self._complete(model, *row)]) for row in rows]

    def _note(self, name: str, what: dict[str, Any]) -> None:
        self.calls.append((name, what))
        if LLM.fail is not None:
            LLM.fail(self, name)

    def _load(self, weights_path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(weights_path, dtype=self.dtype).eval()

    def _with(self, lora: LoRARequest | None) -> Any:
        if lora is None:
            return self.model
        known = self.adapters.get(lora.lora_int_id)
        assert known is None or known[0] == lora, "one number stands for one adapter"
        if known is None:
            config = json.loads((Path(lora.lora_path) / "adapter_config.json").read_text())
            assert 0 < config["r"] <= self.lora_rank
            base = AutoModelForCausalLM.from_config(self.model.config, dtype=self.dtype)
            base.load_state_dict(self.model.state_dict())
            self.adapters[lora.lora_int_id] = lora, PeftModel.from_pretrained(base, lora.lora_path).eval()
        return self.adapters[lora.lora_int_id][1]

    @torch.inference_mode()
    def _complete(self, model: Any, prompt: list[int], params: SamplingParams) -> Any:
        assert params.max_tokens is not None and params.stop_token_ids is not None
        assert self.max_model_len is None or len(prompt) + params.max_tokens <= self.max_model_len
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        ids: list[int] = []
        chosen: list[dict[int, Any]] = []
        while len(ids) < params.max_tokens:
            raw = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            processed = raw / (params.temperature or 1.0)
            probabilities = processed.softmax(-1)
            token = int(raw.argmax())
            if params.temperature:
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            of = (processed if self.mode == "processed_logprobs" else raw).log_softmax(-1)
            ids.append(token)
            chosen.append({token: SimpleNamespace(logprob=float(of[token]))})
            if token in params.stop_token_ids:
                break
        return SimpleNamespace(token_ids=ids, logprobs=chosen)


def install(monkeypatch: Any) -> None:
    """`import vllm` gives the stand-in, and this machine is said to have what vLLM needs."""
    package, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vars(package).update(LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=TokensPrompt, lora=lora)
    vars(request).update(LoRARequest=LoRARequest)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for place in ("leftover.models.engines.choice", "leftover.recipe.optional_packages"):
        monkeypatch.setattr(f"{place}.missing_for_vllm", lambda settings: None)
    monkeypatch.setattr("leftover.models.engines.choice._engines", {})
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "fail", None)


class Server:
    """`vllm serve` of a folder: the routes that we use, around one `LLM`.

    dev: VLLM_SERVER_DEV_MODE=1. adapters: --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. change: what is
    done to the answer of a completion.
    """

    def __init__(
        self,
        path: str,
        *,
        dev: bool = False,
        adapters: bool = False,
        mode: str = "raw_logprobs",
        max_model_len: int = 128,
        change: Callable[[dict[str, Any]], None] = lambda choice: None,
    ) -> None:
        self.llm = LLM(
            path, skip_tokenizer_init=True, enable_sleep_mode=True, generation_config="vllm", dtype="float32",
            logprobs_mode=mode, enable_lora=adapters, max_model_len=max_model_len,
        )  # fmt: skip
        self.dev, self.adapters, self.change = dev, adapters, change
        self.loaded: dict[str, LoRARequest] = {}
        self.requests: list[tuple[str, Any, dict[str, str]]] = []
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(None)

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: Any) -> None:
                with lock:
                    server.requests.append((self.path, body, dict(self.headers)))
                    status, answer = server.answer(self.path, body)
                sent = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def paths(self) -> list[str]:
        return [path for path, *_ in self.requests if path != "/v1/completions"]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            cards = [{"id": "served", "root": "/x", "parent": None, "max_model_len": self.llm.max_model_len}]
            return 200, {"data": cards + [{"id": name, "parent": "served"} for name in self.loaded]}
        if path == "/v1/completions":
            return self._completion(body)
        if self.dev and path == "/collective_rpc":
            if "method" not in body:
                return 400, {"detail": "Missing 'method' in request body"}
            self.llm.collective_rpc(body["method"], kwargs=body["kwargs"])
            return 200, {"results": [None]}
        if self.dev and path == "/reset_prefix_cache":
            return 200, {"success": self.llm.reset_prefix_cache()}
        if self.adapters and path == "/v1/load_lora_adapter":
            name = body["lora_name"]
            assert name not in self.loaded
            self.loaded[name] = LoRARequest(name, len(self.requests), body["lora_path"])
            self.llm._with(self.loaded[name])
            return 200, "Success"
        if self.adapters and path == "/v1/unload_lora_adapter":
            del self.loaded[body["lora_name"]]
            return 200, "Success"
        return 404, {"detail": "Not Found"}

    def _completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, prompt = body.pop("model"), body.pop("prompt")
        if name != "served" and name not in self.loaded:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        assert body.pop("return_token_ids") and body.pop("n") == 1
        prompts = [TokensPrompt(prompt_token_ids=prompt)]
        output = self.llm.generate(prompts, [SamplingParams(**body)], lora_request=self.loaded.get(name))[0].outputs[0]
        values = [of[token].logprob for token, of in zip(output.token_ids, output.logprobs, strict=True)]
        choice = {"index": 0, "text": "", "token_ids": output.token_ids, "logprobs": {"token_logprobs": values}}
        self.change(choice)
        return 200, {"choices": [choice]}
