"""The whole method, top to bottom: a recipe in, a better language model and the proof of it out."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leftover.prepare import baseline_constants as extra_columns
from leftover.prepare import checks as requirements
from leftover.prepare import constants as row_constants
from leftover.prepare import rows as stage
from leftover.prepare import scores as scoring
from leftover.publish import hub
from leftover.recipe.files import load_recipe
from leftover.recipe.sections import Recipe
from leftover.runs.names import policy_artifact
from leftover.runs.run import Run
from leftover.store.manifest import Key

log = logging.getLogger(__name__)


def run(recipe: Recipe | str | Path, until: str = "report") -> dict[str, Any] | None:
    """The stages in the order of the paper, up to and including `until`; what is finished already is reused.

    Returns the results (the content of `results.json`), or None where it stops before the report.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if until == "report":
        hub.check_login([target.hub_id for target in hub.targets(recipe)])
    this = Run(recipe)
    for name, do in STAGES.items():
        result = do(this)
        if name == until:
            return result
    raise ValueError(f"until: {until!r} is not one of {', '.join(STAGES)}")


def prepare(this: Run, only: str | None = None) -> None:
    """Rows -> token ids, rewards, reference, log pi_ref(y|x), V(x), A(x, y) and extras; `only`: up to that step."""
    requirements.check_recipe(this)
    requirements.check_reporting(this.recipe)
    for name, step in STEPS.items():
        step(this)
        if name == only:
            return


def tokens(this: Run) -> None:
    """Token ids, and whether prompts have completions to compare where a policy compares them."""
    stage.tokens(this)
    requirements.check_prompts(this)


def value(this: Run) -> None:
    """V(x) and A(x, y), where a policy of the recipe uses them."""
    if requirements.needs_value(this):
        row_constants.value(this)
    elif this.table.has("value"):  # of an earlier recipe of this folder
        this.note(value=None, leftover=None)


def reference(this: Run) -> None:
    """The frozen reference, fitted where the recipe asks for one."""
    from leftover.training.run import fit_reference

    fit_reference(this)


# The steps of `prepare`, each a block of the table or a model.
STEPS: dict[str, Callable[[Run], None]] = {
    "rows": stage.read,
    "split": stage.split,
    "tokens": tokens,
    "score": scoring.score,
    "reference": reference,
    "logprobs": row_constants.reference_columns,
    "value": value,
    "extras": extra_columns.extra_columns,
}


def train(this: Run) -> None:
    """Every policy with every seed, from the reference, on the rows its objective selects."""
    from leftover.training.run import training_args

    for name in this.recipe.policies:  # faulty settings are refused before an earlier policy makes way
        training_args(this, name, this.recipe.seeds[0])
    for name in this.recipe.policies:
        for seed in this.recipe.seeds:
            train_one(this, name, seed)


def train_one(this: Run, name: str, seed: int) -> None:
    """One policy with one seed; nothing where it is trained already."""
    from leftover.runs.names import policy_folder
    from leftover.training.run import discard, train_policy

    artifact, folder = policy_artifact(name, seed), policy_folder(this, name, seed)
    if not this.manifest.begin(artifact, policy_key(this, name, seed), partial(discard, folder)).finished:
        this.manifest.finish(artifact, **train_policy(this, name, seed))


def policy_key(this: Run, name: str, seed: int) -> Key:
    """What a trained policy depends on: its rows, its settings and its seed, and not its name."""
    from leftover.prepare.readers import available_blocks
    from leftover.training.run import effective, policy_settings

    return {
        "from": {block: this.table.digest(block) for block in ("tokens", "split", *available_blocks(this, name))},
        "settings": effective(policy_settings(this, name)),
        "lora": this.recipe.model.lora.model_dump() if this.recipe.model.lora else None,
        "rows": this.recipe.data.train_on,
        "selection": this.recipe.evaluate.max_selection_prompts,
        "seed": seed,
    }


def evaluate(this: Run) -> None:
    """The reference and every policy on held-out prompts."""
    from leftover.evaluation.run import evaluate_all

    evaluate_all(this)


def report(this: Run) -> dict[str, Any]:
    """results.json, report.md and report.html of the run folder, and cards; then policies go to the Hub."""
    from leftover.publish.card import write_cards
    from leftover.report import write_report

    results = write_report(this)
    write_cards(this, results)
    hub.push_run(this.folder, this.recipe, lambda name, seed: this.manifest.facts(policy_artifact(name, seed)))
    return results


STAGES: dict[str, Callable[[Run], Any]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "report": report,
}
