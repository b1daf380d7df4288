"""The whole method, top to bottom: a recipe in, a better language model and the proof of it out."""

import logging
from pathlib import Path
from typing import Any

from leftover import prepare as stage
from leftover.config import Recipe, load_recipe
from leftover.workspace import Run

log = logging.getLogger(__name__)


def run(recipe: Recipe | str | Path) -> dict[str, Any]:
    """Everything, in the order of the paper; what is finished already is reused. Returns the results."""
    this = open_run(recipe)
    prepare(this)
    train(this)
    evaluate(this)
    return report(this)


def open_run(recipe: Recipe | str | Path) -> Run:
    return Run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))


def prepare(this: Run) -> None:
    """Rows -> token ids, reference, rewards, log pi_ref(y|x), V(x) and A(x, y)."""
    stage.read(this)
    stage.split(this)
    stage.tokens(this)
    stage.score(this)
    stage.fit_reference(this)
    stage.reference_columns(this)
    if stage.needs_value(this):
        stage.value(this)


def train(this: Run) -> None:
    """Every policy with every seed, from the reference, on the rows its objective selects."""
    from leftover.training import available_blocks, effective, policy_settings, train_policy

    prepare(this)
    for name in this.recipe.policies:
        for seed in this.recipe.seeds:
            key = {
                "from": {block: this.table.digest(block) for block in ("tokens", "split", *available_blocks(this))},
                "settings": effective(policy_settings(this, name)),
                "lora": this.recipe.model.lora.model_dump() if this.recipe.model.lora else None,
                "rows": this.recipe.data.rows,
                "selection": this.recipe.evaluate.max_selection_prompts,
                "seed": seed,
            }
            artifact = f"policy {name}, seed {seed}"
            status = this.manifest.begin(artifact, key)
            if not status.finished:
                this.manifest.finish(artifact, **train_policy(this, name, seed, discard=status.discard))


def evaluate(this: Run) -> None:
    """The reference and every policy on held-out prompts."""
    from leftover.evaluate import evaluate_all

    train(this)
    evaluate_all(this)


def report(this: Run) -> dict[str, Any]:
    """results.json and report.md of the run folder."""
    from leftover.report import write_report

    return write_report(this)
