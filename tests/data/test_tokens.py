"""Token ids: prompts are cut on the left, the seam is tokenised jointly, completions closed by their end."""

from typing import Any

import pytest

from leftover.data.chat import Chat
from leftover.data.rows import as_prompt
from leftover.data.tokenizer import PLAIN_CHAT_TEMPLATE
from leftover.data.tokens import Limits, Tokenised, cut_prompt, decode_completions, encode_prompts, tokenise
from leftover.errors import UserError

ROOMY = Limits(100, 100)

# Writes a line break after a turn's end, as ChatML does; the break is never generated.
CHATML = (
    "{% for message in messages %}"
    "{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
# Has no generation prompt: the answer begins with the space after the bracket.
BRACKETS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<s>[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "brackets": BRACKETS, "plain": PLAIN_CHAT_TEMPLATE}

CHAT = '[{"role": "user", "content": "My kettle leaks."}]'


def one(tokenizer: Any, prompt: str, completion: str, limits: Limits = ROOMY, chat: bool = False) -> Tokenised:
    return tokenise(Chat(tokenizer), [row(prompt, completion, chat)], limits)


def row(prompt: str, completion: str = "", chat: bool = False) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "conversational": chat}


@pytest.fixture
def chat_tokenizer(tokenizer: Any, request: pytest.FixtureRequest) -> Any:
    """The tokenizer with the template that the test names; the shared one is left as it was."""
    tokenizer.chat_template = TEMPLATES[request.param]
    yield tokenizer
    tokenizer.chat_template = None


def test_a_prompt_keeps_its_beginning_of_sequence_and_a_completion_ends_in_the_end(tokenizer):
    out = one(tokenizer, "My kettle leaks.", " Check it.")
    (prompt,), (completion,) = out.prompt_ids, out.completion_ids
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt
    assert completion.count(tokenizer.eos_token_id) == 1
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in completion
    assert tokenizer.decode(prompt[1:]) == "My kettle leaks."
    assert tokenizer.decode(completion[:-1]) == " Check it."


def test_prompt_and_completion_are_tokenised_together(tokenizer):
    out = one(tokenizer, "My kettle leaks.", " Check the fuse.")
    whole = tokenizer("My kettle leaks. Check the fuse.")["input_ids"]
    assert out.prompt_ids[0] + out.completion_ids[0] == [*whole, tokenizer.eos_token_id]


def test_a_token_across_the_seam_is_parted_where_the_prompt_ends(tokenizer):
    # "the" is one token, so that "t" + "he" together would take the prompt's last token away.
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1
    out = one(tokenizer, "Check t", "he fuse.")
    assert out.prompt_ids[0] == tokenizer("Check t")["input_ids"]
    assert tokenizer.decode(out.completion_ids[0][:-1]) == "he fuse."


def test_long_prompts_are_cut_on_the_left_and_keep_their_beginning_of_sequence(tokenizer):
    ids = tokenizer("one two three four five")["input_ids"]
    out = one(tokenizer, "one two three four five", " six", Limits(4, 100))
    assert out.prompt_ids[0] == [tokenizer.bos_token_id, *ids[-3:]]
    assert out.prompt_cut == [True]
    assert one(tokenizer, "one two three four five", " six", Limits(len(ids), 100)).prompt_cut == [False]


def test_a_cut_to_one_token_and_without_a_beginning_keeps_the_last_ones(tokenizer):
    bos = tokenizer.bos_token_id
    assert cut_prompt(Chat(tokenizer), [bos, 5, 6, 7], 1) == [7]
    assert cut_prompt(Chat(tokenizer), [4, 5, 6, 7], 2) == [6, 7]
    assert cut_prompt(Chat(tokenizer), [bos, 5, 6, 7], 4) == [bos, 5, 6, 7]


def test_a_completion_that_fits_with_its_end_is_kept_and_one_token_more_is_dropped(tokenizer):
    length = len(one(tokenizer, "Hi.", " Check the fuse.").completion_ids[0])
    fits = one(tokenizer, "Hi.", " Check the fuse.", Limits(100, length))
    assert (fits.kept, fits.completion_long) == ([True], [False])
    dropped = one(tokenizer, "Hi.", " Check the fuse.", Limits(100, length - 1))
    assert (dropped.kept, dropped.completion_long) == ([False], [True])


