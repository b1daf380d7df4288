"""A user's own function as a reward."""

import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.errors import UserError


class PythonReward:
    """`function: "module:name"`, importable or a file beside the recipe's working folder.

    It is called with the keyword arguments `prompts` and `completions` (lists of equal length), as TRL's reward
    functions are, and must return one number a completion. Its key holds the source of its module.
    """

    def __init__(self, function: str, **settings: Any):
        module_name, separator, name = function.partition(":")
        if not separator:
            raise UserError(f"python reward '{function}' is not of the form module:function")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            self.module = importlib.import_module(module_name)
            self.callable = getattr(self.module, name)
        except Exception as error:  # the user's module may fail in any way
            raise UserError(f"python reward '{function}' cannot be loaded: {type(error).__name__}: {error}") from error
        if not callable(self.callable):
            raise UserError(f"python reward '{function}' is not a function")
        self.function, self.settings = function, settings

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        try:
            returned = self.callable(prompts=list(prompts), completions=list(completions), **self.settings)
        except Exception as error:  # the user's function may fail in any way
            raise UserError(
                f"python reward '{self.function}' failed: {type(error).__name__}: {error}. It is called as "
                f"f(prompts=[...], completions=[...]{''.join(f', {name}=...' for name in self.settings)}); --debug "
                "shows where it failed"
            ) from error
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"python reward '{self.function}' must return one number a completion, got {returned!r:.80}"
            ) from error
        if len(scores) != len(completions):
            raise UserError(
                f"python reward '{self.function}' returned {len(scores)} scores for {len(completions)} completions"
            )
        return scores

    def identity(self) -> dict[str, Any]:
        source = Path(self.module.__file__ or "").read_bytes() if self.module.__file__ else b""
        return {
            "type": "python",
            "function": self.function,
            "source": hashlib.sha256(source).hexdigest()[:16],
            **self.settings,
        }
