"""Conversations: the tokens trained on are the template's up to the end of the turn, and generation stops there."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from leftover.data.chat import Chat
from leftover.data.tokens import Limits, Tokenised, encode_prompts, tokenise
from leftover.errors import UserError
from leftover.models.generate import generate
from leftover.models.load import align_generation_config, load_model
from leftover.pipeline import run
from leftover.recipe.files import make_recipe

ROOMY = Limits(1000, 1000)

# Every turn alike, a line break behind its end, tools in a system turn of their own.
CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A header of tokens, trimmed content, an end of turn that is not the end of sequence; writes a line of an option.
HEADERS = (
    "{{ bos_token }}{% if motto is defined %}<|head|>system<|/head|>\n\n{{ motto }}<|turn|>{% endif %}"
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
# Closes no turn with a token.
OPEN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
# Thoughts of the last turn alone, empty ones too; without thinking they are part of the generation prompt.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' }}"
    "\n</think>\n\n{% endif %}{{ answer }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The generation prompt opens thoughts that a whole conversation drops.
DROPS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opened }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|head|>{{ m.role }}<|/head|>{{ m.content }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>{% endif %}"
)
# The end of a turn is followed by a line break and the end of sequence, as of a whole document.
DOCUMENT = (
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>{{ m.content }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>{% else %}{{ eos_token }}{% endif %}"
)

USER = {"role": "user", "content": "My kettle leaks."}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = {"role": "assistant", "content": "Check the lid."}
LOOK = [{"type": "function", "function": {"name": "look"}}]
ANSWER = "Check the fuse."


def with_template(tokenizer: Any, template: str | None) -> Any:
    """A copy of the tokenizer with the tokens that the templates write; `<think>` is no special token."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"]})
    own.add_tokens(["<|turn|>", "<think>", "</think>", "\n\n"])  # not special: decoding does not leave them out
    own.chat_template = template
    return own


def one(tokenizer: Any, messages: list, completion: str = ANSWER, limits: Limits = ROOMY, **chat: Any) -> Tokenised:
    tools = chat.pop("tools", None)
    row = asking(messages) | {"completion": completion, "tools": json.dumps(tools) if tools else None}
    return tokenise(Chat(tokenizer, **chat), [row], limits)


def asking(messages: list) -> dict[str, Any]:
    return {"prompt": json.dumps(messages), "conversational": True}


def trained(tokenizer: Any, messages: list, completion: str = ANSWER, **chat: Any) -> tuple[str, str]:
    """Prompt and completion as text, once their ids are checked against the template's whole conversation."""
    out = one(tokenizer, messages, completion, **chat)
    whole = [*messages, {"role": "assistant", "content": completion}]
    keywords = {"tools": chat.get("tools"), **chat.get("options", {})}
    ids = tokenizer.apply_chat_template(whole, return_dict=False, **keywords)
    both = out.prompt_ids[0] + out.completion_ids[0]
    assert both == ids[: len(both)]
    asked = tokenizer.apply_chat_template(messages, return_dict=False, add_generation_prompt=True, **keywords)
    assert out.prompt_ids[0] == asked
    return tokenizer.decode(out.prompt_ids[0]), tokenizer.decode(out.completion_ids[0])


# What is trained on.


def test_a_turn_ends_before_the_line_break_behind_its_end(tokenizer: Any) -> None:
    prompt, completion = trained(with_template(tokenizer, CHATML), [SYSTEM, USER])
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nMy kettle leaks.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert completion == "Check the fuse.<|im_end|>"


def test_a_turn_ends_in_the_templates_own_token_and_not_in_the_end_of_sequence(tokenizer: Any) -> None:
    own = with_template(tokenizer, HEADERS)
    prompt, completion = trained(own, [SYSTEM, USER, EARLIER, USER])
    assert prompt == (
        "<s><|head|>system<|/head|>\n\nBe brief.<|turn|><|head|>user<|/head|>\n\nMy kettle leaks.<|turn|>"
        "<|head|>assistant<|/head|>\n\nCheck the lid.<|turn|><|head|>user<|/head|>\n\nMy kettle leaks.<|turn|>"
        "<|head|>assistant<|/head|>\n\n"
    )
    assert completion == "Check the fuse.<|turn|>"
    assert Chat(own).ends == [own.eos_token_id, own.convert_tokens_to_ids("<|turn|>")]