def test_a_cut_completion_has_no_end_of_sequence(tokenizer):
    whole = one(tokenizer, "Hi.", " Check the fuse.").completion_ids[0]
    cut = one(tokenizer, "Hi.", " Check the fuse.", Limits(100, len(whole) - 1, "cut"))
    assert cut.kept == [True]
    assert cut.completion_ids[0] == whole[:-1]
    assert tokenizer.eos_token_id not in cut.completion_ids[0]


def test_rows_do_not_depend_on_the_rows_beside_them(tokenizer):
    prompts, completions = (
        ["Hi.", "My kettle leaks. Please help.", "Any idea?"],
        [" Yes.", " No, never.", " So."],
    )
    together = tokenise(Chat(tokenizer), list(map(row, prompts, completions)), ROOMY)
    for i in range(3):
        alone = one(tokenizer, prompts[i], completions[i])
        assert together.prompt_ids[i] == alone.prompt_ids[0]
        assert together.completion_ids[i] == alone.completion_ids[0]


@pytest.mark.parametrize("chat_tokenizer", TEMPLATES, indirect=True)
def test_the_tokens_trained_on_are_exactly_those_the_template_produces(chat_tokenizer):
    tokenizer = chat_tokenizer
    out = one(tokenizer, CHAT, "Check the fuse.", chat=True)
    messages = as_prompt(CHAT, True)
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    told = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Check the fuse."}], tokenize=False
    )
    assert told.startswith(asked)
    assert out.prompt_ids[0] == tokenizer(asked, add_special_tokens=False)["input_ids"]
    # The turn's own end closes the completion; what a template writes after it is not learned.
    trained = out.prompt_ids[0] + out.completion_ids[0]
    assert tokenizer.decode(trained) == told.removesuffix("\n")
    assert out.completion_ids[0][-1] == tokenizer.eos_token_id
    assert out.completion_ids[0].count(tokenizer.eos_token_id) == 1
    assert out.prompt_ids[0].count(tokenizer.bos_token_id) == asked.count("<s>"), "no second beginning of sequence"
    assert tokenizer(told, add_special_tokens=False)["input_ids"][: len(trained)] == trained


@pytest.mark.parametrize("chat_tokenizer", TEMPLATES, indirect=True)
def test_a_prompt_is_the_same_whether_it_is_trained_on_or_generated_for(chat_tokenizer):
    out = one(chat_tokenizer, CHAT, "Check the fuse.", chat=True)
    assert encode_prompts(Chat(chat_tokenizer), [row(CHAT, chat=True)]) == out.prompt_ids


@pytest.mark.parametrize("chat_tokenizer", ["plain"], indirect=True)
def test_plain_and_conversational_rows_may_stand_side_by_side(chat_tokenizer):
    out = tokenise(Chat(chat_tokenizer), [row("Hi.", " Yes."), row(CHAT, "No.", chat=True)], ROOMY)
    assert chat_tokenizer.decode(out.prompt_ids[0][1:]) == "Hi."
    assert chat_tokenizer.decode(out.completion_ids[1]).strip() == "No.</s>"


def test_a_conversation_without_a_chat_template_says_what_to_set(tokenizer):
    with pytest.raises(UserError, match=r"set model\.chat_template"):
        one(tokenizer, CHAT, "Check the fuse.", chat=True)


def test_a_template_that_rewrites_its_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages|length }} messages{% if add_generation_prompt %}: {% endif %}"
    try:
        with pytest.raises(UserError, match=r"model\.template_options .* model\.chat_template"):
            one(tokenizer, CHAT, "Check the fuse.", chat=True)
    finally:
        tokenizer.chat_template = None


def test_decoded_completions_have_no_special_tokens_and_no_outer_white_space(tokenizer):
    ids = one(tokenizer, "Hi.", " Check the fuse. ").completion_ids
    assert decode_completions(tokenizer, [*ids, [tokenizer.eos_token_id]]) == ["Check the fuse.", ""]
