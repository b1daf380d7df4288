"""How a classifier is shown a prompt and a completion: text alone, before any tokenizer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leftover.errors import UserError, nearest

FORMS = ("pair", "completion", "chat")
ROLE_TURNS = "{role}: {content}"
BLANK_LINE = "\n\n"

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]+\|>")


@dataclass(frozen=True)
class Join:
    """What of a row becomes the classifier's text; the settings are those of `ClassifierReward`."""

    form: str = "pair"
    prompt_pattern: str | None = None
    turns: str | Mapping[str, str] = ROLE_TURNS
    turn_separator: str = BLANK_LINE
    strip: bool = False

    def __post_init__(self) -> None:
        _check_form(self.form)
        _check_turns(self.turns)
        for name in ("turn_separator", "strip"):
            wanted = bool if name == "strip" else str
            if not isinstance(getattr(self, name), wanted):
                raise UserError(f"classifier {name} is {getattr(self, name)!r}, not a {wanted.__name__}")
        if self.prompt_pattern is not None:
            _check_pattern(self.prompt_pattern)
        if self.form in ("completion", "chat"):
            defaults = {"prompt_pattern": None, "turns": ROLE_TURNS, "turn_separator": BLANK_LINE}
            idle = [name for name, default in defaults.items() if getattr(self, name) != default]
            if idle:
                raise UserError(f"classifier {', '.join(idle)}: without effect under join: {self.form}; leave out")

    @property
    def shows_prompt(self) -> bool:
        return self.form in ("pair", "chat") or "{prompt}" in self.form

    @property
    def completion_last(self) -> bool:
        """Whether the text ends in the completion, so that cutting on the left takes the prompt first."""
        return self.form.rfind("{completion}") >= self.form.rfind("{prompt}")

    @property
    def special_tokens(self) -> list[str]:
        """The tokens of the form <|...|> that the settings write, in order; each must be one of the tokenizer's."""
        turns = [self.turns] if isinstance(self.turns, str) else list(self.turns.values())
        # A pattern may take the separators away again.
        separators = [] if self.prompt_pattern else [self.turn_separator]
        found = [token for text in (self.form, *turns, *separators) for token in _SPECIAL_TOKEN.findall(text)]
        return list(dict.fromkeys(found))

    def texts(self, prompt: Any, completion: str) -> tuple[str, ...]:
        """The text, or the pair of texts, that stands for a row; not of the form `chat`."""
        completion = self._stripped(completion)
        if self.form == "completion":
            return (completion,)
        shown = self.prompt_text(prompt)
        if self.form == "pair":
            return shown, completion
        # In one pass: a completion may hold the text "{prompt}".
        return (_fill(self.form, {"prompt": shown, "completion": completion}),)

    def prompt_text(self, prompt: Any) -> str:
        """The prompt as one text: its turns joined, then the part that `prompt_pattern` picks.

        Raises UserError for a role that `turns` has no form for, and where the pattern does not match.
        """
        if isinstance(prompt, str):
            text = self._stripped(prompt)
            if not isinstance(self.turns, str):
                text = self._turn({"role": "user", "content": prompt})
        else:
            text = self.turn_separator.join(self._turn(message) for message in prompt)
        if self.prompt_pattern is None:
            return text
        match = re.search(self.prompt_pattern, text)
        if match is None or match.group(1) is None:
            raise UserError(
                f"classifier prompt_pattern {self.prompt_pattern!r} matches nothing in the prompt {text!r:.100}: "
                "mend the pattern, or leave it out (null) to show the whole prompt"
            )
        return self._stripped(match.group(1))

    def messages(self, prompt: Any, completion: str) -> list[dict[str, str]]:
        """The conversation that ends in the completion, for the form `chat`; plain text is a user's turn."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turns.append({"role": "assistant", "content": completion})
        return [turn | {"content": self._stripped(turn["content"])} for turn in turns]

    def _turn(self, message: Mapping[str, str]) -> str:
        role = message["role"]
        if not isinstance(self.turns, str) and role not in self.turns:
            raise UserError(
                f"classifier turns has no form for the role '{role}' (it has: {', '.join(self.turns)}); add one"
            )
        form = self.turns if isinstance(self.turns, str) else self.turns[role]
        return _fill(form, {"role": role, "content": self._stripped(message["content"])})

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strip else text


def _fill(form: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], form)


def _check_form(form: Any) -> None:
    if form in FORMS:
        return
    if not isinstance(form, str) or "{" not in form:
        raise UserError(
            f"classifier join is {form!r}, neither {', '.join(FORMS)} nor a template with {{completion}}"
            f"{nearest(str(form), list(FORMS))}"
        )
    _check_placeholders("join", form, {"prompt", "completion"}, "completion")


def _check_turns(turns: Any) -> None:
    forms = list(turns.values()) if isinstance(turns, Mapping) else [turns]
    if not forms or not all(isinstance(form, str) for form in forms):
        raise UserError(f"classifier turns is {turns!r}, neither a template with {{content}} nor one for every role")
    for form in forms:
        _check_placeholders("turns", form, {"role", "content"}, "content")


def _check_placeholders(name: str, form: str, known: set[str], needed: str) -> None:
    found = set(_PLACEHOLDER.findall(form))
    if needed not in found or found - known:
        raise UserError(
            f"classifier {name} {form!r} must hold {{{needed}}}, and of placeholders only "
            + ", ".join(f"{{{name}}}" for name in sorted(known))
        )


def _check_pattern(pattern: Any) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, TypeError) as error:
        raise UserError(f"classifier prompt_pattern {pattern!r} is not a regular expression: {error}") from error
    if groups == 0:
        raise UserError(f"classifier prompt_pattern {pattern!r} has no group (...) that picks what is shown")
