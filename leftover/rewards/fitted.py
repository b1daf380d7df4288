"""What rewards that are fitted on rows share: where the rows come from, held-out quality, a folder to load from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from leftover.data.formats import check_files
from leftover.errors import UserError, located, looked_for
from leftover.rewards.base import STRICT, Prompt, not_fitted
from leftover.rewards.examples import (
    Examples,
    data_identity,
    data_section,
    hold_out,
    of_fit,
    read_examples,
    run_examples,
)
from leftover.rewards.quality import held_out_facts
from leftover.store.files import read_json, write_json
from leftover.store.folders import LOCK
from leftover.store.manifest import Manifest, file_hash
from leftover.store.sealed import digest

if TYPE_CHECKING:
    from datasets import Dataset

_DESCRIPTION = "reward.json"  # written last: a folder that has it is whole
_KEYS = {"type": str, "target": str, "settings": dict}


class FitSettings(BaseModel):
    """Settings of a reward that is fitted on rows.

    Args:
        path: the folder of one that was fitted before, which brings its own settings; or
        fit: rows to fit on: `rows` for the run's own training rows with their recorded scores, or the keys of a data
            section. Its `part` keeps the families of a judge and of a training reward apart.
        target: label (0 or 1), score (any number) or pairs (a chosen and a rejected row side by side: Bradley and
            Terry's model). auto: pairs for preferences without scores of their own, label if all are 0 or 1.
        output: for labels. Others give a number on the scale of the scores (score), or one whose difference is the
            log-odds of a preference (pairs).
        held_out: share of families that neither fit nor choose a setting; the facts of `fit` are measured on them.
            Where rows have a split other than `train`, those are held out instead.
        seed: of the choice of those families, and of the fit.
    """

    model_config = STRICT

    path: str | None = None
    fit: object = None
    target: Literal["auto", "label", "score", "pairs"] = "auto"
    output: Literal["probability", "logit"] = "probability"
    held_out: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> "FitSettings":
        if (self.path is None) == (self.fit is None):
            raise ValueError("needs either `path` (a fitted reward) or `fit` (rows to fit on)")
        own = [name for name in type(self).model_fields if name in self.model_fields_set - {"path", "fit"}]
        if self.path is not None and own:
            raise ValueError(f"{', '.join(own)} cannot be set beside path: the fitted reward has its own")
        return self

    def of_fit(self) -> dict[str, Any]:
        """All settings except where the rows come from."""
        return self.model_dump(exclude={"path", "fit"})


class RowsReward(ABC):
    """A `FittedReward` (leftover.rewards.base) that is fitted on labels, scores or preferences."""

    kind: ClassVar[str]
    Settings: ClassVar[type[FitSettings]]
    settings: FitSettings

    def __init__(self, **settings: Any):
        self.settings = self.Settings(**settings)
        self.path, fit, self.target = self.settings.path, self.settings.fit, ""  # a target: it can score
        self.data = None if fit in (None, "rows") else data_section(fit)
        self.reads_rows = fit == "rows"

    def identity(self) -> dict[str, Any]:
        if self.path is not None:
            self._describe(Path(self.path))
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file() and file.name != LOCK)
            return {"type": self.kind, "files": digest([[file.name, file_hash(file)] for file in files])}
        rows = "rows" if self.data is None else data_identity(self.data)
        return {"type": self.kind, "fit": rows, "settings": self.settings.of_fit()}

    def check(self) -> None:
        """Raises UserError if the rows that it is to be fitted on, or what was fitted before, are not there."""
        if self.path is not None:
            self._describe(Path(self.path))
        elif self.data is not None:
            with located(f"{self.kind} reward"), of_fit():
                check_files(self.data)

    def fit(self, folder: Path, rows: "Dataset | None" = None) -> dict[str, Any]:
        """Fit, and write the scorer into `folder`; returns counts and held-out quality (see `held_out_facts`).

        With a `path` it was fitted before: nothing is written.
        """
        if self.path is not None:
            return self._describe(Path(self.path)).get("facts", {})
        with located(f"{self.kind} reward"):
            if self.data is not None:
                examples, counts = read_examples(self.data, folder / "rejected_rows.jsonl", self.settings.target)
            elif rows is not None:
                examples, counts = run_examples(rows, self.settings.target)
            else:
                raise UserError("fit: rows means the rows of a run: use it in a recipe")
            held_out = hold_out(examples, self.settings.held_out, self.settings.seed)
            taught, kept = examples.take(~held_out), examples.take(held_out)
            facts: dict[str, Any] = {"target": examples.target, "rows": len(examples)} | counts
            facts |= {"families": len(set(examples.families)), "rows_fitted": len(taught)}
            facts |= self.learn(folder, taught)
        self.target = examples.target
        self.restore(folder)
        facts |= held_out_facts(np.array(self(kept.prompts, kept.completions)), kept)
        description = {"type": self.kind, "target": self.target, "settings": self.settings.of_fit(), "facts": facts}
        write_json(folder / _DESCRIPTION, description)
        return facts

    def load(self, folder: Path) -> None:
        """Read what `fit` wrote into `folder`, or into `path` if that is set."""
        folder = folder if self.path is None else Path(self.path)
        Manifest(folder).check("reward", self._again(folder))  # that of `leftover fit-reward`
        described = self._describe(folder)
        self.target, self.settings = described["target"], self.Settings.model_construct(**described["settings"])
        self.restore(folder)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        if not self.target:
            if self.path is None:
                raise not_fitted(f"{self.kind} reward")
            self.load(Path(self.path))
        return self.score(prompts, completions) if completions else []

    @property
    def gives_probability(self) -> bool:
        return self.target == "label" and self.settings.output == "probability"

    @abstractmethod
    def learn(self, folder: Path, examples: Examples) -> dict[str, Any]:
        """Fit on these rows (without the held-out ones) and write all that `restore` reads; returns facts."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Read what `learn` wrote."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]: ...

    def _again(self, folder: Path) -> str:
        """How a damaged one is made anew."""
        if self.path is None:
            return "run the recipe again, which sets it aside and computes that part anew"
        return f"fit it again (`leftover fit-reward ROWS --output {folder}`), which sets it aside"

    def _describe(self, folder: Path) -> dict[str, Any]:
        try:
            described = read_json(folder / _DESCRIPTION)
        except UserError as error:
            raise UserError(f"{error}: {self._again(folder)}") from error
        except OSError as error:
            remedy = f"fit one with `leftover fit-reward ROWS --output {folder}`{looked_for(folder)}"
            raise UserError(f"no fitted reward at '{folder}' (it has no {_DESCRIPTION}): {remedy}") from error
        kind = described.get("type") if isinstance(described, dict) else None
        if isinstance(kind, str) and kind != self.kind:
            raise UserError(f"'{folder}' holds a reward of type {kind}, not {self.kind}: set the type")
        if kind is None or not all(isinstance(described.get(n), t) for n, t in _KEYS.items()):
            raise UserError(
                f"{folder / _DESCRIPTION} is damaged (it describes no fitted reward): {self._again(folder)}"
            )
        return described
