"""What a tokenizer adds is found by asking it, and the tokens of a row say the row's text."""

import logging
from typing import Any

import pytest
from tokenizers import normalizers

from leftover.data.chat import Chat
from leftover.data.encode import Encoder
from leftover.data.tokenizer import single_token
from leftover.data.tokens import Limits, Tokenised, cut_prompt, encode_prompts, tokenise
from leftover.errors import UserError
from tests.data.tokenizers_in_code import KINDS, byte_level, finished, legacy, metaspace, unigram, word_ends

ROOMY = Limits(100, 100)


def row(prompt: str, completion: str = "") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "conversational": False}


def one(tokenizer: Any, prompt: str, completion: str, **options: Any) -> Tokenised:
    out = tokenise(Chat(tokenizer), [row(prompt, completion)], ROOMY, **options)
    assert encode_prompts(Chat(tokenizer), [row(prompt)]) == out.prompt_ids, "generation asks with the same tokens"
    return out


def told(tokenizer: Any, out: Tokenised) -> str:
    """The text of prompt and completion, without what the tokenizer adds before them and the end behind them."""
    added = len(Encoder(tokenizer).around[0])
    return tokenizer.decode(out.prompt_ids[0][added:] + out.completion_ids[0][:-1])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


# What the tokenizer adds.


def test_an_end_of_sequence_that_closes_the_prompt_stays_in_the_prompt(kind: Any) -> None:
    end = kind.eos_token_id
    out = one(kind, "hello</s>I am fine</s>", " thanks")
    assert out.prompt_ids[0][-1] == end and out.prompt_ids[0].count(end) == 2
    assert out.completion_ids[0][0] != end and out.completion_ids[0].count(end) == 1


def test_what_the_tokenizer_puts_behind_a_text_closes_no_prompt(kind: Any) -> None:
    out = one(kind, "hello world", " thanks")
    assert kind.eos_token_id not in out.prompt_ids[0]
    assert out.completion_ids[0].count(kind.eos_token_id) == 1


@pytest.mark.parametrize("make", [lambda: byte_level("<s> $A"), legacy, metaspace, lambda: metaspace("always")])
def test_a_prompt_that_begins_as_rendered_gets_no_second_beginning(make: Any, caplog: Any) -> None:
    tokenizer = make()
    chat, bos = Chat(tokenizer), tokenizer.bos_token_id
    with caplog.at_level(logging.INFO):
        out = tokenise(chat, [row("<s>hello", " thanks"), row("hello", " thanks"), row("<s>[INST] hi", " fine")], ROOMY)
    assert [ids.count(bos) for ids in out.prompt_ids] == [1, 1, 1]
    assert [ids[0] for ids in out.prompt_ids] == [bos] * 3
    assert caplog.text.count("begin with <s> get no second") == 1


def test_a_tokenizer_that_begins_no_text_begins_no_prompt() -> None:
    assert byte_level().bos_token_id not in one(byte_level(), "hello", " thanks").prompt_ids[0]


def test_a_prompt_of_no_tokens_begins_with_the_beginning_or_else_the_end_of_sequence() -> None:
    tokenizer = byte_level()
    assert one(tokenizer, "", "hello").prompt_ids == [[tokenizer.bos_token_id]]
    tokenizer = byte_level(bos_token=None)
    assert one(tokenizer, "", "hello").prompt_ids == [[tokenizer.eos_token_id]]
    tokenizer = byte_level("<s> $A")
    assert one(tokenizer, "", "hello").prompt_ids == [[tokenizer.bos_token_id]]
    assert one(unigram(), " \n", "hello").prompt_ids == [[unigram().bos_token_id]], "it drops white space"


def test_all_that_the_tokenizer_puts_before_a_text_stays_before_a_cut_prompt() -> None:
    tokenizer = byte_level("</s> <s> $A", bos_token=None)
    assert Encoder(tokenizer).around == ([2, 1], [])
    assert cut_prompt(Chat(tokenizer), [2, 1, 5, 6, 7], 3) == [2, 1, 7]
    assert cut_prompt(Chat(tokenizer), [2, 1, 5, 6, 7], 2) == [6, 7]
    assert cut_prompt(Chat(tokenizer), [1, 5, 6, 7], 3) == [5, 6, 7]


# The seam.


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Question: ", "how are you"),
        ("hello wor", "ld today"),
        ("hello", " world"),
        ("hello,", " world"),
        ("Answer: it is", " four!"),
    ],
)
def test_the_tokens_say_the_rows_text(kind: Any, prompt: str, completion: str) -> None:
    assert told(kind, one(kind, prompt, completion)).strip() == prompt + completion


