"""Conversations -> text by the tokenizer's chat template: where a completion begins, and what ends its turn."""

import inspect
import json
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from leftover.data.encode import Encoder
from leftover.data.records import Row
from leftover.data.rows import as_prompt
from leftover.data.tokenizer import single_token
from leftover.errors import RECIPE, SettingNames, UserError, first_line, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

log = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
Options = dict[str, Any]  # keywords of a chat template, such as `enable_thinking`

SYSTEM_ROLES = ("system", "developer")

# Stands for a completion when only what the template writes around it matters.
_PROBE = "a completion"

_CLOSING_TAG = re.compile(r"</[^<>]+>")


class ConversationFault(ValueError):
    """Why this template cannot write a conversation, and the remedy."""


class Conversation(NamedTuple):
    """Messages that ask for a completion, and what the template gets with them."""

    messages: Messages
    tools: Tools | None = None
    options: Options | None = None

    @classmethod
    def of(cls, row: Row) -> "Conversation":
        """That of a row of the table, which may have tools (as JSON text) and its own options."""
        tools = json.loads(row["tools"]) if row.get("tools") else None
        return cls(as_prompt(row["prompt"], True), tools, row.get("chat_template_kwargs"))

    @property
    def continues(self) -> bool:
        """Whether the completion continues the last message."""
        return self.messages[-1]["role"] == "assistant"

    def answered(self, completion: str) -> "Conversation":
        *earlier, last = self.messages
        if self.continues:
            return self._replace(messages=[*earlier, last | {"content": last["content"] + completion}])
        return self._replace(messages=[*self.messages, {"role": "assistant", "content": completion}])


class Turn(NamedTuple):
    asked: str  # everything before the completion
    whole: str  # that, the completion, and the end of its turn


