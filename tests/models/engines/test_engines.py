"""vLLM in place of transformers' generation: the same semantics, the model's own weights, clear refusals."""

import dataclasses
import inspect
import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from leftover import LoLConfig
from leftover.errors import UserError
from leftover.models.engines import choice
from leftover.models.engines.choice import engine_fact
from leftover.models.engines.request import EngineFault, Request, Sampling, fields, request
from leftover.models.generate import generate
from leftover.recipe import optional_packages
from leftover.recipe.engine import EngineSettings, VllmSection
from tests.models.ending import ending_model
from tests.models.engines import stand_in
from tests.models.engines.stand_in import LLM, Server

PROMPTS = [[1, 5 + i, *range(20, 20 + 3 * (i % 7))] for i in range(12)]
VLLM, AUTO = EngineSettings("vllm"), EngineSettings("auto")


@pytest.fixture
def model(tiny_llama_path: str, tokenizer: Any) -> Any:
    return ending_model(tiny_llama_path, tokenizer)


@pytest.fixture
def adapted(model: Any) -> Any:
    """The same with an adapter that changes it."""
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    change(adapted)
    return adapted


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(choice, "_engines", {})


@pytest.fixture
def vllm(monkeypatch: Any) -> type[LLM]:
    stand_in.install(monkeypatch)
    return LLM


@pytest.fixture
def serve(model: Any, tokenizer: Any, tmp_path: Any) -> Any:
    """`serve(**settings)`: a server of the model as it is, and the settings that name it."""
    model.save_pretrained(tmp_path / "served")
    started: list[Server] = []

    def start(name: Any = "vllm", **settings: Any) -> tuple[Server, EngineSettings]:
        started.append(Server(str(tmp_path / "served"), **settings))
        return started[-1], EngineSettings(name, VllmSection(address=started[-1].address + "/v1/", timeout=20))

    yield start
    for server in started:
        server.close()


