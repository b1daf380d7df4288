"""Questions to the user, and what is taken where nobody is asked."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from leftover.errors import UserError
from leftover.monitoring.terminal import harmless

NONE = "none of them"  # a choice


@dataclass
class Questions:
    """`assume`: ask nothing and take the likeliest; what was taken so stands in `assumed`, a sentence each.

    `doubts`: the questions alone, with what could have been taken, the likeliest first.
    """

    assume: bool
    assumed: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def choose(self, question: str, choices: Sequence[str], remedy: str) -> str:
        """One of the choices, of which the first is the likeliest. `remedy`: what answers it without being asked."""
        if self.assume:
            others = ", ".join(choice for choice in choices[1:] if choice != NONE)
            self.doubts.append(f"{question.rstrip('?')}: {', '.join(choices)}?")
            self.assumed.append(f"{question} Took {choices[0]}{f' (not {others})' if others else ''}; {remedy}")
            return choices[0]
        click.echo(harmless(question))
        for number, choice in enumerate(choices, start=1):
            click.echo(harmless(f"  {number}  {choice}"))
        return choices[self._prompt("Number", click.IntRange(1, len(choices)), 1, f"{question} {remedy}") - 1]

    def worth(self, word: str, remedy: str) -> float | None:
        """What a word is worth, from 0 (the worst) to 1; None for no score."""
        question = f"What is '{word}' worth, from 0 (the worst) to 1 (the best)? -1: it is no score."
        found = self._prompt(harmless(question), click.FloatRange(-1, 1), None, f"{question} {remedy}")
        return None if found < 0 else found

    def _prompt(self, text: str, kind: click.ParamType, default: int | None, unanswered: str) -> Any:
        try:
            return click.prompt(text, type=kind, default=default)
        except click.Abort:
            if sys.stdin.isatty():  # Ctrl-C
                raise
            raise UserError(f"nobody is there to answer: {unanswered}, or --yes takes the likeliest") from None
