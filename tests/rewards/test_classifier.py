"""Sequence classifiers as rewards: what they are shown, and which number is the score."""

import dataclasses
import random
from typing import Any

import pytest
import torch

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.classifier import ClassifierReward
from tests.rewards import classifier_models
from tests.rewards.classifier_models import END_OF_TEXT, WORDS, logits

CHAT = [{"role": "user", "content": "Ada leaks"}, {"role": "assistant", "content": "sorry"}]
CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] }}"
    "{% endfor %}"
)
TEMPLATE = "{prompt}<|endoftext|>{completion}"


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random classifiers; those of GPT-2 have no padding token."""
    folder = tmp_path_factory.mktemp("classifiers")
    return {
        "bert": classifier_models.bert(folder / "bert"),
        "roberta": classifier_models.roberta(folder / "roberta", num_labels=1),
        "xlnet": classifier_models.xlnet(folder / "xlnet"),
        "gpt2": classifier_models.gpt2(folder / "gpt2"),
        "gpt2_chat": classifier_models.gpt2(folder / "gpt2_chat", CHAT_TEMPLATE),
    }


def reward(path: str, **settings: Any) -> ClassifierReward:
    return load_reward({"type": "classifier", "model": path, **settings})


def texts(count: int) -> tuple[list[str], list[str]]:
    rng = random.Random(0)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(2 * count)]
    return made[:count], made[count:]


# Which number is the score


def test_a_classifier_score_is_the_probability_of_its_label(classifiers):
    prompts, completions = texts(3)
    outputs = torch.stack([logits(classifiers["bert"], p, c) for p, c in zip(prompts, completions, strict=True)])
    expected = outputs.softmax(-1)

    def scores(**settings: Any) -> list[float]:
        return reward(classifiers["bert"], **settings)(prompts, completions)

    assert scores(label="good") == pytest.approx(expected[:, 2].tolist(), abs=1e-5)
    assert scores(label=0) == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    assert scores() == scores(label="good"), "the last label is the default"
    assert scores(label="fair", activation="none") == pytest.approx(outputs[:, 1].tolist(), abs=1e-4)
    assert scores(label="fair", activation="sigmoid") == pytest.approx(outputs[:, 1].sigmoid().tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_labels": 1}, lambda outputs: outputs.sigmoid()[0]),
        ({"num_labels": 1, "problem_type": "regression"}, lambda outputs: outputs[0]),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, lambda outputs: outputs.sigmoid()[2]),
    ],
    ids=["one output", "regression", "several labels at once"],
)
def test_the_default_activation_follows_the_kind_of_problem(settings, expected, tmp_path):
    path = classifier_models.roberta(tmp_path / "other", **settings)
    (score,) = reward(path)(["kettle leaks"], ["thank Ada"])
    assert score == pytest.approx(expected(logits(path, "kettle leaks", "thank Ada")).item(), abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet", "gpt2"])
def test_a_score_does_not_depend_on_the_rows_beside_it(name, classifiers):
    prompts, completions = texts(13)
    join = {"join": TEMPLATE} if name == "gpt2" else {}
    scores = reward(classifiers[name], **join)(prompts, completions)
    assert max(scores) - min(scores) > 0.01, "a constant would pass every order"
    for batch_size in (1, 4):
        other = reward(classifiers[name], batch_size=batch_size, **join)
        assert other(prompts, completions) == pytest.approx(scores, abs=1e-5)
        assert other(prompts[::-1], completions[::-1]) == pytest.approx(scores[::-1], abs=1e-5)


def test_a_row_that_ends_in_the_end_of_text_is_read_to_its_end_in_a_batch(classifiers):
    # The token is GPT-2's only special one: padding with it would hide the last position.
    completions = ["soon", "thank kettle leaks soon"]
    scores = reward(classifiers["gpt2"], join="{completion}<|endoftext|>")(["", ""], completions)
    assert scores == pytest.approx(
        [logits(classifiers["gpt2"], c + END_OF_TEXT).sigmoid().item() for c in completions], abs=1e-5
    )


def test_token_types_that_a_generic_tokenizer_gives_do_not_reach_a_model_without_them(tmp_path, classifiers):
    from transformers import AutoTokenizer

    path = classifier_models.gpt2(tmp_path / "typed")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    typed = reward(path, join="{completion}")
    typed._loaded = dataclasses.replace(typed._loaded, tokenizer=tokenizer)
    assert "token_type_ids" in typed.encode(["Ada"], ["soon"])[0]
    assert typed(["Ada"], ["soon"]) == pytest.approx([logits(classifiers["gpt2"], "soon").sigmoid().item()], abs=1e-5)


# What it is shown


def test_a_pair_is_the_tokenizers_own(classifiers):
    (score,) = reward(classifiers["roberta"], join="pair")(["Ada leaks"], ["sorry"])
    assert score == pytest.approx(logits(classifiers["roberta"], "Ada leaks", "sorry").sigmoid().item(), abs=1e-5)


def test_a_completion_alone_is_shown_without_its_prompt(classifiers):
    scores = reward(classifiers["roberta"], join="completion")(["Ada leaks", "kettle"], ["sorry", "sorry"])
    assert scores == pytest.approx([logits(classifiers["roberta"], "sorry").sigmoid().item()] * 2, abs=1e-5)


def test_a_template_turns_literal_special_tokens_into_the_token(classifiers):
    scores = reward(classifiers["gpt2"], join=TEMPLATE)(["Ada leaks", "{completion}"], ["sorry", "thank {prompt}"])
    rows = ["Ada leaks<|endoftext|>sorry", "{completion}<|endoftext|>thank {prompt}"]
    assert scores == pytest.approx([logits(classifiers["gpt2"], row).sigmoid().item() for row in rows], abs=1e-5)
    tokenizer = reward(classifiers["gpt2"], join=TEMPLATE)._loaded.tokenizer
    assert tokenizer.eos_token_id in tokenizer(rows[0])["input_ids"]


def test_a_chat_is_written_by_the_classifiers_own_template(classifiers):
    scores = reward(classifiers["gpt2_chat"], join="chat")([CHAT, "Ada"], ["soon", "thank"])
    rows = ["<|endoftext|>[user]Ada leaks[assistant]sorry[assistant]soon", "<|endoftext|>[user]Ada[assistant]thank"]
    assert scores == pytest.approx([logits(classifiers["gpt2"], row).sigmoid().item() for row in rows], abs=1e-5)


def test_a_chat_template_gets_no_second_set_of_special_tokens(tmp_path, classifiers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifiers["bert"])
    tokenizer.chat_template = "[CLS]{% for message in messages %}{{ message['content'] }}[SEP]{% endfor %}"
    path = classifier_models.bert(tmp_path / "bert")
    tokenizer.save_pretrained(path)
    row = logits(classifiers["bert"], "[CLS]Ada[SEP]soon[SEP]", add_special_tokens=False)
    assert reward(path, join="chat")(["Ada"], ["soon"]) == pytest.approx([row.softmax(-1)[2].item()], abs=1e-5)


def test_a_conversation_is_shown_as_its_turns(classifiers):
    shown = reward(classifiers["bert"])
    assert shown([CHAT], ["soon"]) == shown(["user: Ada leaks\n\nassistant: sorry"], ["soon"])
    bare = reward(classifiers["bert"], turns="{content}", turn_separator=" | ")
    assert bare([CHAT], ["soon"]) == shown(["Ada leaks | sorry"], ["soon"])


def test_turns_by_role_also_write_plain_text_as_a_users_turn(classifiers):
    turns = {"user": "<{role}>{content}", "assistant": "<bot>{content}"}
    tagged = reward(classifiers["bert"], turns=turns, turn_separator="")
    plain = reward(classifiers["bert"])
    assert tagged([CHAT, "Ada"], ["soon"] * 2) == plain(["<user>Ada leaks<bot>sorry", "<user>Ada"], ["soon"] * 2)
    with pytest.raises(UserError, match=r"turns has no form for the role 'system' \(it has: user, assistant\)"):
        tagged([[{"role": "system", "content": "kind"}]], ["soon"])


def test_a_pattern_picks_the_part_of_the_prompt_that_is_shown(classifiers):
    prompt = "Knowledge: Ada leaks\nkettle"
    picked = reward(classifiers["bert"], prompt_pattern=r"Knowledge: (.*)")
    assert picked([prompt], ["soon"]) == reward(classifiers["bert"])(["Ada leaks"], ["soon"])
    with pytest.raises(UserError, match="matches nothing in the prompt 'no such thing'"):
        picked([prompt, "no such thing"], ["soon", "soon"])


def test_white_space_counts_unless_it_is_stripped(classifiers):
    plain, strip = (reward(classifiers["bert"], strip=strip) for strip in (False, True))
    assert plain(["Ada "], [" soon\n"]) != pytest.approx(plain(["Ada"], ["soon"]), abs=1e-6)
    assert strip(["Ada "], [" soon\n"]) == plain(["Ada"], ["soon"])
    assert strip([[{"role": "user", "content": "Ada "}]], ["soon"]) == plain(["user: Ada"], ["soon"])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_empty_completion_has_a_score(name, classifiers):
    joined = reward(classifiers[name], join="completion")
    (one,), (two, _) = joined(["Ada"], [""]), joined(["Ada", "Ada"], ["", "soon kettle"])
    assert one == pytest.approx(two, abs=1e-5)
    assert joined([], []) == []


def test_a_text_that_begins_or_ends_as_the_tokenizer_would_has_that_once(classifiers):
    """BERT's tokenizer puts [CLS] before a text and [SEP] behind it."""
    plain = reward(classifiers["bert"], join="{prompt} {completion}", activation="none")(["Ada"], ["soon"])
    for join in ("[CLS]{prompt} {completion}", "{prompt} {completion}[SEP]", "[CLS]{prompt} {completion}[SEP]"):
        written = reward(classifiers["bert"], join=join, activation="none")
        assert written(["Ada"], ["soon"]) == pytest.approx(plain, abs=1e-5)
        assert max(len(row["input_ids"]) for row in written.encode(["Ada " * 90], ["soon"])) == 64