def test_what_a_template_writes_behind_the_whole_conversation_is_not_learned(tokenizer: Any) -> None:
    _, completion = trained(with_template(tokenizer, DOCUMENT), [USER])
    assert completion == "Check the fuse.<|turn|>"


def test_a_turn_may_end_in_tokens_that_adjoin(tokenizer: Any) -> None:
    template = CHATML.replace("<|im_end|>\n{% endfor %}", "<|turn|><|im_end|>\n{% endfor %}")
    own = with_template(tokenizer, template)
    assert trained(own, [USER])[1] == "Check the fuse.<|turn|><|im_end|>"
    assert Chat(own).ends == [own.eos_token_id, own.convert_tokens_to_ids("<|im_end|>")]
    assert trained(own, [USER], end_tokens=["<|turn|>"])[1] == "Check the fuse.<|turn|>"


def test_a_template_that_closes_no_turn_gets_the_end_of_sequence(tokenizer: Any) -> None:
    own = with_template(tokenizer, OPEN)
    out = one(own, [SYSTEM, USER])
    assert own.decode(out.prompt_ids[0]) == "[system] Be brief.\n[user] My kettle leaks.\n[assistant] "
    assert own.decode(out.completion_ids[0]) == "Check the fuse.</s>"
    assert Chat(own).ends == [own.eos_token_id]


def test_a_line_break_ends_a_turn_where_the_recipe_says_so(tokenizer: Any) -> None:
    own = with_template(tokenizer, OPEN)
    out = one(own, [USER], end_tokens=["\n"])
    (newline,) = own("\n", add_special_tokens=False)["input_ids"]
    assert own.decode(out.completion_ids[0]) == "Check the fuse.\n"
    assert out.completion_ids[0][-1] == newline and newline in Chat(own, end_tokens=["\n"]).ends


def test_a_plain_completion_that_is_closed_already_is_not_closed_twice(tokenizer: Any) -> None:
    own = with_template(tokenizer, None)
    completions = [" Yes.", " Yes.</s>", " Yes.<|turn|>"]
    rows = [{"prompt": "Hi.", "completion": text, "conversational": False} for text in completions]
    out = tokenise(Chat(own, end_tokens=["<|turn|>"]), rows, ROOMY)
    assert [own.decode(ids) for ids in out.completion_ids] == [" Yes.</s>", " Yes.</s>", " Yes.<|turn|>"]


def test_tools_of_a_row_and_turns_that_call_them_reach_the_template(tokenizer: Any) -> None:
    own = with_template(tokenizer, CHATML)
    calls = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
    prompt, completion = trained(own, [USER, calls, {"role": "tool", "content": "A seal."}], tools=LOOK)
    assert prompt.startswith('<|im_start|>system\nTools: [{"type": "function", "function": {"name": "look"')
    assert "<|im_start|>assistant\n<call>look</call><|im_end|>\n<|im_start|>tool\nA seal.<|im_end|>" in prompt
    assert completion == "Check the fuse.<|im_end|>"
    assert "Tools:" not in trained(own, [USER])[0]


def test_a_prompt_that_ends_in_an_assistants_turn_continues_that_turn(tokenizer: Any) -> None:
    own = with_template(tokenizer, HEADERS)
    messages = [USER, {"role": "assistant", "content": "Check"}]
    out = one(own, messages, " the fuse.")
    prompt, completion = own.decode(out.prompt_ids[0]), own.decode(out.completion_ids[0])
    assert prompt.endswith("<|turn|><|head|>assistant<|/head|>\n\nCheck") and completion == " the fuse.<|turn|>"
    assert encode_prompts(Chat(own), [asking(messages)]) == out.prompt_ids


# Thinking.


def test_thoughts_are_trained_on_in_thinking_mode_and_belong_to_the_prompt_without(tokenizer: Any) -> None:
    own = with_template(tokenizer, THINKING)
    assert trained(own, [USER]) == (
        "<|im_start|>user\nMy kettle leaks.<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nCheck the fuse.<|im_end|>",
    )
    assert trained(own, [USER], options={"enable_thinking": False}) == (
        "<|im_start|>user\nMy kettle leaks.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "Check the fuse.<|im_end|>",
    )
    thoughts = "<think>\nIt leaks.\n</think>\n\nCheck the fuse."
    assert trained(own, [USER], thoughts)[1] == thoughts + "<|im_end|>"


