"""Tokens of an encoder-decoder: prompt and completion are two texts, each with what the tokenizer puts around one."""

import logging
from typing import Any

import pytest

from leftover.data.chat import Chat
from leftover.data.tokens import Limits, decode_completions, encode_prompts, tokenise
from tests.data.tokenizers_in_code import byte_level, unigram

LIMITS = Limits(32, 32)


def row(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "conversational": False, **more}


def as_a_text(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("kind", ["T5", "BART"])
def test_each_is_what_the_tokenizer_makes_of_it_alone(kind: str) -> None:
    tokenizer = unigram() if kind == "T5" else byte_level("<s> $A </s>")
    chat = Chat(tokenizer, two_texts=True)
    rows = [row("how are you?", "I am fine."), row("hello", " world today"), row("", "thanks")]
    done = tokenise(chat, rows, LIMITS)
    assert done.completion_ids == [as_a_text(tokenizer, one["completion"]) for one in rows]
    assert done.prompt_ids[:2] == [as_a_text(tokenizer, one["prompt"]) for one in rows[:2]]
    assert done.prompt_ids[2], "an encoder needs something to read"
    assert encode_prompts(chat, rows) == done.prompt_ids
    said = decode_completions(tokenizer, done.completion_ids, chat.ends)
    assert said == [one["completion"].strip() for one in rows]


def test_a_text_that_was_stopped_has_no_end_and_a_long_prompt_keeps_what_stands_around_it() -> None:
    tokenizer = byte_level("<s> $A </s>")
    chat = Chat(tokenizer, two_texts=True)
    long = "hello world today, how are you?"
    done = tokenise(chat, [row(long, "fine", ended=False)], Limits(4, 32))
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    whole = as_a_text(tokenizer, long)
    assert done.prompt_ids == [[start, *whole[-3:]]] and whole[-1] == end and done.prompt_cut == [True]
    assert done.completion_ids == [as_a_text(tokenizer, "fine")[:-1]]


def test_a_conversation_is_read_as_the_template_writes_it() -> None:
    tokenizer = byte_level("<s> $A </s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = Chat(tokenizer, two_texts=True)
    asked = row('[{"role": "user", "content": "how are you?"}]', "I am fine.", tools=None) | {"conversational": True}
    done = tokenise(chat, [asked], LIMITS)
    (prompt,), (completion,) = done.prompt_ids, done.completion_ids
    assert tokenizer.decode(prompt) == "user: how are you?assistant: "
    assert completion == as_a_text(tokenizer, "I am fine.")
    assert encode_prompts(chat, [asked]) == [prompt]


def test_what_the_tokenizer_does_not_keep_is_told_once(caplog: Any) -> None:
    chat = Chat(unigram(), two_texts=True)
    with caplog.at_level(logging.WARNING):
        tokenise(chat, [row("hello", "I   am fine."), row("hello", "it  is")], LIMITS)
    assert len([record for record in caplog.records if "does not keep texts" in record.message]) == 1