@pytest.mark.parametrize("name", [name for name in KINDS if name != "unigram, ends"])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("hello\n", "world"), ("hello", "\nworld"), ("hello", "  world"), ("日本", "語")]
)
def test_white_space_and_unknown_letters_are_kept(name: str, prompt: str, completion: str) -> None:
    tokenizer = KINDS[name]()
    assert told(tokenizer, one(tokenizer, prompt, completion)).strip() == prompt + completion


def test_a_completion_behind_a_special_token_gets_no_blank() -> None:
    out = one(legacy(), "hello</s>", " thanks")
    assert legacy().decode(out.completion_ids[0], skip_special_tokens=False) == "thanks</s>"  # the first blank is cut
    assert told(legacy(), out) == "hello</s> thanks"


def test_a_byte_level_completion_across_the_seam_is_the_text_alone() -> None:
    tokenizer = byte_level("<s> $A")
    out = one(tokenizer, "hello wor", "ld today")
    assert out.completion_ids[0][:-1] == tokenizer("ld today", add_special_tokens=False)["input_ids"]


def test_a_seam_that_no_tokens_can_say_is_a_faulty_row() -> None:
    with pytest.raises(UserError, match=r"row 0: .*'hello wor' and 'ld today'.*'hello wor ld today'.*white space"):
        one(word_ends(), "hello wor", "ld today")
    rows = [row("hello wor", "ld today"), row("hello", " world")]
    out = tokenise(Chat(word_ends()), rows, ROOMY, skip_faulty=True)
    assert out.kept == [False, True] and "cannot part" in (out.fault[0] or "")


def test_one_token_of_a_text_that_is_no_beginning_can_be_an_end() -> None:
    for tokenizer in (legacy(), metaspace()):
        assert single_token(tokenizer, "\n", "end_tokens") == tokenizer.convert_tokens_to_ids("<0x0A>")
    tokenizer = byte_level(unk_token="</s>")  # as GPT-2's
    assert single_token(tokenizer, "</s>", "end_tokens") == tokenizer.eos_token_id


# The check of the first rows.


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda ids: ids[:-1], r"prompt .*'<s>hello</s>'.* as '<s>hello'"),  # an end that the prompt holds is taken off
        (lambda ids: [1, *ids], r"prompt .*'<s>hello</s>'.* as '<s><s>hello</s>'"),
    ],
)
def test_a_prompt_whose_tokens_do_not_say_it_stops_the_run(monkeypatch: Any, fault: Any, said: str) -> None:
    opened = Encoder.opened
    monkeypatch.setattr(Encoder, "opened", lambda *args: fault(opened(*args)))
    with pytest.raises(UserError, match=said):
        one(byte_level("<s> $A"), "hello</s>", " thanks")


def test_a_completion_whose_tokens_do_not_say_it_stops_the_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(Encoder, "going_on", lambda self, asked, prompt, text, *rest: self.plain([text])[0])
    with pytest.raises(UserError, match=r"row 0: .*'hello world'.* as 'hello wor ld'"):
        one(legacy(), "hello wor", "ld")


def test_later_rows_are_not_decoded_again(monkeypatch: Any) -> None:
    checked: list[str] = []
    monkeypatch.setattr(Encoder, "check", lambda self, name, *rest: checked.append(name))
    tokenise(Chat(byte_level()), [row("hello", " world")] * 40, ROOMY)
    assert 0 < len(checked) < 40


@pytest.mark.parametrize(
    ("make", "prompt", "warned"),
    [
        (word_ends, "Hello", ["'Hello world'", "'hello world'"]),
        (unigram, "hello %", ["%", "<unk>"]),
        (lambda: byte_level(normalizer=normalizers.Lowercase()), "Hello", ["'Hello world'", "'hello world'"]),
        (lambda: byte_level(normalizer=normalizers.NFC()), "cafe\u0301", []),
        (lambda: byte_level("<s> $A </s>", prefix=True), "<s>hello\n", []),
        (legacy, "<s>[INST] hello </s>", []),
        (metaspace, " hello", []),
    ],
)
def test_a_tokenizer_that_rewrites_texts_is_told_of_once(make: Any, prompt: str, warned: list, caplog: Any) -> None:
    tokenise(Chat(make()), [row(prompt, " world")] * 3, ROOMY)
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(found) == bool(warned)
    assert all(text in found[0] for text in warned)


def test_a_tokenizer_that_cleans_up_spaces_is_compared_without_that() -> None:
    tokenizer = finished(byte_level().backend_tokenizer, clean_up_tokenization_spaces=True)
    assert tokenise(Chat(tokenizer), [row("hello , world", " , thanks !")], ROOMY).kept == [True]
