"""What a model is: causal or not, what its trunk is called, and what an adapter puts before the text."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from leftover import LoLConfig, LoLTrainer
from leftover.data.collate import Collator
from leftover.errors import UserError
from leftover.models.generate import generate
from leftover.models.load import load_model
from leftover.models.logprobs import completion_logprobs
from leftover.models.probe import check_causal
from leftover.models.reference import prompt_hidden, reference_pass
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from tests.conftest import scored_rows

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "n_embd": 32,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_layer": 2, "n_head": 4, "d_model": 32,
    "n_positions": 64, "decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "ffn_dim": 64, "word_embed_proj_dim": 32, "d_ff": 64,
    "num_experts": 4, "num_local_experts": 4, "num_layers": 2, "d_kv": 8, "num_heads": 4, "intermediate_size_mlp": 64,
    "rotary_dim": 8, "moe_intermediate_size": 16, "attention_hidden_size": 32, "state_size": 8, "embedding_size": 32,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip

ROWS = [{"prompt_ids": [5, 6, 7, 8], "completion_ids": [9, 10]}, {"prompt_ids": [15], "completion_ids": [19, 20, 31]}]


def tiny(kind: str, auto: Any = AutoModelForCausalLM, vocab_size: int = 128, **settings: Any) -> Any:
    names = AutoConfig.for_model(kind).to_dict().keys() | AutoConfig.for_model(kind).attribute_map.keys()
    sizes = {name: size for name, size in SIZES.items() if name in names}
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, **(sizes | {"vocab_size": vocab_size} | settings))).eval()


def plainly(model: Any, row: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and the prompt's last hidden states of one row alone, as transformers gives them."""
    ids, start = torch.tensor([row["prompt_ids"] + row["completion_ids"]]), len(row["prompt_ids"])
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    logprobs = out.logits[0].float().log_softmax(-1)[-ids.shape[1] :]
    states = None if out.hidden_states is None else out.hidden_states[-1][0, -ids.shape[1] :][:start]
    return torch.stack([logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]), states


@pytest.mark.parametrize(
    "kind",
    [
        "gpt2", "llama", "mistral", "mixtral", "gpt_neox", "gptj", "bloom", "falcon", "phi", "phi3", "gemma", "gemma2",
        "opt", "bart", "mbart", "blenderbot", "pegasus", "llama4_text", "mamba", "rwkv", "xglm", "biogpt", "cohere",
        "granite", "stablelm", "olmo2", "modernbert-decoder", "qwen3", "starcoder2", "ctrl",
    ],
)  # fmt: skip
def test_log_probabilities_and_hidden_states_are_those_of_the_model_itself(kind: str, tokenizer: Any) -> None:
    model = tiny(kind)
    check_causal(model, kind)
    logprobs, features = reference_pass(model, tokenizer, ROWS)
    assert features is not None
    hidden = dict(prompt_hidden(model, tokenizer, [row["prompt_ids"] for row in ROWS]))
    for i, row in enumerate(ROWS):
        expected, states = plainly(model, row)
        torch.testing.assert_close(torch.from_numpy(logprobs[i]), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden[i], states, atol=1e-5, rtol=1e-5)
        pooled = torch.cat([states.mean(0), states[-1]])
        torch.testing.assert_close(torch.from_numpy(features[i]), pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlnet", "rembert", "xlm", "prophetnet", "cpmant"])
def test_a_model_that_reads_ahead_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="X: "):
        check_causal(tiny(kind), "X")


def test_an_encoder_that_is_made_a_decoder_is_one() -> None:
    check_causal(tiny("bert", is_decoder=True), "X")


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("roberta", {"is_decoder": True}, "other probabilities"),  # counts positions from another start
        ("xlm", {"causal": True, "asm": False}, "other probabilities"),  # puts a mask token behind the text
        ("bart", {"num_hidden_layers": 1, "decoder_layers": 2}, "cannot go on"),  # a cache of too few layers
    ],
)
def test_a_model_that_generates_otherwise_than_it_is_scored_is_refused(kind: str, settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"X: .*{said}"):
        check_causal(tiny(kind, **settings), "X")


@pytest.mark.parametrize(
    ("kind", "auto", "facts"),
    [
        ("bert", AutoModelForMaskedLM, ("BertLMHeadModel", "that follow")),
    ],
)
def test_a_recipe_and_a_trainer_refuse_it_before_a_row_is_read(
    kind: str, auto: Any, facts: tuple[str, str], tokenizer: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "model")
    tiny(kind, auto, len(tokenizer), max_position_embeddings=128).save_pretrained(path)
    tokenizer.save_pretrained(path)
    recipe = tiny_recipe(tmp_path, rows=["no row"], model={"path": path})
    args = LoLConfig(output_dir=str(tmp_path / "out"), objective="nll")
    for start in (lambda: run(make_recipe(recipe)), lambda: LoLTrainer(path, args, ["no row"])):
        with pytest.raises(UserError) as refused:
            start()
        message = str(refused.value)
        assert not [fact for fact in (path, *facts) if fact not in message] and "\n" not in message, message