def test_earlier_thoughts_that_the_template_drops_are_dropped_alike_in_training_and_generation(tokenizer: Any) -> None:
    own = with_template(tokenizer, THINKING)
    earlier = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nCheck the lid."}
    prompt, _ = trained(own, [USER, earlier, USER])
    assert "<|im_start|>assistant\nCheck the lid.<|im_end|>" in prompt and "Hm." not in prompt


def test_thoughts_that_a_template_writes_by_itself_are_said(tokenizer: Any, caplog: Any) -> None:
    own = with_template(tokenizer, THINKING)
    Chat(own, {"enable_thinking": False}).warn(tools=False)
    assert not caplog.text
    Chat(own).warn(tools=False)
    assert r"writes '<think>\n\n</think>\n\n' before completions" in caplog.text and "enable_thinking" in caplog.text


@pytest.mark.parametrize(
    ("opened", "completion", "message"),
    [
        ("<think>", ANSWER, "writes a prompt differently once a completion follows it \\('<think>' becomes 'Check"),
        ("", "<think>It leaks.</think>Check.", "does not write the completion as it is"),
    ],
)
def test_a_template_that_loses_thoughts_is_refused_with_the_remedy(
    opened: str, completion: str, message: str, tokenizer: Any
) -> None:
    own = with_template(tokenizer, DROPS_THOUGHTS.replace("{{ opened }}", opened))
    with pytest.raises(UserError, match=message) as error:
        one(own, [USER], completion)
    assert "model.chat_template" in str(error.value)


def test_thoughts_behind_those_of_the_template_are_refused(tokenizer: Any) -> None:
    template = CHATML.replace("{{ m.content }}", "<think></think>{{ m.content }}").replace(
        "assistant\n{% endif %}", "assistant\n<think>{% endif %}"
    )
    own = with_template(tokenizer, template)
    assert trained(own, [USER])[1] == "</think>Check the fuse.<|im_end|>"
    with pytest.raises(UserError, match=r"holds </think>.* take the thoughts out"):
        one(own, [USER], "<think>It leaks.</think>Check.")


# Options of the template.


def test_an_option_changes_the_tokens(tokenizer: Any) -> None:
    own = with_template(tokenizer, HEADERS)
    prompt, _ = trained(own, [USER], options={"motto": "Be kind."})
    assert prompt.startswith("<s><|head|>system<|/head|>\n\nBe kind.<|turn|><|head|>user")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moto": "Be kind."}, "has no option 'moto'; did you mean 'motto'"),
        ({"tokenize": True}, "has no option 'tokenize'"),
        ({"motto": object()}, "'motto' is a object: write it as a text"),
    ],
)
def test_what_is_no_option_of_the_template_is_refused(options: dict, message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=message):
        Chat(with_template(tokenizer, HEADERS), options)


def test_an_end_that_is_not_one_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"model\.end_tokens: '<\|stop\|>' is not one token"):
        Chat(with_template(tokenizer, HEADERS), end_tokens=["<|stop|>"])


def test_a_template_that_writes_the_date_is_said_unless_an_option_fixes_it(tokenizer: Any, caplog: Any) -> None:
    own = with_template(tokenizer, "{{ day if day is defined else strftime_now('%d %b') }}" + HEADERS)
    Chat(own, {"day": "26 Jul"}).warn(tools=False)
    assert not caplog.text
    Chat(own).warn(tools=False)
    assert "writes today's date" in caplog.text


def test_tools_that_the_template_does_not_read_are_said(tokenizer: Any, caplog: Any) -> None:
    Chat(with_template(tokenizer, CHATML)).warn(tools=True)
    assert not caplog.text
    Chat(with_template(tokenizer, HEADERS)).warn(tools=True)
    assert "tools" in caplog.text and "set model.chat_template" in caplog.text


# Conversations that a template refuses.


def test_a_template_without_a_system_turn_says_what_to_do(tokenizer: Any) -> None:
    own = with_template(tokenizer, NO_SYSTEM)
    assert trained(own, [USER])[1] == "Check the fuse.<|turn|>"
    with pytest.raises(UserError, match=r"system, user: .* first user message"):
        one(own, [SYSTEM, USER])
    with pytest.raises(UserError, match=r"user, user: .*model\.chat_template"):
        one(own, [USER, USER])