class Chat:
    """A tokenizer's chat template with its options, and the tokens that end a completion (`end_tokens`: further ones).

    Raises UserError for an option that the template does not read and for an end that is not one token.
    `names`: what messages call the settings. `two_texts`: the model is an encoder-decoder, which reads prompt and
    completion as a text each.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        options: Options | None = None,
        end_tokens: Sequence[str] = (),
        names: SettingNames = RECIPE,
        two_texts: bool = False,
    ):
        self.tokenizer, self.options, self.two_texts = tokenizer, options or {}, two_texts
        self.encoder = Encoder(tokenizer)
        self._names = names
        self.end_tokens = {text: single_token(tokenizer, text, self._names.end_tokens) for text in end_tokens}
        self.check_options(self.options)
        self._closings: dict[str, str] = {}

    def tell_plain(self, prompts: Iterable[str]) -> None:
        """Warn of text prompts of a model that has learnt a chat template, unless they are written by one."""
        marks = {str(mark) for mark in self.tokenizer.all_special_tokens}
        template = self.tokenizer.chat_template is not None
        if template and not any(mark in prompt for prompt in prompts for mark in marks):
            log.warning("prompts are texts, and the model has a chat template: data.prompts: chat asks it through that")

    @cached_property
    def ends(self) -> list[int]:
        """Ids that end a completion: the tokenizer's end of sequence, the template's end of turn, `end_tokens`."""
        ids = [self.tokenizer.eos_token_id, *self.end_tokens.values()]
        if self.tokenizer.chat_template is not None and self._probe:
            end = self._end(self._closing(self._probe))[1]
            ids += [single_token(self.tokenizer, end, self._names.end_tokens)] if end is not None else []
        return list(dict.fromkeys(ids))

    @cached_property
    def _probe(self) -> Conversation | None:
        """A conversation of one turn that the template takes; None if there is none."""
        user, system = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be brief."}
        for probe in (Conversation([user]), Conversation([system, user])):
            if not (self._raises(probe, add_generation_prompt=True) or self._raises(probe.answered(_PROBE))):
                return probe
        return None

    def asked(self, conversation: Conversation) -> str:
        """The prompt as the model is asked to continue it; one that ends in an assistant's turn continues that turn."""
        option = "continue_final_message" if conversation.continues else "add_generation_prompt"
        return self._render(conversation, **{option: True})

    def turn(self, conversation: Conversation, completion: str) -> Turn:
        """The prompt, and the whole conversation up to the end of the completion's turn.

        Raises ConversationFault where the template refuses the conversation, or hides where the completion begins.
        """
        asked, whole = self.asked(conversation), self._render(conversation.answered(completion))
        if not whole.startswith(asked):
            at = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(whole))
            raise ConversationFault(
                f"the chat template writes a prompt differently once a completion follows it ({asked[at:][:40]!r} "
                f"becomes {whole[at:][:40]!r}), which hides where the completion begins; set "
                f"{self._names.template_options} (such as enable_thinking), or {self._names.chat_template} to one that "
                "keeps the generation prompt as it is"
            )
        closing = self._closing(conversation)
        body = whole.removesuffix(closing)
        # Templates set white space as they like.
        if not whole.endswith(closing) or not "".join(body.split()).endswith("".join(completion.split())):
            raise ConversationFault(
                f"the chat template does not write the completion as it is (it ends in {whole[-40:]!r}), so that "
                "another text is trained on than scored; take out of the completion what the template drops (often "
                f"thoughts), or set {self._names.chat_template} to a template that writes it whole"
            )
        answer = body[len(asked) :]
        if twice := [tag for tag in _CLOSING_TAG.findall(completion) if answer.count(tag) > completion.count(tag)]:
            raise ConversationFault(
                f"the completion holds {twice[0]}, and the chat template writes another one: take the thoughts out "
                f"of the completion, or set {self._names.chat_template} to a template that reads them there"
            )
        return Turn(asked, body + self._end(closing)[0])

    def check_options(self, options: Options) -> None:
        """Refuse options that the template does not have: Jinja silently ignores an unknown name."""
        key = self._names.template_options
        taken = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - {"documents"}
        words = set(re.findall(r"[A-Za-z_]\w*", self._source)) if options else set()
        for name, value in options.items():
            if name in taken or name not in words:
                raise UserError(
                    f"{key}: the chat template has no option '{name}'{nearest(name, sorted(words - taken))}"
                )
            try:
                json.dumps(value)
            except TypeError:
                raise UserError(f"{key}: '{name}' is a {type(value).__name__}: write it as a text, in quotes") from None

    def warn(self, tools: bool) -> None:
        """Log what would surprise a user of this template; `tools`: whether any row has some."""
        if tools and not re.search(r"\btools\b", self._source):
            log.warning("the rows have tools, which the chat template does not read: set %s", self._names.chat_template)
        if (probe := self._probe) is None:
            return
        asked, whole = self.asked(probe), self._render(probe.answered(_PROBE))
        opening = whole[len(asked) : whole.rfind(_PROBE)] if whole.startswith(asked) else ""
        if opening.strip():
            log.warning(
                "the chat template writes %r before completions that do not hold it: it is trained on, and the model "
                "generates it; if an option of the template puts it into the prompt, set that in "
                "%s (Qwen 3: enable_thinking: false)",
                opening,
                self._names.template_options,
            )
        if "strftime_now" in self._source and self._raises(probe, strftime_now=None):
            log.warning(
                "the chat template writes today's date into every prompt, so that rows tokenised another day differ; "
                "fix it by an option of the template (Llama 3: %s: {date_string: 26 Jul 2024}), or in %s",
                self._names.template_options,
                self._names.chat_template,
            )

    @cached_property
    def _source(self) -> str:
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else template or ""

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Any token that can end a turn. Some tokenizers add runs of white space, which end none."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        tokens = {token for token in (*self.tokenizer.all_special_tokens, *added) if token.strip()}
        longest_first = sorted(tokens | set(self.end_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def _end(self, closing: str) -> tuple[str, str | None]:
        """The part of the text behind a completion that ends its turn, and the token that it ends in.

        That is the first control token and those that adjoin it, up to the end of sequence or one of `end_tokens`:
        what follows, often a line break, is never generated. Without a control token it is the whole text.
        """
        if not (first := self._control.search(closing)):
            return closing.rstrip(), None
        known, token = {self.tokenizer.eos_token, *self.end_tokens}, first
        while token.group() not in known and (after := self._control.match(closing, token.end())):
            token = after
        return closing[: token.end()], token.group()

    def _closing(self, conversation: Conversation) -> str:
        """What the template writes behind a completion: the shape of the conversation decides, not its text."""
        roles = [message["role"] for message in conversation.messages]
        shape = json.dumps([roles, bool(conversation.tools), conversation.options], sort_keys=True)
        if shape not in self._closings:
            whole = self._render(conversation.answered(_PROBE))
            self._closings[shape] = whole.rpartition(_PROBE)[2] if _PROBE in whole else ""
        return self._closings[shape]

    def _render(self, conversation: Conversation, **keywords: Any) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        if self.tokenizer.chat_template is None:
            raise UserError(
                f"the rows are conversations, but the tokenizer has no chat template; set {self._names.chat_template}"
                f"{self._names.how_to_give_a_template}"
            )
        messages, tools, options = conversation
        keywords = {"tools": tools, **self.options, **(options or {}), **keywords}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **keywords))
        except TemplateSyntaxError as error:
            raise UserError(f"{self._names.chat_template} is not valid Jinja: {first_line(error)}") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            remedy = f"fix its turns, or set {self._names.chat_template} to a template that takes them"
            rest = [message for message in messages if message["role"] not in SYSTEM_ROLES]
            if 0 < len(rest) < len(messages) and not self._raises(conversation._replace(messages=rest), **keywords):
                remedy = (
                    "it knows no system turn here: put that text at the start of the first user message, or set "
                    f"{self._names.chat_template} to a template that has one"
                )
            roles = ", ".join(message["role"] for message in messages)
            fault = f"the chat template refuses a conversation of {roles}: {first_line(error)}; {remedy}"
            raise ConversationFault(fault) from error

    def _raises(self, conversation: Conversation, **keywords: Any) -> bool:
        try:
            self._render(conversation, **keywords)
        except ConversationFault:
            return True
        return False


def readable(row: Row, between: str = " ", *, tools: bool = False) -> str:
    """A prompt as text: of a conversation `role: content` of its messages, after its `tools` where asked for."""
    prompt = as_prompt(row["prompt"], row["conversational"])
    if isinstance(prompt, str):
        return prompt
    listed = [f"tools: {row['tools']}"] if tools and row.get("tools") else []
    return between.join([*listed, *(f"{message['role']}: {message['content']}" for message in prompt)])
