"""What rewards that are fitted on rows share: where the rows come from, held-out quality, a folder to load from."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leftover.errors import UserError, nearest
from leftover.rewards.examples import (
    TARGETS,
    Examples,
    data_identity,
    data_section,
    hold_out,
    read_examples,
    run_examples,
)
from leftover.rewards.features import prompt_text
from leftover.rewards.quality import held_out_facts
from leftover.store.manifest import digest, file_hash, write_json

_DESCRIPTION = "reward.json"  # written last: a folder that has it is whole

COMMON: dict[str, Any] = {"target": "auto", "output": "probability", "held_out": 0.2, "seed": 0}
_OUTPUTS = ("probability", "logit")


class RowsReward(ABC):
    """A `FittedReward` (leftover.rewards.base) that is fitted on labels, scores or preferences.

    Args:
        path: the folder of one that was fitted before, which brings its own settings; or
        fit: rows to fit on: `rows` for the run's own training rows with their recorded scores, or the keys of a data
            section. Its `part` keeps the families of a judge and of a training reward apart.
        target: auto, label (0 or 1), score (any number) or pairs (a chosen and a rejected row side by side: Bradley
            and Terry's model). auto: pairs for preferences without scores of their own, label where all are 0 or 1.
        output: of a label's scorer: probability or logit. Others give a number of the scores' own scale (score), or
            one whose difference is the log-odds of a preference (pairs).
        held_out: share of families that neither fit nor choose a setting; the facts of `fit` are measured on them.
            Rows whose own split is not `train` are held out in their place, where there are some.
        seed: of the choice of those families, and of the fit.
    """

    type: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]  # settings of the type, beside COMMON
    choices: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, path: str | None = None, fit: Any = None, **settings: Any):
        if (path is None) == (fit is None):
            raise UserError(f"a {self.type} reward needs `path` (of one fitted before) or `fit` (rows), and not both")
        valid = COMMON | self.defaults
        for name in settings:
            if name not in valid:
                raise UserError(
                    f"{self.type} reward: unknown setting '{name}'"
                    f"{nearest(name, list(valid)) or '; its settings: path, fit, ' + ', '.join(valid)}"
                )
        if path is not None and settings:
            raise UserError(f"{self.type} reward: {', '.join(settings)} cannot be set beside path: the fit has its own")
        self.path, self.settings, self.target = path, valid | settings, ""
        self.data = None if fit is None or fit == "rows" else data_section(fit)
        self.reads_rows = fit == "rows"
        self._loaded = False
        self.check_settings()

    def check_settings(self) -> None:
        for name, valid in ({"target": TARGETS, "output": _OUTPUTS} | self.choices).items():
            if self.settings[name] not in valid:
                raise UserError(f"{self.type} reward: {name} is {self.settings[name]!r}, not one of {', '.join(valid)}")
        share, seed = self.settings["held_out"], self.settings["seed"]
        if not isinstance(share, (int, float)) or not 0 < share < 1:
            raise UserError(f"{self.type} reward: held_out is {share!r}, not a share of families between 0 and 1")
        if not isinstance(seed, int):
            raise UserError(f"{self.type} reward: seed is {seed!r}, not a whole number")

    def identity(self) -> dict[str, Any]:
        if self.path is not None:
            self._describe(Path(self.path))
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file())
            return {"type": self.type, "files": digest([[file.name, file_hash(file)] for file in files])}
        rows = "rows" if self.data is None else data_identity(self.data)
        return {"type": self.type, "fit": rows, "settings": self.settings}

    def fit(self, folder: Path, rows: Any = None) -> dict[str, Any]:
        """Fit, and write the scorer into `folder`; returns counts and held-out quality (see `held_out_facts`).

        One that has a `path` was fitted before: its facts are returned, and nothing is written.
        """
        if self.path is not None:
            return self._describe(Path(self.path))["facts"]
        try:
            examples, counts = self._examples(folder, rows)
            held_out = hold_out(examples, self.settings["held_out"], self.settings["seed"])
            self.target, taught = examples.target, examples.take(~held_out)
            facts: dict[str, Any] = {"target": self.target, "rows": len(examples)} | counts
            facts |= {"families": len(set(examples.families)), "rows_fitted": len(taught)}
            facts |= self.learn(folder, taught)
        except UserError as error:
            raise UserError(f"{self.type} reward: {error}") from error
        self.restore(folder)
        self._loaded = True
        facts |= self._quality(examples.take(held_out))
        description = {"type": self.type, "target": self.target, "settings": self.settings, "facts": facts}
        write_json(folder / _DESCRIPTION, description)
        return facts

    def load(self, folder: Path) -> None:
        """Take up what `fit` wrote into `folder`; one that has a `path` takes that."""
        folder = folder if self.path is None else Path(self.path)
        described = self._describe(folder)
        self.target, self.settings = described["target"], described["settings"]
        self.restore(folder)
        self._loaded = True

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        if not self._loaded:
            if self.path is None:
                raise UserError(f"the {self.type} reward is not fitted yet: use it in a recipe, or call fit")
            self.load(Path(self.path))
        return self.score(prompts, completions) if completions else []

    @abstractmethod
    def learn(self, folder: Path, examples: Examples) -> dict[str, Any]:
        """Fit on these rows (held-out ones are not among them) and write all that `restore` reads; returns facts."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Read what `learn` wrote."""

    @abstractmethod
    def score(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]: ...

    def _examples(self, folder: Path, rows: Any) -> tuple[Examples, dict[str, int]]:
        if self.data is not None:
            return read_examples(self.data, folder / "rejected_rows.jsonl", self.settings["target"])
        if rows is None:
            raise UserError("fit: rows means the rows of a run: use it in a recipe")
        return run_examples(rows, self.settings["target"])

    def _quality(self, held_out: Examples) -> dict[str, Any]:
        scores = np.array(self(held_out.prompts, held_out.completions))
        prompts = [prompt_text(prompt) for prompt in held_out.prompts]
        families = held_out.families.tolist()
        return held_out_facts(self.target, scores, held_out.scores, families, prompts, held_out.pairs)

    def _describe(self, folder: Path) -> dict[str, Any]:
        try:
            described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"no fitted reward at '{folder}' (it has no {_DESCRIPTION}): fit one with `leftover fit-reward ROWS "
                f"--output {folder}`"
            ) from error
        if described["type"] != self.type:
            raise UserError(f"'{folder}' holds a reward of type {described['type']}, not {self.type}: set the type")
        return described


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
