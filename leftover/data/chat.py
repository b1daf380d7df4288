"""Conversations -> text by the tokenizer's chat template: where a completion begins, and what ends its turn."""

import inspect
import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from leftover.data.records import Row
from leftover.data.rows import as_prompt
from leftover.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

log = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
Options = dict[str, Any]  # keywords of a chat template, such as `enable_thinking`

SYSTEM_ROLES = ("system", "developer")

# Stands for a completion where only what the template writes around one is of interest.
_PROBE = "a completion"
_PROBED = ([{"role": "user", "content": "Hello"}], [{"role": "system", "content": "Be brief."}])

_CLOSING_TAG = re.compile(r"</[^<>]+>")


class ConversationFault(ValueError):
    """What is wrong with one conversation under this template, and the remedy."""


class Turn(NamedTuple):
    asked: str  # everything before the completion
    whole: str  # that, the completion, and the end of its turn


class Probed(NamedTuple):
    end: str | None  # the token that closes an assistant's turn; None for a template that closes none
    opening: str  # the text between the generation prompt and a completion
    dated: bool  # whether prompts hold today's date


class Chat:
    """A tokenizer's chat template with its options, and the tokens that end a completion.

    `end_tokens`: further tokens, as text, that end a completion.

    Raises UserError for an option that the template does not read and for an end that is not one token.
    """

    def __init__(self, tokenizer: "Tokenizer", options: Options | None = None, end_tokens: Sequence[str] = ()):
        self.tokenizer, self.options = tokenizer, options or {}
        self.end_tokens = {text: _single_token(tokenizer, text) for text in end_tokens}
        self.check_options(self.options)
        self._closings: dict[str, str] = {}

    @cached_property
    def ends(self) -> list[int]:
        """Ids that end a completion: the tokenizer's end of sequence, the template's end of turn, `end_tokens`."""
        ids = [self.tokenizer.eos_token_id, *self.end_tokens.values()]
        if self.tokenizer.chat_template is not None and self.probed.end is not None:
            ids.append(_single_token(self.tokenizer, self.probed.end))
        return list(dict.fromkeys(ids))

    @cached_property
    def probed(self) -> Probed:
        """What the template does to a conversation of one turn."""
        for messages in (_PROBED[0], _PROBED[1] + _PROBED[0]):
            try:
                asked, whole = self.asked(messages), self._render(_answered(messages, _PROBE))
                end = self._end(self._closing(messages, None, {}))[1]
                dated = "strftime_now" in self._source and self._raises(messages, strftime_now=None)
            except ConversationFault:
                continue
            opening = whole[len(asked) : whole.rfind(_PROBE)] if whole.startswith(asked) else ""
            return Probed(end, opening, dated)
        return Probed(None, "", False)

    def asked(self, messages: Messages, tools: Tools | None = None, options: Options | None = None) -> str:
        """The prompt as the model is asked to continue it; one that ends in an assistant's turn continues that turn."""
        continues = {"continue_final_message": True} if _continues(messages) else {"add_generation_prompt": True}
        return self._render(messages, tools=tools, **(options or {}), **continues)

    def turn(
        self, messages: Messages, completion: str, tools: Tools | None = None, options: Options | None = None
    ) -> Turn:
        """The prompt, and the whole conversation up to the end of the completion's turn.

        Raises ConversationFault where the template refuses the conversation, or writes it so that the completion
        cannot be told apart.
        """
        options = options or {}
        asked = self.asked(messages, tools, options)
        whole = self._render(_answered(messages, completion), tools=tools, **options)
        if not whole.startswith(asked):
            at = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(whole))
            raise ConversationFault(
                f"the chat template writes a prompt differently once a completion follows it ({asked[at:][:40]!r} "
                f"becomes {whole[at:][:40]!r}), so the tokens of the completion cannot be told apart; set an option of "
                "the template (model.template_options, such as enable_thinking), or model.chat_template to a template "
                "whose generation prompt is a prefix of the whole conversation"
            )
        closing = self._closing(messages, tools, options)
        body = whole.removesuffix(closing)
        if not whole.endswith(closing) or not _squash(body).endswith(_squash(completion)):
            raise ConversationFault(
                f"the chat template does not write the completion as it is (it ends in {whole[-40:]!r}), so that the "
                "text trained on is not the text scored; take out of the completion what the template drops (often "
                "thoughts), or set model.chat_template to a template that writes it whole"
            )
        answer = body[len(asked) :]
        if twice := [tag for tag in _CLOSING_TAG.findall(completion) if answer.count(tag) > completion.count(tag)]:
            raise ConversationFault(
                f"the completion holds {twice[0]}, and the chat template writes one of its own: take the thoughts out "
                "of the completion, or set model.chat_template to a template that reads them there"
            )
        return Turn(asked, body + self._end(closing)[0])

    def check_options(self, options: Options) -> None:
        """Refuse options that the template does not have: Jinja ignores an unknown name in silence."""
        key = "model.template_options (LoLConfig: chat_template_kwargs)"
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
        """Log what a user would not expect of this template; `tools`: whether any row has some."""
        if tools and not re.search(r"\btools\b", self._source):
            log.warning(
                "the rows have tools, but the chat template reads none: set model.chat_template to one that does"
            )
        if self.probed.opening.strip():
            log.warning(
                "the chat template writes %r before completions that do not hold it: it is trained on, and the model "
                "generates it; where an option of the template puts it into the prompt, set that in "
                "model.template_options (Qwen 3: enable_thinking: false)",
                self.probed.opening,
            )
        if self.probed.dated:
            log.warning(
                "the chat template writes today's date into every prompt, so that rows tokenised another day differ; "
                "fix it by an option of the template (Llama 3: model.template_options: {date_string: 26 Jul 2024}), "
                "or in model.chat_template"
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

    def _closing(self, messages: Messages, tools: Tools | None, options: Options) -> str:
        """What the template writes behind a completion to this conversation: its shape decides, not its text."""
        shape = json.dumps([[message["role"] for message in messages], bool(tools), options], sort_keys=True)
        if shape not in self._closings:
            whole = self._render(_answered(messages, _PROBE), tools=tools, **options)
            self._closings[shape] = whole.rpartition(_PROBE)[2] if _PROBE in whole else ""
        return self._closings[shape]

    def _render(self, messages: Messages, **keywords: Any) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        if self.tokenizer.chat_template is None:
            raise UserError(
                "the rows are conversations, but the tokenizer has no chat template; set model.chat_template in the "
                "recipe (a template, a file, or 'plain'), or chat_template on the tokenizer you pass"
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **(self.options | keywords)))
        except TemplateSyntaxError as error:
            raise UserError(f"model.chat_template is not valid Jinja: {first_line(error)}") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ConversationFault(
                f"the chat template refuses a conversation of {roles}: {first_line(error)}; "
                f"{self._remedy(messages, keywords)}"
            ) from error

    def _remedy(self, messages: Messages, keywords: Options) -> str:
        rest = [message for message in messages if message["role"] not in SYSTEM_ROLES]
        if 0 < len(rest) < len(messages) and not self._raises(rest, **keywords):
            return (
                "it knows no system turn here: put that text at the start of the first user message, or set "
                "model.chat_template to a template that has one"
            )
        return "mend its turns, or set model.chat_template to a template that takes them"

    def _raises(self, messages: Messages, **keywords: Any) -> bool:
        try:
            self._render(messages, **keywords)
        except ConversationFault:
            return True
        return False