def change(model: Any) -> None:
    """Another step of training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def written(model: Any, tokenizer: Any, engine: EngineSettings | None, prompts: Any = PROMPTS, **settings: Any) -> Any:
    return generate(model, tokenizer, prompts, max_new_tokens=12, engine=engine, **settings)


def same(one: Any, other: Any) -> None:
    assert one.ids == other.ids and one.texts == other.texts
    for left, right in zip(one.logprobs, other.logprobs, strict=True):
        assert left.dtype == np.float32
        np.testing.assert_allclose(left, right, atol=1e-4)


# In this process


def test_greedy_completions_texts_and_log_probabilities_are_those_of_transformers(vllm, model, tokenizer):
    found = written(model, tokenizer, VLLM)
    same(found, written(model, tokenizer, None))
    lengths = {len(ids) for ids in found.ids}
    assert 12 in lengths and len(lengths) > 2, "some end early, their end included, and some not at all"
    assert len(vllm.made) == 1 and vllm.made[0].names() == ["__init__", "generate", "sleep"]
    assert vllm.made[0].calls[-1] == ("sleep", {"level": 1})
    assert engine_fact(model) == {"engine": "vllm"}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_sampled_completions_have_the_log_probabilities_of_their_sampling(temperature, vllm, model, tokenizer):
    found = written(model, tokenizer, VLLM, sample=True, temperature=temperature)
    for prompt, ids, logprobs in zip(PROMPTS, found.ids, found.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        own = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        np.testing.assert_allclose(logprobs, own, atol=1e-4)


def test_a_sampled_completion_depends_on_the_seed_its_prompt_and_its_number_alone(vllm, model, tokenizer):
    twice = [*PROMPTS, PROMPTS[0]]
    found = written(model, tokenizer, VLLM, twice, sample=True, seed=3).ids
    assert written(model, tokenizer, VLLM, twice[::-1], sample=True, seed=3, copies=[1, *[0] * 12]).ids == found[::-1]
    assert written(model, tokenizer, VLLM, twice[5:6], sample=True, seed=3).ids == found[5:6]
    assert found[0] != found[-1], "an equal prompt has a completion of its own"
    assert written(model, tokenizer, VLLM, twice, sample=True, seed=4).ids != found


def test_the_global_generators_are_left_alone(vllm, model, tokenizer):
    before = torch.get_rng_state()
    written(model, tokenizer, VLLM, sample=True)
    assert torch.equal(before, torch.get_rng_state())


def test_new_weights_are_handed_over_once_and_the_cache_of_the_old_is_dropped(vllm, model, tokenizer):
    written(model, tokenizer, VLLM)
    change(model)
    same(written(model, tokenizer, VLLM), written(model, tokenizer, None))
    same(written(model, tokenizer, VLLM), written(model, tokenizer, None))
    handed = ["wake_up", "collective_rpc", "reset_prefix_cache", "generate", "sleep"]
    assert len(vllm.made) == 1
    assert vllm.made[0].names() == ["__init__", "generate", "sleep", *handed, "wake_up", "generate", "sleep"]


def test_an_adapter_is_handed_over_beside_its_base_without_merging(vllm, adapted, tokenizer):
    same(written(adapted, tokenizer, VLLM), written(adapted, tokenizer, None))
    same(written(adapted, tokenizer, VLLM), written(adapted, tokenizer, None))
    change(adapted)
    same(written(adapted, tokenizer, VLLM), written(adapted, tokenizer, None))
    with adapted.disable_adapter():
        same(written(adapted, tokenizer, VLLM), written(adapted, tokenizer, None))
    (llm,) = vllm.made
    assert "collective_rpc" not in llm.names(), "the base was handed over once, when vLLM was started"
    used = [what["lora"] and what["lora"].lora_int_id for name, what in llm.calls if name == "generate"]
    assert used == [1, 1, 2, None]
    assert llm.calls[0][1]["max_lora_rank"] == 8 and llm.calls[0][1]["max_loras"] == 1
    assert adapted.peft_config["default"].r == 4


def test_vllm_is_started_anew_for_an_adapter_or_longer_texts_that_it_has_no_room_for(vllm, model, tokenizer):
    written(model, tokenizer, VLLM, [[1, 2]])
    assert vllm.made[-1].max_model_len == 128, "as many positions as the model has"
    adapted = get_peft_model(model, LoraConfig(r=20, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    written(adapted, tokenizer, VLLM, [[1, 2]])
    with adapted.disable_adapter():
        written(adapted, tokenizer, VLLM, [[1, 2]])
    assert [llm.lora_rank for llm in vllm.made] == [0, 32]


def test_bfloat16_of_training_is_the_dtype_of_vllm(vllm, model, tokenizer):
    written(model, tokenizer, VLLM, compute_dtype="bfloat16")
    assert vllm.made[0].dtype == torch.bfloat16


def test_after_a_failure_vllm_is_ended_and_started_anew(vllm, model, tokenizer, monkeypatch):
    def fail(llm: LLM, name: str) -> None:
        if name == "generate":
            raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(LLM, "fail", staticmethod(fail))
    with pytest.raises(UserError, match=r"^vLLM: RuntimeError: CUDA out of memory$"):
        written(model, tokenizer, VLLM)
    monkeypatch.setattr(LLM, "fail", None)
    same(written(model, tokenizer, VLLM), written(model, tokenizer, None))
    assert len(vllm.made) == 2


@pytest.mark.parametrize("what", ["weights", "end", "temperature"])
def test_completions_that_are_not_the_models_are_refused_and_auto_turns_to_transformers(
    what, vllm, model, tokenizer, monkeypatch, caplog
):
    if what == "weights":
        monkeypatch.setattr(LLM, "_load", wrong_weights)
    elif what == "temperature":
        original = LLM.__init__
        raw = {"logprobs_mode": "raw_logprobs"}
        monkeypatch.setattr(LLM, "__init__", lambda llm, model, **options: original(llm, model, **options | raw))
    else:
        original = LLM._complete
        monkeypatch.setattr(LLM, "_complete", lambda *asked: cut(original(*asked)))
    expected = "ended a completion after" if what == "end" else "log-probabilities are not the model's"
    settings = {"sample": True, "temperature": 0.5}
    with pytest.raises(EngineFault, match=expected):
        written(model, tokenizer, VLLM, **settings)
    with caplog.at_level(logging.WARNING):
        same(written(model, tokenizer, AUTO, **settings), written(model, tokenizer, None, **settings))
    assert len([r for r in caplog.records if "transformers writes the completions" in r.message]) == 1
    assert engine_fact(model) == {}
    started = len(vllm.made)
    written(model, tokenizer, AUTO, **settings)
    assert len(vllm.made) == started, "for this model it is not tried again"


def wrong_weights(llm: LLM, weights_path: str) -> None:
    from transformers import AutoModelForCausalLM

    llm.model = AutoModelForCausalLM.from_pretrained(weights_path).eval()
    with torch.no_grad():
        llm.model.lm_head.weight.mul_(1.1)


def cut(output: Any) -> Any:
    output.token_ids, output.logprobs = output.token_ids[:1], output.logprobs[:1]
    return output


# What vLLM cannot do


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "its adapter has use_dora"),
        ({"modules_to_save": ["lm_head"]}, "its adapter has modules_to_save"),
        ({"bias": "all"}, "its adapter trains biases"),
        ({"r": 600}, "above 512"),
    ],
)
def test_adapters_that_vllm_does_not_know_are_refused_and_auto_takes_transformers(
    settings, reason, vllm, model, tokenizer, caplog
):
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings)
    adapted = get_peft_model(model, config)
    with pytest.raises(UserError, match=f"evaluate.engine: vllm cannot serve the model: .*{reason}"):
        written(adapted, tokenizer, VLLM)
    same(written(adapted, tokenizer, AUTO), written(adapted, tokenizer, None))
    assert reason in caplog.text and not vllm.made


def test_a_merged_adapter_and_several_are_refused(vllm, adapted, tokenizer):
    adapted.merge_adapter()
    with pytest.raises(UserError, match="merged"):
        written(adapted, tokenizer, VLLM)
    adapted.unmerge_adapter()
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="several of its adapters are active"):
        written(adapted, tokenizer, VLLM)


def test_temperatures_and_lengths_beyond_vllm_are_refused(vllm, model, tokenizer):
    for temperature in (0.001, 2.5):
        with pytest.raises(UserError, match=r"at temperatures from 0\.01 to 2"):
            written(model, tokenizer, VLLM, sample=True, temperature=temperature)
    with pytest.raises(UserError, match=r"have 132 tokens, the model 128 positions"):
        written(model, tokenizer, VLLM, [[1] * 120])


def test_several_processes_need_a_server(vllm, model, tokenizer, monkeypatch):
    monkeypatch.setattr(choice, "processes", lambda: 2)
    with pytest.raises(UserError, match=r"serves one process: start a server"):
        written(model, tokenizer, VLLM)


def test_vllm_without_the_package_or_a_gpu_says_what_to_do_and_auto_is_transformers(model, tokenizer, monkeypatch):
    find = optional_packages.importlib.util.find_spec
    for found, remedy in ((None, r"pip install 'leftover\[vllm\]'"), (object(), "needs a GPU")):
        monkeypatch.setattr(
            optional_packages.importlib.util, "find_spec", lambda name, f=found: f if name == "vllm" else find(name)
        )
        if torch.cuda.is_available() and found:
            continue
        for asked in (lambda: written(model, tokenizer, VLLM), lambda: LoLConfig(eval_engine="vllm", output_dir="x")):
            with pytest.raises(UserError, match=f"evaluate.engine: vllm .*{remedy}"):
                asked()
        same(written(model, tokenizer, AUTO), written(model, tokenizer, None))
    optional_packages.check_engine(EngineSettings("vllm", VllmSection(address="http://host:8000")))


def test_no_prompts_start_nothing(vllm, model, tokenizer):
    assert written(model, tokenizer, VLLM, []) == ([], [], [])
    assert not vllm.made


# By address


@pytest.mark.parametrize("name", ["vllm", "auto"])
def test_a_server_of_the_model_writes_as_transformers_does(name, serve, model, tokenizer):
    server, settings = serve(name)
    same(written(model, tokenizer, settings), written(model, tokenizer, None))
    assert written(model, tokenizer, settings, sample=True, seed=1).ids
    assert server.paths() == ["/v1/models", "/collective_rpc", "/v1/models"]
    bodies = [body for path, body, _ in server.requests if path == "/v1/completions"]
    assert len(bodies) == 2 * len(PROMPTS)


def test_a_server_in_development_mode_takes_new_weights(serve, model, tokenizer):
    server, settings = serve(dev=True)
    change(model)
    for _ in range(2):
        same(written(model, tokenizer, settings), written(model, tokenizer, None))
    handed = ["/v1/models", "/collective_rpc", "/collective_rpc", "/reset_prefix_cache"]
    assert server.paths() == [*handed, "/v1/models"]


def test_a_server_takes_adapters_and_gives_up_the_last(serve, adapted, tokenizer):
    server, settings = serve(adapters=True)
    same(written(adapted, tokenizer, settings), written(adapted, tokenizer, None))
    same(written(adapted, tokenizer, settings), written(adapted, tokenizer, None))
    change(adapted)
    same(written(adapted, tokenizer, settings), written(adapted, tokenizer, None))
    assert [path for path in server.paths() if "adapter" in path] == [
        "/v1/load_lora_adapter", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    ]  # fmt: skip
    assert len(server.loaded) == 1


def test_a_server_of_other_weights_or_other_log_probabilities_is_refused(serve, model, tokenizer, caplog):
    _, settings = serve()
    with pytest.raises(UserError, match=r"--logprobs-mode processed_logprobs"):
        written(model, tokenizer, settings, sample=True, temperature=0.5)
    change(model)
    with pytest.raises(UserError, match="a server must serve this very model"):
        written(model, tokenizer, settings)
    auto = dataclasses.replace(settings, name="auto")
    same(written(model, tokenizer, auto), written(model, tokenizer, None))
    assert "transformers writes the completions" in caplog.text
    _, processed = serve(mode="processed_logprobs", dev=True)
    assert written(model, tokenizer, processed, sample=True, temperature=0.5).ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 20}, "start it with --max-model-len 32"),
        ({"change": lambda choice: choice.update(token_ids=None)}, "holds no token ids"),
        ({"change": lambda choice: choice["logprobs"]["token_logprobs"].pop()}, "log-probabilities for"),
        ({"change": lambda choice: (choice["token_ids"].pop(), choice["logprobs"]["token_logprobs"].pop())}, "ended"),
    ],
)
def test_faults_of_a_server_are_said(settings, message, serve, model, tokenizer):
    with pytest.raises(UserError, match=message):
        written(model, tokenizer, serve(**settings)[1])


def test_a_server_without_adapters_or_none_at_all(serve, adapted, tokenizer, monkeypatch):
    with pytest.raises(UserError, match=r"it takes no adapter: start it on this machine with --enable-lora"):
        written(adapted, tokenizer, serve()[1])
    monkeypatch.setattr("leftover.models.engines.server._RETRIES", 0)
    nowhere = EngineSettings("vllm", VllmSection(address="http://127.0.0.1:9"))
    with pytest.raises(UserError, match=r"no answer, tried 1 times: .*vllm serve MODEL"):
        written(adapted, tokenizer, nowhere)


def test_the_key_of_a_server_comes_from_the_environment_and_is_not_shown(serve, model, tokenizer, monkeypatch):
    server, settings = serve()
    keyed = EngineSettings("vllm", settings.vllm.model_copy(update={"token_env": "VLLM_KEY"}))
    with pytest.raises(UserError, match="VLLM_KEY"):
        written(model, tokenizer, keyed)
    monkeypatch.setenv("VLLM_KEY", "canary-1")
    written(model, tokenizer, keyed)
    assert {headers.get("Authorization") for *_, headers in server.requests} == {"Bearer canary-1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "host:8000"}, "not of the form http"),
        ({"address": "http://me:canary@host"}, "holds credentials"),
        ({"token_env": "sk-canary key"}, "name of an environment variable"),
    ],
)
def test_addresses_and_keys_are_checked_when_they_are_read(settings, message):
    with pytest.raises(UserError, match=message) as error:
        VllmSection(**settings)
    assert "canary" not in str(error.value)
    with pytest.raises(UserError):
        LoLConfig(eval_vllm=settings, output_dir="x")


# vLLM's own signatures


def names_of(what: Any) -> list[str]:
    return [name for name in inspect.signature(what).parameters if name not in ("self", "args", "kwargs")]


def test_the_stand_in_has_the_parameters_that_are_recorded():
    methods = {name: getattr(LLM, name.removeprefix("LLM.")) for name in stand_in.USED if name.startswith("LLM.")}
    for name, recorded in stand_in.USED.items():
        if name == "LLM.__init__":
            assert names_of(LLM) == recorded + stand_in.USED["EngineArgs"]
        elif name in methods:
            found = list(inspect.signature(methods[name]).parameters)[1:]
            assert found == recorded
        elif name in ("SamplingParams", "LoRARequest"):
            assert names_of(getattr(stand_in, name)) == recorded


def test_what_is_sent_is_what_is_recorded():
    sent = fields(request([1, 2], 0, 7, True), Sampling(5, 1.0, (3,)))
    assert sorted([*sent, "detokenize"]) == sorted(stand_in.USED["SamplingParams"])
    assert sorted([*sent, "model", "prompt", "n", "return_token_ids"]) == sorted(stand_in.USED["CompletionRequest"])
    assert sent["stop_token_ids"] == [3] and sent["temperature"] == 1.0 and 0 <= sent["seed"] < 2**63
    greedy = fields(Request([1], None), Sampling(5, None, (3,)))
    assert greedy["temperature"] == 0.0 and greedy["seed"] is None


def test_the_real_package():
    """Where vLLM is installed: every call of ours fits its own signatures, and its types take what we send."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not re.match(r"0\.(3[3-9]|[4-9]\d)|[1-9]", str(getattr(__import__("vllm"), "__version__", "1"))):
        pytest.skip("an older vLLM")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.llm import LLM as Real
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams

    used = stand_in.USED
    for name in ("generate", "sleep", "wake_up", "collective_rpc", "reset_prefix_cache", "__init__"):
        inspect.signature(getattr(Real, name)).bind(None, **dict.fromkeys(used[f"LLM.{name}"]))
    assert set(used["EngineArgs"]) <= {entry.name for entry in dataclasses.fields(EngineArgs)}
    sent = fields(request([1, 2], 0, 7, True), Sampling(5, 1.0, (3,)))
    params = SamplingParams(**sent, detokenize=False)
    assert params.stop_token_ids == [3] and params.logprobs == 0 and params.seed == sent["seed"]
    params.update_from_generation_config({"eos_token_id": [9]}, 8)
    assert params.stop_token_ids == [3] and params.eos_token_id is None, "it ends at our ends alone"
    asked = CompletionRequest(model="m", prompt=[1, 2], n=1, return_token_ids=True, **sent)
    server_params = asked.to_sampling_params(5, {"temperature": 0.3, "top_k": 5, "repetition_penalty": 2.0})
    assert (server_params.temperature, server_params.top_k, server_params.repetition_penalty) == (1.0, 0, 1.0)
    LoRARequest(lora_name="a", lora_int_id=1, lora_path="b")
    LoadLoRAAdapterRequest(lora_name="a", lora_path="b")
    UnloadLoRAAdapterRequest(lora_name="a")
    assert "prompt_token_ids" in TokensPrompt.__annotations__
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    assert set(used["Worker.reload_weights"]) <= set(inspect.signature(reload_weights).parameters)
