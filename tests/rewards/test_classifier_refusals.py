"""Sequence classifiers as rewards: their keys, and what they refuse."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.classifier import ClassifierReward
from leftover.rewards.pretrained import untrained_classifier
from tests.rewards import classifier_models


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random classifiers: BERT with three classes, RoBERTa with one output, GPT-2 without padding."""
    folder = tmp_path_factory.mktemp("classifiers")
    return {
        "bert": classifier_models.bert(folder / "bert"),
        "roberta": classifier_models.roberta(folder / "roberta", num_labels=1),
        "gpt2": classifier_models.gpt2(folder / "gpt2"),
    }


def reward(path: str, **settings: Any) -> ClassifierReward:
    return load_reward({"type": "classifier", "model": path, **settings})


# Keys


def test_the_identity_of_a_classifier_is_the_same_before_and_after_it_scored(classifiers):
    scored = reward(classifiers["bert"])
    before = scored.identity()
    scored(["Ada"], ["soon"])
    assert scored.identity() == before


@pytest.mark.parametrize(
    "setting",
    [
        {"label": 0},
        {"activation": "none"},
        {"join": "{prompt}{completion}"},
        {"prompt_pattern": "(.*)"},
        {"turns": {"user": "{content}"}},
        {"turn_separator": " "},
        {"strip": True},
        {"truncation_side": "right"},
        {"max_length": 9},
        {"dtype": "bfloat16"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_the_identity_holds_every_setting_that_scores_depend_on(setting, classifiers):
    assert reward(classifiers["bert"], **setting).identity() != reward(classifiers["bert"]).identity()


def test_the_identity_does_not_hold_what_only_speed_depends_on(classifiers):
    other = reward(classifiers["bert"], batch_size=3, device="cpu")
    assert other.identity() == reward(classifiers["bert"]).identity()


# What it refuses


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label": "best"}, "has no label 'best': bad, fair, good"),
        ({"label": 3}, "has labels 0 to 2, not 3"),
        ({"label": False}, "label: False: YAML reads yes, no, on and off as such; put it in quotes"),
        ({"activation": "tanh"}, "activation: Input should be 'softmax', 'sigmoid' or 'none'"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32, bfloat16, float16"),
        ({"device": "abacus"}, "cannot be put on the device 'abacus'"),
        ({"pair": False}, "unknown key 'pair'"),
        ({"join": "pairs"}, "join: 'pairs' is neither pair, completion, chat nor a template .*; did you mean 'pair'?"),
        ({"join": "{prompt} so"}, r"must hold \{completion\}, and of placeholders only \{completion\}, \{prompt\}"),
        ({"join": "{promt} {completion}"}, r"join: '\{promt\} \{completion\}' must hold"),
        ({"join": "{prompt}<|eot|>{completion}"}, r"has no token <\|eot\|>"),
        ({"turns": {"user": "{content}<|eot|>"}}, r"has no token <\|eot\|>"),
        ({"turn_separator": "<|eot|>"}, r"has no token <\|eot\|>"),
        ({"join": "chat"}, "classifier '.*bert': .* no chat template"),
        ({"join": "chat", "prompt_pattern": "(.)"}, "prompt_pattern: no effect with join: chat"),
        ({"join": "completion", "turns": "{content}"}, "turns: no effect with join: completion"),
        ({"prompt_pattern": "("}, "is not a regular expression"),
        ({"prompt_pattern": "a.*"}, "has no group"),
        ({"turns": "{role}"}, r"turns: '\{role\}' must hold \{content\}"),
        ({"turns": {}}, "neither a template with {content} nor one for every role"),
        ({"turn_separator": 3}, "turn_separator: Input should be a valid string"),
        ({"strip": "yes"}, "strip: Input should be a valid boolean"),
        ({"truncation_side": "middle"}, "truncation_side: Input should be 'left' or 'right'"),
        ({"join": "{prompt} {completion}", "truncation_side": "right"}, "right would cut the completion .* to left"),
        ({"join": "chat", "truncation_side": "right"}, "right would cut the completion"),
        ({"join": "{completion} {prompt}", "truncation_side": "left"}, "left would cut the completion .* to right"),
        ({"max_length": 65}, "takes 64 tokens, fewer than max_length 65"),
        ({"max_length": 3}, "max_length 3 leaves no room beside 3 special tokens"),
        ({"max_length": "512"}, "max_length: Input should be a valid integer"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
    ],
)
def test_a_setting_that_the_classifier_cannot_serve_is_refused(settings, expected, classifiers):
    with pytest.raises(UserError, match=expected):
        reward(classifiers["bert"], **settings)(["Ada"], ["soon"])


def test_a_softmax_of_one_output_is_refused(classifiers):
    with pytest.raises(UserError, match="one output, of which the softmax is always 1: set sigmoid or none"):
        reward(classifiers["roberta"], activation="softmax")(["Ada"], ["soon"])


def test_a_pair_is_refused_where_the_tokenizer_would_glue_it_together(classifiers):
    with pytest.raises(UserError, match=r"classifier '.*gpt2': .* texts of a pair: set join"):
        reward(classifiers["gpt2"])(["Ada"], ["soon"])


def test_a_conversation_that_the_chat_template_refuses_is_named(tmp_path):
    strict = "{% if messages|length > 1 %}{{ raise_exception('too many') }}{% endif %}{{ messages[0].content }}"
    path = classifier_models.gpt2(tmp_path / "strict", strict)
    with pytest.raises(UserError, match="strict' refuses a conversation of user, assistant: too many"):
        reward(path, join="chat")(["Ada"], ["soon"])


def test_a_classifier_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"classifier '{tmp_path}/none': no sequence classifier"):
        reward(f"{tmp_path}/none")(["Ada"], ["soon"])


@pytest.mark.parametrize(
    "config", ["[]", '{"model_type": "bert", "id2label": 3}', '{"model_type": "bert", "hidden_size": []}']
)
def test_a_config_that_transformers_stumbles_over_is_refused_in_a_line(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    for load in (
        lambda: reward(str(tmp_path))(["Ada"], ["soon"]),
        lambda: untrained_classifier(str(tmp_path), None, None),
    ):
        with pytest.raises(UserError, match="no sequence classifier") as refused:
            load()
        assert "\n" not in str(refused.value)


def test_a_model_whose_head_was_never_trained_is_refused(tmp_path, classifiers):
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(classifiers["bert"]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifiers["bert"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no weights for classifier\.bias"):
        reward(str(tmp_path))(["Ada"], ["soon"])


def test_a_classifier_without_its_tokenizer_is_refused(tmp_path, classifiers):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(classifiers["bert"]) / name).read_bytes())
    with pytest.raises(UserError, match="no tokenizer: save it beside the model"):
        reward(str(tmp_path))(["Ada"], ["soon"])


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["LEFTOVER_TRAP"],)


def test_weights_that_would_run_code_are_refused(tmp_path, classifiers, monkeypatch):
    monkeypatch.setenv("LEFTOVER_TRAP", str(tmp_path / "sprung"))
    path = classifier_models.bert(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save({"weight": _Trap()}, tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(UserError, match="no sequence classifier"):
        reward(path)(["Ada"], ["soon"])
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(_Trap()))
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_a_device_may_be_a_number_as_elsewhere() -> None:
    assert load_reward({"type": "classifier", "model": "m", "device": 0}).device == 0