def test_a_template_that_is_not_jinja_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"model\.chat_template is not valid Jinja"):
        one(with_template(tokenizer, "{% for m in messages %}"), [USER])


def test_refused_conversations_stop_the_run_or_are_put_aside(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable, caplog: Any
) -> None:
    rows = chat_rows(30)
    for row in rows[3:5]:
        row["prompt"] = [SYSTEM, *row["prompt"]]
    recipe = chat_recipe(tiny_recipe, tmp_path, chat_model(NO_SYSTEM), rows)
    message = r"(?s)2 conversations cannot .*rows\.jsonl:4: .*knows no system turn.*on_bad_row"
    with pytest.raises(UserError, match=message):
        tokenised(recipe)
    recipe["data"]["on_bad_row"] = "skip"
    kept = tokenised(recipe)["kept"][:]
    assert [i for i, keep in enumerate(kept) if not keep] == [3, 4]
    rejects = [json.loads(line) for line in (tmp_path / "run/rejected_rows.jsonl").read_text().splitlines()]
    assert [record["where"].rpartition(":")[2] for record in rejects] == ["4", "5"]
    assert all("System role not supported" in record["reason"] for record in rejects)
    assert json.loads((tmp_path / "run/prepare.json").read_text())["tokens"]["rows_refused"] == 2


def test_a_cut_that_takes_the_system_turn_is_counted(tokenizer: Any) -> None:
    own = with_template(tokenizer, HEADERS)
    length = len(one(own, [SYSTEM, USER]).prompt_ids[0])
    cut = one(own, [SYSTEM, USER], limits=Limits(length - 1, 1000))
    assert cut.prompt_ids[0][0] == own.bos_token_id and cut.system_cut == [True]
    assert one(own, [SYSTEM, USER], limits=Limits(length, 1000)).system_cut == [False]
    without = one(own, [USER, EARLIER, USER], limits=Limits(8, 1000))
    assert (without.prompt_cut, without.system_cut) == ([True], [False])


# Generation.


@pytest.fixture(scope="module")
def chat_model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`chat_model(template, ends=[])`: a folder with a random Llama whose generation config has these ends beside its
    own, and the tokenizer with the template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(template: str, ends: list[str] | None = None) -> str:
        own = with_template(tokenizer, template)
        ids = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(**sizes, max_position_embeddings=256, vocab_size=len(own), tie_word_embeddings=True, **ids)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
        if ends:
            model.generation_config.eos_token_id = [own.eos_token_id, *own.convert_tokens_to_ids(ends)]
        folder = tmp_path_factory.mktemp("chat-model")
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return str(folder)

    return make


class Dictated:
    """Makes a model give these tokens, whatever it is asked."""

    def __init__(self, model: Any, tokens: list[int]):
        self.model, self.tokens, self.given = model, tokens, 0

    def __enter__(self) -> None:
        self.handle = self.model.register_forward_hook(self._dictate)

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()

    def _dictate(self, _: Any, __: Any, output: Any) -> None:
        output.logits[:, -1] = 0.0
        output.logits[:, -1, self.tokens[self.given]] = 100.0
        self.given += 1


def test_generation_stops_at_every_end_and_its_text_holds_none(chat_model: Callable) -> None:
    from transformers import AutoTokenizer

    path = chat_model(HEADERS, ends=["<|im_end|>"])
    own, model = AutoTokenizer.from_pretrained(path), load_model(path)
    align_generation_config(model, own, Chat(own, end_tokens=["."]).ends)
    prompt_ids = encode_prompts(Chat(own), [asking([USER])])
    words = own("Check it now", add_special_tokens=False)["input_ids"]
    # The tokenizer's, the template's, the model's own, the recipe's.
    for text in ("</s>", "<|turn|>", "<|im_end|>", "."):
        end = own.convert_tokens_to_ids(text)
        with Dictated(model, [*words, end, *words]):
            ids, texts, _ = generate(model, own, prompt_ids, max_new_tokens=len(words) + 3)
        assert (ids, texts) == ([[*words, end]], ["Check it now"]), text
    other = own.convert_tokens_to_ids("<think>")
    with Dictated(model, [*words, other, *words]):
        ids, *_ = generate(model, own, prompt_ids, max_new_tokens=len(words) + 3)
    assert ids == [[*words, other, *words[:2]]]