def test_a_model_is_tried_once_a_run_and_again_when_it_changes(
    tiny_llama_path: str, tiny_gpt2_path: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from leftover.runs import causal

    tried: list[str] = []
    monkeypatch.setattr(causal, "check_causal", lambda model, what: tried.append(type(model).__name__))
    for path in (tiny_llama_path, tiny_llama_path, tiny_gpt2_path):
        run(make_recipe(tiny_recipe(tmp_path, model={"path": path})), until="prepare")
    assert tried == ["LlamaForCausalLM", "GPT2LMHeadModel"]


VIRTUAL = [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig]
# peft looks for the cache of generation under the name that transformers 5.24 changed.
CANNOT_GENERATE = Version(transformers.__version__) >= Version("5.24") and Version(peft.__version__) <= Version(
    "0.21.2"
)


def with_virtual_tokens(config: Any, base: str, scale: float = 1.0) -> Any:
    """An adapter of four virtual tokens, `scale` away from where it begins."""
    model: Any = get_peft_model(tiny(base), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return model


@pytest.mark.skipif(not CANNOT_GENERATE, reason="these versions go together")
@pytest.mark.parametrize("base", ["llama", "gpt2", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("config", VIRTUAL)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_versions_that_generate_otherwise_are_refused_before_an_adapter_trains(
    config: Any, base: str, scale: float
) -> None:
    with pytest.raises(UserError) as refused:
        check_causal(with_virtual_tokens(config, base, scale), "X")
    message = str(refused.value)
    assert f"peft {peft.__version__} and transformers {transformers.__version__}" in message and "LoRA" in message
    assert "\n" not in message


@pytest.mark.skipif(CANNOT_GENERATE, reason="refused with these versions")
@pytest.mark.parametrize("config", VIRTUAL[:2])
def test_an_adapter_whose_positions_generation_miscounts_is_refused(config: Any, monkeypatch: Any) -> None:
    """As those versions do: behind the prompt, positions are counted without the virtual tokens."""
    model = with_virtual_tokens(config, "llama")
    usual = model.prepare_inputs_for_generation

    def miscounted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = usual(*args, **kwargs)
        if found.get("input_ids") is not None:
            position = found["past_key_values"].get_seq_length() - 4
            found["position_ids"] = torch.full_like(found["input_ids"], position)
        return found

    check_causal(model, "X")
    monkeypatch.setattr(model, "prepare_inputs_for_generation", miscounted)
    with pytest.raises(UserError, match=r"X: with an adapter of virtual tokens, .* take a LoRA adapter"):
        check_causal(model, "X")


@pytest.mark.skipif(CANNOT_GENERATE, reason="refused with these versions")
@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("config", VIRTUAL)
def test_virtual_tokens_shift_no_log_probability(config: Any, base: str, tokenizer: Any) -> None:
    model = with_virtual_tokens(config, base)
    check_causal(model, "X")
    logprobs, features = reference_pass(model, tokenizer, ROWS)
    assert features is not None and features.shape == (2, 64)
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(torch.from_numpy(logprobs[i]), plainly(model, row)[0], atol=1e-5, rtol=0)
    prompts = [[5, 6, 7, 8, 9], [15, 16], [20]]
    found, *_ = generate(model, tokenizer, prompts, max_new_tokens=6)
    for prompt, completion in zip(prompts, found, strict=True):
        for token in completion:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()) == token
            prompt = [*prompt, token]


def test_a_head_that_gets_other_positions_than_tokens_is_told_and_not_misread() -> None:
    model: Any = get_peft_model(tiny("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.active_peft_config.num_virtual_tokens = 3
    with pytest.raises(UserError, match="positions for"):
        completion_logprobs(model, Collator(1)(ROWS))


@pytest.mark.parametrize("config", [IA3Config] if CANNOT_GENERATE else [*VIRTUAL, IA3Config])
def test_adapters_of_every_kind_train_and_are_read_back(
    config: Any, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    own = {} if config is IA3Config else {"num_virtual_tokens": 4}
    args = LoLConfig(output_dir=str(tmp_path), objective="nll", max_steps=2, save_strategy="no", learning_rate=0.1)
    trainer = LoLTrainer(
        tiny_llama_path,
        args,
        scored_rows(4),
        processing_class=tokenizer,
        peft_config=config(task_type="CAUSAL_LM", **own),
    )
    trainer.train()
    expected, _ = reference_pass(trainer.model, tokenizer, ROWS, features=False)
    trainer.save_model(str(tmp_path / "adapter"))
    again = load_model(str(tmp_path / "adapter"))
    found, _ = reference_pass(again, tokenizer, ROWS, features=False)
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(expected, found, strict=True))
    if own:
        with pytest.raises(UserError, match="none of its weights trains"):
            LoLTrainer(again, args, scored_rows(4), processing_class=tokenizer)
