"""A user's own function as a reward."""

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NoReturn

from leftover.data.checks import LARGEST_REWARD
from leftover.errors import PYTHON, RECIPE, SettingNames, UserError
from leftover.rewards.base import Prompt
from leftover.trust import code_is_closed


class PythonReward:
    """`function: "module:name"`, importable, or in a file of the working folder; called by `call_reward`.

    Its key holds the source of its module.
    """

    def __init__(self, function: str | None = None, **settings: Any):
        if function is None:
            raise UserError("python reward: missing key 'function': name yours as my_module:my_score")
        if not isinstance(function, str) or ":" not in function:
            raise UserError(f"python reward: function {function!r} is not of the form module:function")
        module_name, _, name = function.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        self.function, self.settings = function, settings
        if code_is_closed():
            self.callable: Callable[..., Any] = _not_run
            self._file: Path | None = _file_with(module_name, name)
            return
        try:
            with _os_exit_raises():
                module = importlib.import_module(module_name)
            self._file = Path(module.__file__) if module.__file__ else None
            self.callable = getattr(module, name)
        except (Exception, SystemExit) as error:  # the user's module may fail in any way, or call sys.exit
            raise UserError(f"python reward '{function}' cannot be loaded: {type(error).__name__}: {error}") from error
        if not callable(self.callable):
            raise UserError(f"python reward '{function}' is not a function")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        return call_reward(self.callable, f"python reward '{self.function}'", prompts, completions, **self.settings)

    def identity(self) -> dict[str, Any]:
        source = self._file.read_bytes() if self._file else b""
        digest = hashlib.sha256(source).hexdigest()[:16]
        return {"type": "python", "function": self.function, "source": digest, **self.settings}


def _not_run(*args: Any) -> NoReturn:
    raise AssertionError("no code runs here")


def _file_with(module: str, name: str) -> Path:
    """The file of a function, of which nothing is run. UserError if there is none, or it has no such name."""
    where, (first, *rest) = f"python reward '{module}:{name}' cannot be loaded", module.split(".")
    found = importlib.util.find_spec(first)
    origin = None if found is None or found.origin is None else Path(found.origin)
    if found is not None and rest:  # a package, of whose folders there may be several
        inside = [Path(folder).joinpath(*rest) for folder in found.submodule_search_locations or ()]
        files = (path for inner in inside for path in (inner.with_suffix(".py"), inner / "__init__.py"))
        origin = next((path for path in files if path.is_file()), None)
    if origin is None:
        raise UserError(f"{where}: there is no module {module}")
    if origin.suffix != ".py":
        return origin  # compiled: only a run can tell
    try:
        tree = ast.parse(origin.read_bytes())
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    text = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    text |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    text |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if hasattr(node, "names")
        for alias in node.names
        if isinstance(alias, ast.alias)
    }
    if name not in text and "*" not in text:
        raise UserError(f"{where}: {origin} has no '{name}'")
    return origin