def _continues(messages: Messages) -> bool:
    return messages[-1]["role"] == "assistant"


def _answered(messages: Messages, completion: str) -> Messages:
    if _continues(messages):
        return [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + completion}]
    return [*messages, {"role": "assistant", "content": completion}]


def _squash(text: str) -> str:
    """The text without white space, which templates set as they like."""
    return "".join(text.split())


def _single_token(tokenizer: "Tokenizer", text: str) -> int:
    known = tokenizer.convert_tokens_to_ids(text)
    if isinstance(known, int) and known != tokenizer.unk_token_id:
        return known
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise UserError(
            f"model.end_tokens: {text!r} is not one token of this tokenizer but {len(ids)}, "
            f"{tokenizer.convert_ids_to_tokens(ids)}: name one, or add it to the tokenizer"
        )
    return ids[0]


def readable(row: Row, between: str = " ", *, tools: bool = False) -> str:
    """A prompt as text: `role: content` of every message of a conversation, after its tools where these are asked for.

    `between` stands between the messages.
    """
    prompt = as_prompt(row["prompt"], row["conversational"])
    if isinstance(prompt, str):
        return prompt
    listed = [f"tools: {row['tools']}"] if tools and row.get("tools") else []
    return between.join([*listed, *(f"{message['role']}: {message['content']}" for message in prompt)])
