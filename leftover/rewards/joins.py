"""Settings of a classifier, and how it is shown a prompt and a completion: text alone, before any tokenizer."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from leftover.errors import UserError, nearest
from leftover.recipe.forms import BY_FORM, MAPPING, TEXT
from leftover.rewards.base import STRICT, Prompt, compile_pattern

FORMS = ("pair", "completion", "chat")

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]+\|>")


@dataclass(config=STRICT, kw_only=True)
class ClassifierSettings:
    """Settings of a `ClassifierReward`.

    Args:
        model: folder or Hub id.
        label: the class whose score is the reward, by name or number; default: the last one.
        activation: default: none for a declared regression, sigmoid for one output and for several labels that do not
            exclude each other, else softmax.
        join: what the classifier is shown. pair: prompt and completion as the tokenizer's text pair; completion: the
            completion alone; chat: the conversation in the tokenizer's chat template; else a template of text with
            {prompt} and {completion}, in which special tokens such as <|endoftext|> are written out.
        prompt_pattern: a regular expression whose first group is the part of the prompt's text that is shown. A
            prompt that it does not match is an error.
        turns: how a message of a conversation is written, with {role} and {content}: one template, or one for every
            role. With the latter, a prompt that is plain text counts as one turn of the role `user`; else plain text
            stays as it is.
        turn_separator: text between two messages.
        strip: remove white space around prompt, messages and completion.
        truncation_side: where a text beyond `max_length` is cut; default: left, and right where the prompt is not
            shown or comes last. In a pair only the prompt is cut, unless the completion leaves it no room.
        max_length: in tokens, special ones included; default: the longest that tokenizer and model take.
        batch_size, dtype, device: as usual; the device defaults to a GPU if there is one.
    """

    model: str
    label: int | str | None = None
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    join: str = "pair"
    prompt_pattern: str | None = None
    turns: Annotated[Annotated[str, TEXT] | Annotated[dict[str, str], MAPPING], BY_FORM] = "{role}: {content}"
    turn_separator: str = "\n\n"
    strip: bool = False
    truncation_side: Literal["left", "right"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    dtype: str = "float32"
    device: str | int | None = None

    @field_validator("label", mode="before")
    @classmethod
    def _is_not_a_truth_value(cls, label: object) -> object:
        if isinstance(label, bool):
            raise ValueError(f"{label}: YAML reads yes, no, on and off as such; put it in quotes")
        return label

    @field_validator("join")
    @classmethod
    def _is_a_form_or_template(cls, form: str) -> str:
        if form in FORMS:
            return form
        if "{" not in form:
            raise ValueError(
                f"{form!r} is neither {', '.join(FORMS)} nor a template with {{completion}}{nearest(form, FORMS)}"
            )
        return _checked(form, {"prompt", "completion"}, "completion")

    @field_validator("turns")
    @classmethod
    def _are_templates(cls, turns: str | dict[str, str]) -> str | dict[str, str]:
        if not turns:
            raise ValueError(f"{turns!r} is neither a template with {{content}} nor one for every role")
        for form in _forms(turns):
            _checked(form, {"role", "content"}, "content")
        return turns

    def __post_init__(self) -> None:
        if self.prompt_pattern is not None:
            compile_pattern("prompt_pattern", self.prompt_pattern, groups=1)
        if self.join in ("completion", "chat"):
            names = ("prompt_pattern", "turns", "turn_separator")
            if idle := [name for name in names if getattr(self, name) != getattr(ClassifierSettings, name)]:
                raise ValueError(f"{', '.join(idle)}: no effect with join: {self.join}; remove it")
        shows_prompt = self.join in ("pair", "chat") or "{prompt}" in self.join
        # A text that ends in the completion loses its prompt first when it is cut on the left.
        completion_last = self.join.rfind("{completion}") >= self.join.rfind("{prompt}")
        sparing: Literal["left", "right"] = "left" if shows_prompt and completion_last else "right"
        if self.truncation_side is None:
            self.truncation_side = sparing
        elif self.truncation_side != sparing and shows_prompt and self.join != "pair":
            raise ValueError(
                f"truncation_side {self.truncation_side} would cut the completion of a long row under "
                f"join: {self.join!r}; set it to {sparing}"
            )

    @property
    def special_tokens(self) -> list[str]:
        """The tokens of the form <|...|> that the settings write, in order; each must be one of the tokenizer's."""
        # A pattern may take the separators away again.
        separators = [] if self.prompt_pattern else [self.turn_separator]
        texts = (self.join, *_forms(self.turns), *separators)
        return list(dict.fromkeys(token for text in texts for token in _SPECIAL_TOKEN.findall(text)))

    def texts(self, prompt: Prompt, completion: str) -> tuple[str, ...]:
        """The text, or the pair of texts, that stands for a row; not for the form `chat`."""
        completion = self._stripped(completion)
        if self.join == "completion":
            return (completion,)
        shown = self.prompt_text(prompt)
        if self.join == "pair":
            return shown, completion
        # Both are filled at once: a completion may hold the text "{prompt}".
        return (_fill(self.join, {"prompt": shown, "completion": completion}),)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as one text: its turns joined, then the part that `prompt_pattern` picks.

        Raises UserError for a role that `turns` has no form for, and if the pattern does not match.
        """
        if isinstance(prompt, str) and isinstance(self.turns, str):
            text = self._stripped(prompt)
        else:
            text = self.turn_separator.join(map(self._turn, _as_messages(prompt)))
        if self.prompt_pattern is None:
            return text
        match = re.search(self.prompt_pattern, text)
        if match is None or match.group(1) is None:
            raise UserError(
                f"classifier prompt_pattern {self.prompt_pattern!r} matches nothing in the prompt {text!r:.100}: "
                "fix the pattern, or remove it to show the whole prompt"
            )
        return self._stripped(match.group(1))

    def messages(self, prompt: Prompt, completion: str) -> list[dict[str, str]]:
        """The conversation that ends in the completion, for the form `chat`."""
        turns = [*_as_messages(prompt), {"role": "assistant", "content": completion}]
        return [turn | {"content": self._stripped(turn["content"])} for turn in turns]

    def _turn(self, message: Mapping[str, str]) -> str:
        role = message["role"]
        form = self.turns if isinstance(self.turns, str) else self.turns.get(role)
        if form is None:
            raise UserError(
                f"classifier turns has no form for the role '{role}' (it has: {', '.join(self.turns)}); add one"
            )
        return _fill(form, {"role": role, "content": self._stripped(message["content"])})

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strip else text


def _forms(turns: str | dict[str, str]) -> list[str]:
    return [turns] if isinstance(turns, str) else list(turns.values())


def _as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt; plain text is a user's turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _fill(form: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], form)


def _checked(form: str, known: set[str], needed: str) -> str:
    """The template, if its placeholders are known ones and the needed one is among them."""
    found = set(_PLACEHOLDER.findall(form))
    if needed not in found or found - known:
        valid = ", ".join(f"{{{name}}}" for name in sorted(known))
        raise ValueError(f"{form!r} must hold {{{needed}}}, and of placeholders only {valid}")
    return form
