"""Sequence classifiers as rewards: what is cut of rows that are too long."""

from typing import Any

import pytest

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.classifier import ClassifierReward
from tests.rewards import classifier_models
from tests.rewards.classifier_models import END_OF_TEXT, logits

TEMPLATE = "{prompt}<|endoftext|>{completion}"


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random classifiers: BERT of 64 positions, RoBERTa of 512, GPT-2 of 128."""
    folder = tmp_path_factory.mktemp("classifiers")
    chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return {
        "bert": classifier_models.bert(folder / "bert"),
        "roberta": classifier_models.roberta(folder / "roberta", num_labels=1),
        "gpt2": classifier_models.gpt2(folder / "gpt2", chat_template),
    }


def reward(path: str, **settings: Any) -> ClassifierReward:
    return load_reward({"type": "classifier", "model": path, **settings})


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-4, None)), ("right", slice(0, 4))])
def test_of_a_long_pair_the_prompt_is_cut(side, kept, classifiers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifiers["bert"])
    prompt, completion = "kettle fuse sorry thank Ada leaks", "soon soon soon soon soon soon soon soon soon"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    length = len(tokenizer(completion, add_special_tokens=False)["input_ids"])
    assert length > len(ids), "cutting the longer of both would cut the completion"
    shown = tokenizer.decode(ids[kept])
    (score,) = reward(classifiers["bert"], max_length=4 + length + 3, truncation_side=side)([prompt], [completion])
    assert score == pytest.approx(logits(classifiers["bert"], shown, completion).softmax(-1)[2].item(), abs=1e-5)


def test_a_completion_that_leaves_room_for_one_token_of_its_prompt_is_shown_whole(classifiers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifiers["bert"])
    completion = "soon kettle thank"
    pair = tokenizer("s", completion)["input_ids"]
    for max_length in (len(pair), len(pair) - 1, len(pair) - 2):
        shown = reward(classifiers["bert"], max_length=max_length)
        (row,) = shown.encode(["kettle fuses"], [completion])
        assert (row["input_ids"] == pair) == (max_length == len(pair))
        assert len(row["input_ids"]) == max_length


@pytest.mark.parametrize("join", ["completion", "{completion}"])
def test_a_long_completion_alone_is_cut_at_its_end(join, classifiers):
    shown = reward(classifiers["bert"], join=join)
    assert shown([""], ["Ada " + "fuse " * 90]) != shown([""], ["soon " + "fuse " * 90])
    assert shown([""], ["fuse " * 90 + "Ada"]) == shown([""], ["fuse " * 90 + "soon"])


def test_the_shorter_of_the_limits_of_tokenizer_and_model_holds(tmp_path, classifiers):
    path = classifier_models.gpt2(tmp_path / "short", max_length=16)
    shown = reward(path, join=TEMPLATE)
    assert len(shown.encode(["Ada " * 99], ["soon"])[0]["input_ids"]) == 16
    with pytest.raises(UserError, match="takes 512 tokens, fewer than max_length 513"):
        reward(classifiers["roberta"], max_length=513)(["Ada"], ["soon"])


def test_a_pair_whose_completion_alone_is_too_long_is_cut_to_length_and_leaves_its_neighbours_alone(classifiers):
    long = reward(classifiers["bert"], max_length=20)
    rows = (["kettle", "Ada", "fuse " * 30], ["soon " * 40, "sorry", "thank"])
    scores = long(*rows)
    assert scores == pytest.approx([long([p], [c])[0] for p, c in zip(*rows, strict=True)], abs=1e-5)
    assert long(["kettle"], ["soon " * 50]) != long(["Ada"], ["soon " * 50]), "some of the prompt is still shown"


def test_of_a_long_template_the_side_away_from_the_completion_is_cut(classifiers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifiers["gpt2"])
    prompt, completion = "kettle fuse " * 90, "sorry thank Ada leaks soon"
    ids = tokenizer(prompt + END_OF_TEXT + completion)["input_ids"]
    (last,) = reward(classifiers["gpt2"], join=TEMPLATE)([prompt], [completion])
    assert last == pytest.approx(logits(classifiers["gpt2"], tokenizer.decode(ids[-128:])).sigmoid().item(), abs=1e-5)
    ids = tokenizer(completion + END_OF_TEXT + prompt)["input_ids"]
    (first,) = reward(classifiers["gpt2"], join="{completion}<|endoftext|>{prompt}")([prompt], [completion])
    assert first == pytest.approx(logits(classifiers["gpt2"], tokenizer.decode(ids[:128])).sigmoid().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "join"), [("bert", "pair"), ("roberta", "pair"), ("gpt2", TEMPLATE), ("gpt2", "chat")]
)
def test_a_text_beyond_the_positions_of_a_classifier_is_cut(name, join, classifiers):
    (score,) = reward(classifiers[name], join=join)(["kettle " * 900], ["fuse " * 900])
    assert 0 <= score <= 1
