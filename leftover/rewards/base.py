"""What a reward is, and the types that a recipe can name."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from leftover.errors import UserError, nearest


class Reward(Protocol):
    """A scoring function of completions. `prompts` are strings or message lists, as the user wrote them.

    One that is asked for a batch at a time may have a number `batch_rows`: a run saves its scores after as many rows.
    """

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> Sequence[float | None]:
        """One finite number a completion; None where the function has no score for it (`reward.missing`)."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON, for keys."""
        ...


@runtime_checkable
class FittedReward(Protocol):
    """A reward that learns from rows before it can score. What it learnt lives in a folder of the run."""

    reads_rows: bool  # whether it learns from the run's own rows, so that its key holds them

    def fit(self, folder: Path, rows: Any) -> dict[str, Any]:
        """Learn and write all that `load` needs into `folder` (empty at first).

        `rows` is the run's table, a `datasets.Dataset` with the columns of ROWS_SCHEMA and `split`; only rows of
        the split `train` may teach. Returns facts to remember and show (held-out quality, sizes).
        """
        ...

    def identity(self) -> dict[str, Any]: ...

    def load(self, folder: Path) -> None:
        """Read what `fit` wrote; the reward can score from then on."""
        ...


class ColumnReward:
    """Scores recorded in the data. They belong to their rows: a new completion has none, unless a stand-in scores it.

    Args:
        column: None is the one that `data.columns.reward` names.
        new_completions: the specification of a reward on the same scale that scores completions which are no rows,
            such as a `linear` one fitted on the recorded scores of other rows.
    """

    def __init__(self, column: str | None = None, new_completions: dict[str, Any] | None = None):
        self.column = column
        self.stand_in = load_reward(new_completions) if new_completions else None
        if isinstance(self.stand_in, ColumnReward):
            raise UserError("new_completions of a column cannot be a column: name a reward that scores any text")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> Sequence[float | None]:
        """Scores of completions that are no rows, by the stand-in."""
        if self.stand_in is None:
            raise UserError(
                f"the column '{self.column or 'reward'}' holds recorded scores, which say nothing of a new completion; "
                "set its `new_completions`, or add a reward function (text, classifier, linear, python) instead"
            )
        return self.stand_in(prompts, completions)

    def identity(self) -> dict[str, Any]:
        stand_in = {"new_completions": self.stand_in.identity()} if self.stand_in else {}
        return {"type": "column", "column": self.column} | stand_in


def learner(reward: Any) -> FittedReward | None:
    """What of a component has to be fitted or loaded before it can score; None where nothing has."""
    scoring = reward.stand_in if isinstance(reward, ColumnReward) else reward
    return scoring if isinstance(scoring, FittedReward) else None


def load_reward(spec: dict[str, Any]) -> Any:
    """The reward that `spec` describes: `type` and the settings of that type (see REWARDS).

    Raises UserError for an unknown type or setting.
    """
    settings = dict(spec)
    kind = settings.pop("type", None)
    if kind not in REWARDS:
        raise UserError(f"unknown reward type {kind!r}{nearest(str(kind), list(REWARDS))}; types: {', '.join(REWARDS)}")
    module, _, name = REWARDS[kind].partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**settings)
    except TypeError as error:
        raise UserError(f"reward {spec}: {str(error).replace('__init__() ', '').split('.', 1)[-1]}") from error


# type -> where it is made. Imported when a recipe names it: some need packages that others do without.
REWARDS: dict[str, str] = {
    "column": "leftover.rewards.base:ColumnReward",
    "text": "leftover.rewards.text:make_text_reward",
    "classifier": "leftover.rewards.presets:make_classifier_reward",
    "linear": "leftover.rewards.linear:LinearReward",
    "fine_tuned": "leftover.rewards.fine_tuned:FineTunedReward",
    "python": "leftover.rewards.python:PythonReward",
    "http": "leftover.rewards.http:HttpReward",
    "sum": "leftover.rewards.sum:SumReward",
}