# Whole runs.

SCORED: list[str] = []


def count_words(prompts: list, completions: list[str]) -> list[float]:
    """The reward of these runs; it remembers the texts that it was given."""
    assert all(isinstance(prompt, list) for prompt in prompts)
    SCORED.extend(completions)
    return [float(len(text.split())) for text in completions]


@pytest.fixture
def scored() -> Iterator[list[str]]:
    SCORED.clear()
    yield SCORED


def chat_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows of short conversations: every third has an earlier turn, completions are texts and messages."""
    rows = []
    for i in range(num_rows):
        asked = {"role": "user", "content": f"My kettle leaks, part {i}."}
        completion = ("Check.", "Check it.")[i % 2]
        rows.append(
            {
                "prompt": [USER, EARLIER, asked] if i % 3 == 0 else [asked],
                "completion": completion if i % 4 else [{"role": "assistant", "content": completion}],
            }
        )
    return rows


def chat_recipe(tiny_recipe: Callable, folder: Path, path: str, rows: list, **model: Any) -> dict[str, Any]:
    return tiny_recipe(
        folder,
        rows=rows,
        model={"path": path, **model},
        data={"max_prompt_tokens": 200, "max_completion_tokens": 40},
        reward={"functions": [{"type": "python", "function": "tests.data.test_chat:count_words"}]},
        reference={"train": {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 3e-2}},
        evaluate={"max_prompts": 8, "max_selection_prompts": 4, "max_new_tokens": 24},
    )


def test_a_run_on_conversations_ends_its_completions_and_exports_what_stops_them(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable, scored: list[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leftover.publish.export import export_policy
    from leftover.runs.claim import open_run

    rows = [row | {"prompt": [SYSTEM, *row["prompt"]], "tools": LOOK if i % 5 == 0 else None}
            for i, row in enumerate(chat_rows(40))]  # fmt: skip
    template = CHATML.replace("<|im_end|>\n{% endfor %}", "<|turn|>\n{% endfor %}")
    recipe = make_recipe(chat_recipe(tiny_recipe, tmp_path, chat_model(template, ends=["<|im_end|>"]), rows))
    run(recipe, until="evaluate")
    folder = tmp_path / "run"
    this = open_run(recipe)
    turn = this.models.tokenizer.convert_tokens_to_ids("<|turn|>")
    for i, row in enumerate(this.table.open("tokens")):
        assert row["completion_ids"][-1] == turn
        assert ("Tools:" in this.models.tokenizer.decode(row["prompt_ids"])) == (i % 5 == 0)
    records = [json.loads(x) for x in (folder / "evaluation/a_lol_seq-seed-0.jsonl").read_text().splitlines()]
    ended = [record for record in records if record["ended"]]
    assert len(ended) > 2, "the policy has learned to end its turn"
    texts = [*scored, *(record["text"] for record in records)]
    assert len(scored) > len(rows) and not any("<|turn|>" in text for text in texts)

    exported = export_policy(folder)
    own, policy = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    assert own.chat_template == template
    ends = [own.eos_token_id, turn, own.convert_tokens_to_ids("<|im_end|>")]
    assert sorted(policy.generation_config.eos_token_id) == sorted(ends)
    ids = own.apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    words = own("Check it", add_special_tokens=False)["input_ids"]
    for end in ends:
        with Dictated(policy, [*words, end, *words]):
            output = policy.generate(ids, max_new_tokens=len(words) + 3, do_sample=False)
        assert output[0, ids.shape[1] :].tolist() == [*words, end]


def test_an_exported_adapter_holds_its_ends_and_says_who_reads_them(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable, caplog: Any
) -> None:
    from transformers import AutoTokenizer

    from leftover.publish.export import export_policy

    model = {"lora": {"r": 2}, "template_options": {"motto": "Be kind."}, "end_tokens": ["."]}
    recipe = chat_recipe(tiny_recipe, tmp_path, chat_model(HEADERS), chat_rows(30), **model)
    recipe["policies"], recipe["reference"]["train"]["max_steps"] = {"nll": {"objective": "nll"}}, 2
    run(make_recipe(recipe), until="train")
    for merge in (False, True):
        caplog.clear()
        exported = export_policy(tmp_path / "run", merge=merge)
        own, policy = AutoTokenizer.from_pretrained(exported), load_model(str(exported))
        assert own.chat_template == HEADERS
        saved = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
        assert sorted(saved) == sorted(own.convert_tokens_to_ids(["</s>", "<|turn|>", "."]))
        assert (policy.generation_config.eos_token_id == saved) == merge
        assert ("pass GenerationConfig.from_pretrained(folder)" in caplog.text) == (not merge)
        assert "trained with the template options {'motto': 'Be kind.'}" in caplog.text


def tokenised(recipe: dict[str, Any]) -> Any:
    """The block `tokens` of a recipe, and no stage behind it."""
    from leftover.prepare.rows import read, tokens
    from leftover.runs.claim import open_run

    this = open_run(make_recipe(recipe))
    read(this)
    tokens(this)
    return this.table.open("tokens")


def test_a_changed_option_or_end_makes_the_tokens_stale(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable, caplog: Any
) -> None:
    path = chat_model(THINKING)

    def prepared(**model: Any) -> tuple[str, list[list[int]]]:
        caplog.clear()
        prompt_ids = tokenised(chat_recipe(tiny_recipe, tmp_path, path, chat_rows(30), **model))["prompt_ids"][:]
        said = [r.getMessage() for r in caplog.records if getattr(r, "artifact", "") == "table/tokens"]
        return next(iter(said), ""), prompt_ids

    caplog.set_level(logging.INFO, "leftover")
    _, thinking = prepared()
    assert prepared()[0] == "Tokens: kept from before"
    said, without = prepared(template_options={"enable_thinking": False})
    assert said.startswith("Tokens: made again, since something changed (tokenizer.template_options")
    assert all(b[: len(a)] == a and len(b) > len(a) for a, b in zip(thinking, without, strict=True))
    assert prepared(template_options={"enable_thinking": False}, end_tokens=["."])[0].startswith("Tokens: made again")


def test_texts_in_chat_are_the_tokens_of_their_messages(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable
) -> None:
    path = chat_model(CHATML)
    texts = [{"prompt": f"My kettle leaks, part {i}.", "completion": "Check it."} for i in range(20)]
    messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in texts]

    def ids(rows: list, **data: Any) -> list[tuple[list[int], list[int]]]:
        recipe = chat_recipe(tiny_recipe, tmp_path, path, rows)
        found = tokenised(recipe | {"data": recipe["data"] | data})
        return list(zip(found["prompt_ids"][:], found["completion_ids"][:], strict=True))

    in_chat = ids(texts, prompts="chat")
    assert in_chat == ids(messages) == ids(messages, prompts="chat") and in_chat != ids(texts)


def test_the_same_messages_with_other_tools_are_another_prompt(
    tmp_path: Path, tiny_recipe: Callable, chat_model: Callable
) -> None:
    from leftover.prepare.rows import read, split
    from leftover.runs.claim import open_run

    rows = [row | {"prompt": [USER], "family": str(i), "tools": LOOK if i % 2 else None}
            for i, row in enumerate(chat_rows(20))]  # fmt: skip
    this = open_run(make_recipe(chat_recipe(tiny_recipe, tmp_path, chat_model(CHATML), rows)))
    read(this)
    split(this)
    assert this.table.open("split")["group"][:] == [0, 1] * 10


# Without a recipe.


def standalone(path: str, folder: Path, rows: Any, evaluation: Any = None, **settings: Any) -> Any:
    from leftover import LoLConfig, LoLTrainer

    args = LoLConfig(output_dir=str(folder), max_steps=1, disable_tqdm=True, objective="nll", **settings)
    return LoLTrainer(path, args, rows, evaluation)


def test_a_trainer_takes_tools_and_template_options_of_the_config_and_of_rows(
    tmp_path: Path, chat_model: Callable
) -> None:
    import datasets

    rows = [
        {"prompt": [USER], "completion": ANSWER, "tools": json.dumps(LOOK)},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": ANSWER}]},
        {"prompt": [USER], "completion": ANSWER, "chat_template_kwargs": {"motto": "Be quick."}},
        {"messages": [SYSTEM, USER, {"role": "assistant", "content": ANSWER}]},
    ]
    template = "{{ tools | tojson if tools else '' }}" + HEADERS
    path = chat_model(template)
    settings: dict[str, Any] = {"chat_template_kwargs": {"motto": "Be kind."}, "end_tokens": ["."]}
    trainer = standalone(path, tmp_path, rows, [{"prompt": [USER]}], **settings)
    own = trainer.processing_class
    prompts = [own.decode(ids) for ids in trainer.train_dataset["prompt_ids"]]
    assert "look" in prompts[0] and "look" not in prompts[1]
    assert ["Be kind." in prompt for prompt in prompts] == [True, True, False, True]
    assert "Be quick." in prompts[2] and "Be brief." in prompts[3]
    assert trainer.train_dataset["group"][:] == [0, 1, 2, 3], "what the model is asked differs"
    assert {own.decode(ids) for ids in trainer.train_dataset["completion_ids"]} == {"Check the fuse.<|turn|>"}
    assert own.decode(trainer.eval_dataset["prompt_ids"][0]) == prompts[1]
    ends = own.convert_tokens_to_ids(["</s>", ".", "<|turn|>"])
    assert trainer.model.generation_config.eos_token_id == ends
    trainer.train()
    assert set(trainer.model.generation_config.eos_token_id) == set(ends), "the Trainer's own alignment keeps them"
    first, second = rows[0] | {"chat_template_kwargs": {"motto": None}}, rows[2] | {"tools": None}
    again = standalone(path, tmp_path, datasets.Dataset.from_list([first, second]), **settings).train_dataset
    assert [own.decode(ids) for ids in again["prompt_ids"]] == [prompts[0], prompts[2]], "None is an option not given"


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_refused_conversation_without_a_recipe_names_its_row(
    evaluation: bool, tmp_path: Path, chat_model: Callable
) -> None:
    good, bad = {"prompt": [USER], "completion": ANSWER}, {"prompt": [SYSTEM, USER], "completion": ANSWER}
    rows, held_out = ([good], [{"prompt": [USER]}, {"prompt": [SYSTEM, USER]}]) if evaluation else ([good, bad], None)
    name = "eval_dataset" if evaluation else "train_dataset"
    with pytest.raises(UserError, match=rf"{name}\[1\]: .*System role not supported; .*first user message"):
        standalone(chat_model(NO_SYSTEM), tmp_path, rows, held_out)


def test_an_unknown_option_of_a_row_is_refused(tmp_path: Path, chat_model: Callable) -> None:
    row = {"prompt": [USER], "completion": ANSWER, "chat_template_kwargs": {"moto": "Be kind."}}
    with pytest.raises(UserError, match="did you mean 'motto'"):
        standalone(chat_model(HEADERS), tmp_path, [row])


def test_what_a_completion_holds_beside_its_text_is_not_dropped_in_silence(
    tmp_path: Path, chat_model: Callable
) -> None:
    completion = [{"role": "assistant", "content": ANSWER, "reasoning_content": "It leaks."}]
    with pytest.raises(UserError, match=r"'completion' .*reasoning_content"):
        standalone(chat_model(HEADERS), tmp_path, [{"prompt": [USER], "completion": completion}])


def test_a_turn_that_only_calls_tools_needs_no_content(tmp_path: Path, chat_model: Callable) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
    prompt = [USER, calls, {"role": "tool", "content": "A seal."}]
    trainer = standalone(chat_model(CHATML), tmp_path, [{"prompt": prompt, "completion": ANSWER, "tools": LOOK}])
    assert "<call>look</call>" in trainer.processing_class.decode(trainer.train_dataset["prompt_ids"][0])


def test_texts_for_a_model_with_a_chat_template_are_told_unless_the_template_wrote_them(
    chat_model: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model(HEADERS))
    Chat(tokenizer).tell_plain(iter(["Why?", tokenizer.eos_token + "Why?"]))
    assert not caplog.messages, "written by a template"
    Chat(tokenizer).tell_plain(iter(["Why?", "How?"]))
    assert "data.prompts: chat asks it" in caplog.text
    caplog.clear()
    tokenizer.chat_template = None
    Chat(tokenizer).tell_plain(["Why?"])
    assert not caplog.messages