@contextlib.contextmanager
def _os_exit_raises() -> Iterator[None]:
    """Inside, `os._exit` raises SystemExit: it would end the command at once, without a word and with any status."""
    usual, process = os._exit, os.getpid()

    def raises(status: int = 0) -> NoReturn:
        if os.getpid() != process:  # of a child that the user's function has forked: it does end so
            usual(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = raises
    try:
        yield
    finally:
        os._exit = usual


def call_reward(
    function: Callable[..., Any], name: str, prompts: Sequence[Prompt], completions: Sequence[str], **settings: Any
) -> list[float | None]:
    """The scores of a user's function: one number per completion, None if it has no score.

    Raises UserError that names the function if it fails or returns anything else.
    """
    given, named = arguments(function, list(prompts), list(completions), settings)
    try:
        with _os_exit_raises():
            returned = function(*given, **named)
            # One more than are wanted shows what is too long, of an endless generator too, which runs only here.
            unusable = isinstance(returned, dict) or not isinstance(returned, Iterable)  # a dictionary gives its keys
            found = [] if unusable else list(itertools.islice(returned, len(completions) + 1))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's function may fail in any way, or call sys.exit
        more = "".join(f", {setting}=..." for setting in settings)
        raise UserError(
            f"{name} failed: {type(error).__name__}: {error}. It is called as "
            f"f(prompts=[...], completions=[...]{more}), by these names if it has them, else in this order; --debug "
            "shows where it failed"
        ) from error
    try:
        if unusable:
            raise TypeError(type(returned).__name__)
        scores = [None if score is None else float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must return one number (or None) per completion, got {returned!r:.80}") from error
    if len(scores) != len(completions):
        number = len(returned) if isinstance(returned, Sized) else f"more than {len(completions)}"
        number = len(scores) if len(scores) < len(completions) else number
        raise UserError(f"{name} returned {number} scores for {len(completions)} completions")
    return scores


# What the parameters of a reward function may be called.
_TEXTS = {"prompt": "prompts", "completion": "completions", "response": "completions", "responses": "completions"}


def arguments(
    function: Callable[..., Any], prompts: list[Prompt], completions: list[str], settings: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """How a reward function is called: the positional arguments, and those by name.

    By the names of its parameters if one of them is `prompts` or `completions` (as TRL's reward functions get them; or
    prompt, completion, response, responses) out of that order, or alone; also if it takes any keyword. Else, as with
    parameters of other names, in this order.
    """
    texts: dict[str, Any] = {"prompts": prompts, "completions": completions}
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # a built-in function may show none
        return [*texts.values()], settings
    keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
    single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = {p.name: name for p in single if (name := _TEXTS.get(p.name, p.name)) in texts}
    required = [p.name for p in single if p.default is p.empty and p.name not in settings]
    in_place = all(known.get(name, text) == text for name, text in zip(required, texts, strict=False))
    if in_place and len(required) == 2 and set(required) - set(known):
        return [*texts.values()], settings  # (questions, completions), (xs, ys)
    if not known and not (keyword and not required):
        return [*texts.values()], settings
    by_name = {name: texts[text] for name, text in known.items()} | settings
    if keyword:
        by_name |= {text: texts[text] for text in texts.keys() - set(known.values())}
    only_positional = [p.name for p in single if p.kind is p.POSITIONAL_ONLY]
    first = list(itertools.takewhile(by_name.__contains__, only_positional))
    return [by_name.pop(name) for name in first], by_name


def check_finite(
    name: str, scores: Sequence[float | None], completions: Sequence[str], names: SettingNames = RECIPE
) -> None:
    """Raises UserError that names the first completion whose score is NaN, infinite or huge; None means no score."""
    bad = [i for i, score in enumerate(scores) if score is not None and not math.isfinite(score)]
    if bad:
        raise UserError(
            f"{name} gave {scores[bad[0]]} for the completion {completions[bad[0]]!r:.80} ({len(bad)} of {len(scores)} "
            f"scores are not finite numbers); {names.missing_scores}"
        )
    huge = [i for i, score in enumerate(scores) if score is not None and abs(score) > LARGEST_REWARD]
    if huge:
        raise UserError(
            f"{name} gave {scores[huge[0]]:g} for the completion {completions[huge[0]]!r:.80} ({len(huge)} of "
            f"{len(scores)} scores are too large to compute with, at most {LARGEST_REWARD:g}): rescale them"
        )


def summed(reward_funcs: Callable | Sequence[Callable] | None) -> Callable | None:
    """One reward function that adds up one or several, and checks what they return; None if there is none."""
    if reward_funcs is None:
        return None
    functions: list[Any] = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if others := [function for function in functions if not callable(function)]:
        raise UserError(f"reward_funcs takes functions, got {others[0]!r:.80}; leftover.rewards.load_reward makes one")
    if len(functions) == 1 and hasattr(functions[0], "score_components"):  # a SumReward, which checks its own
        return functions[0]

    def total(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        columns = [
            call_reward(f, f"reward function '{getattr(f, '__name__', type(f).__name__)}'", prompts, completions)
            for f in functions
        ]
        totals = [sum(math.nan if s is None else s for s in scores) for scores in zip(*columns, strict=True)]
        check_finite("reward_funcs", totals, completions, PYTHON)
        return totals

    return total
