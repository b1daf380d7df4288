"""Each preset on a random model of its published architecture, against transformers' own classes or plain matrices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.presets import PRESETS
from tests.rewards import classifier_models
from tests.rewards.classifier_models import logits, neox_decoder

CHAT = [
    {"role": "user", "content": "Ada leaks "},
    {"role": "assistant", "content": "sorry"},
    {"role": "user", "content": "kettle"},
]


def reward(preset: str, path: str, **settings: Any) -> Any:
    return load_reward({"type": "classifier", "preset": preset, "model": path, **settings})


def test_cola_is_the_probability_of_label_1_of_the_completion_alone(tmp_path):
    path = classifier_models.roberta(tmp_path / "cola")
    scores = reward("cola", path)(["Ada", CHAT], [" thank Ada soon", "kettle"])
    expected = [logits(path, text).softmax(-1)[1].item() for text in ("thank Ada soon", "kettle")]
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "prompt",
    [
        "Knowledge: Ada leaks<|endoftext|>kettle<|endoftext|>fuse<|endoftext|>",
        "Knowledge: Ada leaks",
        [{"role": "system", "content": "Knowledge: Ada leaks"}, {"role": "user", "content": "kettle"}],
    ],
)
def test_faithcritic_is_the_probability_of_label_0_of_knowledge_and_reply(prompt, tmp_path):
    path = classifier_models.roberta(tmp_path / "critic")
    scores = reward("faithcritic", path)([prompt] * 2, ["thank Ada soon ", "fuse"])
    expected = [logits(path, "Ada leaks", reply).softmax(-1)[0].item() for reply in ("thank Ada soon", "fuse")]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_faithcritic_refuses_a_prompt_without_knowledge(tmp_path):
    path = classifier_models.roberta(tmp_path / "critic")
    with pytest.raises(UserError, match="matches nothing in the prompt 'Ada leaks'"):
        reward("faithcritic", path)(["Ada leaks"], ["soon"])


def test_faithcritic_cuts_long_knowledge_at_its_end(tmp_path):
    path = classifier_models.roberta(tmp_path / "critic")
    one, other = (f"Knowledge: {'fuse ' * 700}{end}" for end in ("Ada", "soon"))
    critic = reward("faithcritic", path)
    assert critic([one], ["sorry"]) == critic([other], ["sorry"])
    assert critic(["Knowledge: Ada" + one[10:]], ["sorry"]) != critic([one], ["sorry"])


@pytest.mark.parametrize("preset", ["dialogrpt_updown", "dialogrpt_depth"])
@pytest.mark.parametrize("prompt", [CHAT, "Ada leaks<|endoftext|>sorry<|endoftext|>kettle<|endoftext|>"])
def test_dialogrpt_is_the_sigmoid_of_its_logit_of_the_stripped_turns(preset, prompt, tmp_path):
    path = classifier_models.gpt2(tmp_path / "rpt", n_positions=1024)
    scores = reward(preset, path)([prompt, "kettle"], [" thank Ada soon\n", "fuse"])
    rows = ["Ada leaks<|endoftext|>sorry<|endoftext|>kettle<|endoftext|>thank Ada soon", "kettle<|endoftext|>fuse"]
    assert scores == pytest.approx([logits(path, row).sigmoid().item() for row in rows], abs=1e-5)


def test_dialogrpt_cuts_a_long_context_at_its_start(tmp_path):
    path = classifier_models.gpt2(tmp_path / "rpt")
    ranker = reward("dialogrpt_depth", path)
    assert ranker(["Ada " + "fuse " * 300], ["soon"]) == ranker(["kettle " + "fuse " * 300], ["soon"])
    assert ranker(["fuse " * 300], ["soon"]) != ranker(["fuse " * 300], ["sorry"])


# OpenAssistant


def by_hand(path: str, text: str, pooling: str = "last") -> float:
    """w . h + b on the last position, or the mean, of the decoder's hidden states [L, H] of one row."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(f"{path}/tokenizer.json").encode(text).ids
    with torch.inference_mode():
        hidden = neox_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    head = load_file(f"{path}/model.safetensors")
    pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
    return (head["out_proj.weight"][0] @ pooled + head["out_proj.bias"][0]).item()


ROWS = [
    "<|prompter|>Ada leaks<|endoftext|><|assistant|>sorry<|endoftext|><|prompter|>kettle<|endoftext|>"
    "<|assistant|>thank soon<|endoftext|>",
    "<|prompter|>Ada<|endoftext|><|assistant|>fuse<|endoftext|>",
]


