"""What a reward is, and the types that a recipe can name."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from leftover.errors import UserError, located, looked_for, nearest
from leftover.recipe.files import faults, read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

# A reward with settings is a dataclass of them: unknown keys and values of another type are refused.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# A text, or the messages of a conversation, as the user wrote it.
Prompt = str | list[dict[str, Any]]
T = TypeVar("T")


class Reward(Protocol):
    """One that scores a batch at a time may have a number `batch_rows`: a run saves its scores after that many rows."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[float | None]:
        """One finite number per completion; None if the function has no score for it (`reward.missing`)."""

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON, for keys."""


@runtime_checkable
class FittedReward(Protocol):
    """A reward that learns from rows before it can score. What it learnt is stored in a folder of the run."""

    reads_rows: bool  # whether it learns from the run's own rows, so that its key holds them

    def fit(self, folder: Path, rows: "Dataset") -> dict[str, Any]:
        """Learn, and write all that `load` needs into `folder` (empty at first).

        `rows` is the run's table with the columns of ROWS_SCHEMA and `split`; only rows of the split `train` may
        teach. Returns facts to remember and show (held-out quality, sizes).
        """

    def identity(self) -> dict[str, Any]: ...

    def load(self, folder: Path) -> None:
        """Read what `fit` wrote; the reward can score from then on."""


@dataclass(config=STRICT)
class ColumnReward:
    """Scores recorded in the data. They belong to their rows: a new completion has none, unless a stand-in scores it.

    Args:
        column: default: the one that `data.columns.reward` names.
        new_completions: the specification of a reward on the same scale that scores new completions, such as a
            `linear` one fitted on the recorded scores of other rows.
    """

    column: str | None = None
    new_completions: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        with located("new_completions"):
            self.stand_in = load_reward(self.new_completions) if self.new_completions else None
        if isinstance(self.stand_in, ColumnReward):
            raise ValueError("new_completions cannot be a column: name a reward that scores any text")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[float | None]:
        if self.stand_in is None:
            raise UserError(
                f"the column '{self.column or 'reward'}' holds recorded scores, and none for new completions: set its "
                "`new_completions`, or add a reward function (text, classifier, linear, python) instead"
            )
        return self.stand_in(prompts, completions)

    def identity(self) -> dict[str, Any]:
        stand_in = {"new_completions": self.stand_in.identity()} if self.stand_in else {}
        return {"type": "column", "column": self.column} | stand_in


@dataclass(config=STRICT)
class TextReward:
    """A reward of `type: text`; its fields are its settings."""

    function: ClassVar[str]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[float | None]:
        return [self.score(completion) for completion in completions]

    def score(self, completion: str) -> float:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"type": "text", "function": self.function, **asdict(self)}


def learner(reward: object) -> FittedReward | None:
    """The part of a component that has to be fitted or loaded before it can score; None if there is none."""
    scoring = reward.stand_in if isinstance(reward, ColumnReward) else reward
    return scoring if isinstance(scoring, FittedReward) else None


def load_reward(spec: dict[str, Any] | list[dict[str, Any]] | str | Path) -> Any:
    """The reward that `spec` describes.

    Args:
        spec: `type` and the settings of that type (see REWARDS); or a list of such, or the section `reward` of a
            recipe; or the path of a YAML file with one of these. A list, a section and a file make a `SumReward`.

    Raises UserError for an unknown type or setting.
    """
    if isinstance(spec, (str, Path)):
        section = read_section(Path(spec))
        with located(str(spec)):
            return load_reward({"type": "sum"} | section)
    if isinstance(spec, list):
        spec = {"functions": spec}
    if not isinstance(spec, dict):
        raise UserError(f"a reward is {{type: ...}}, a list of these, or the path of a YAML file; got {spec!r}")
    settings = dict(spec)
    kind = settings.pop("type", "sum" if "functions" in spec else None)
    check_name("reward type", "type", kind, REWARDS)
    return make(f"{kind} reward", resolve_name(REWARDS[kind]), settings)


def read_section(path: Path) -> dict[str, Any]:
    """The section `reward` in a YAML file: as in a recipe, alone, or its functions alone."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"no YAML file at '{path}'{looked_for(path)}") from error
    if isinstance(content, dict) and "reward" in content:
        content = content["reward"]
    if isinstance(content, dict) and "type" in content:
        content = [content]
    if isinstance(content, list):
        return {"functions": content}
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: takes a reward function, a list of them, or a section `reward`; found {content!r:.60}"
        )
    return content


def make(what: str, reward: Callable[..., T], settings: dict[Any, Any]) -> T:
    """`reward(**settings)`. Raises UserError, which begins with `what`, for settings that it does not have."""
    try:
        return reward(**{str(name): value for name, value in settings.items()})
    except ValidationError as error:
        found = faults(error, settings, getattr(reward, "Settings", reward))
        raise UserError(f"{what}: {'; '.join(found)}") from None


def not_fitted(what: str) -> UserError:
    return UserError(f"{what} is not fitted yet: use it in a recipe, or call fit and load")


def check_name(what: str, key: str, name: object, valid: Iterable[str]) -> None:
    """Raises UserError for a name, given under `key`, that is none of the valid ones."""
    names = list(valid)
    if name is None:
        raise UserError(f"missing key '{key}': the {what}, one of {', '.join(names)}")
    if name not in names:
        raise UserError(f"unknown {what} {name!r}{nearest(str(name), names)}; valid here: {', '.join(names)}")


def compile_pattern(key: str, pattern: str, flags: int = 0, groups: int = 0) -> re.Pattern[str]:
    """The compiled expression of a setting. Raises ValueError if it is invalid or has fewer groups."""
    try:
        expression = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}") from error
    if expression.groups < groups:
        raise ValueError(
            f"{key} {pattern!r} has no group: put parentheses around the part that counts, as in '#### (.+)'"
        )
    return expression


# type -> where it is made. Imported when a recipe names it: some need packages that others do without.
REWARDS: dict[str, str] = {
    "column": "leftover.rewards.base:ColumnReward",
    "text": "leftover.rewards.text:make_text_reward",
    "classifier": "leftover.rewards.presets:make_classifier_reward",
    "linear": "leftover.rewards.linear:LinearReward",
    "fine_tuned": "leftover.rewards.fine_tuned:FineTunedReward",
    "python": "leftover.rewards.python:PythonReward",
    "http": "leftover.rewards.http:HttpReward",
    "sum": "leftover.rewards.sum:make_sum_reward",
}