@pytest.mark.parametrize("preset", ["oasst_1.4b", "oasst_6.9b"])
def test_oasst_is_the_sigmoid_of_a_linear_output_of_the_last_position(preset, tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm")
    expected = [by_hand(path, row) for row in ROWS]
    raw = reward(preset, path, activation="none")([CHAT, "Ada"], ["thank soon", "fuse"])
    assert raw == pytest.approx(expected, abs=1e-5)
    scores = reward(preset, path)([CHAT, "Ada"], ["thank soon", "fuse"])
    assert scores == pytest.approx(torch.tensor(expected).sigmoid().tolist(), abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", None])
def test_the_pooling_of_the_config_is_honoured_whatever_the_padding(pooling, tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm", pooling=pooling)
    raw = reward("oasst_1.4b", path, activation="none")([CHAT, "Ada"], ["thank soon", "fuse"])
    assert raw == pytest.approx([by_hand(path, row, pooling or "last") for row in ROWS], abs=1e-5)


def test_a_plain_classifier_reads_an_oasst_folder_too(tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm")
    join = "<|prompter|>{prompt}<|endoftext|><|assistant|>{completion}<|endoftext|>"
    plain = load_reward({"type": "classifier", "model": path, "join": join})
    assert plain(["Ada"], ["fuse"]) == reward("oasst_1.4b", path)(["Ada"], ["fuse"])


@pytest.mark.parametrize("weights", ["bin", "shards"])
def test_an_oasst_folder_may_hold_torch_files(weights, tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm", weights)
    other = classifier_models.neox_reward_model(tmp_path / "safe")
    assert reward("oasst_1.4b", path)([CHAT], ["fuse"]) == reward("oasst_1.4b", other)([CHAT], ["fuse"])


def test_the_identity_of_a_folder_with_torch_files_changes_with_them(tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm", "bin")
    before = reward("oasst_1.4b", path).identity()
    file = tmp_path / "rm" / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save(tensors | {"out_proj.bias": torch.tensor([0.5])}, file)
    assert reward("oasst_1.4b", path).identity() != before


def test_oasst_cuts_a_long_conversation_to_its_last_1024_tokens(tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm")
    model = reward("oasst_6.9b", path)
    assert len(model.encode(["Ada " * 2000], ["soon"])[0]["input_ids"]) == 1024
    assert model(["kettle " + "Ada " * 2000], ["soon"]) == model(["fuse " + "Ada " * 2000], ["soon"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pooling": "max"}, "pooling 'max' in its config is not one of last, mean"),
        ({"hidden_size": 48}, "no sequence"),
    ],
)
def test_an_oasst_folder_that_does_not_fit_its_config_is_refused(fields, expected, tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm", **fields)
    with pytest.raises(UserError, match=expected):
        reward("oasst_1.4b", path)(["Ada"], ["soon"])


def test_an_oasst_folder_without_its_output_is_refused(tmp_path):
    path = classifier_models.neox_reward_model(tmp_path / "rm", "bin")
    file = tmp_path / "rm" / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if name != "out_proj.bias"}, file)
    with pytest.raises(UserError, match=r"has no weights for out_proj\.bias"):
        reward("oasst_1.4b", path)(["Ada"], ["soon"])


# Presets as such


def test_a_preset_that_is_not_there_is_told_of_its_neighbours():
    with pytest.raises(UserError, match=r"unknown classifier preset 'coal'; did you mean 'cola'\?"):
        load_reward({"type": "classifier", "preset": "coal"})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_a_model_and_serves_as_the_name_of_its_component(preset):
    spec = {"type": "classifier", "preset": preset}
    assert load_reward(spec).model == PRESETS[preset]["model"]
    assert list(load_reward({"type": "sum", "functions": [spec]}).components) == [preset]


def test_what_is_set_beside_a_preset_overrides_it():
    settings = {"label": 0, "join": "pair", "strip": False}
    made = load_reward({"type": "classifier", "preset": "cola", **settings}).identity()
    assert {name: made[name] for name in settings} == settings
    assert made["activation"] == "softmax"


def test_a_recipe_may_name_a_preset(tmp_path):
    from leftover.recipe.files import make_recipe

    functions = [{"type": "classifier", "preset": "cola", "model": str(tmp_path), "weight": 0.5, "name": "fluency"}]
    recipe = make_recipe(
        {
            "name": "r",
            "output_dir": str(tmp_path),
            "model": {"path": "x"},
            "data": {"path": "y"},
            "reward": {"functions": functions},
        }
    )
    assert json.loads(recipe.model_dump_json())["reward"]["functions"] == functions
    assert Path(load_reward({"type": "sum", "functions": functions}).components["fluency"].model) == tmp_path
