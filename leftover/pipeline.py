"""The whole method, top to bottom: a recipe in, a better language model and the proof of it out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftover.monitoring.ranks import is_main_process
from leftover.monitoring.stages import Stages
from leftover.prepare import checks, constants, rows, scores
from leftover.prepare.extras import compute_extras
from leftover.publish import hub
from leftover.recipe.files import load_recipe
from leftover.recipe.sections import Recipe
from leftover.runs.causal import check_models
from leftover.runs.claim import open_run
from leftover.runs.run import Run


def run(
    recipe: Recipe | str | Path, until: str = "report", *, tell_time: Callable[[Run, str], None] | None = None
) -> dict[str, Any] | None:
    """The stages in the order of the paper, up to and including `until`; finished ones are reused.

    tell_time: called with the run and `until` once the rows are tokens, to say how long the rest takes.

    Returns the results (the content of `results.json`), or None if it stops before the report.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if until == "report":
        hub.check_login([target.hub_id for target in hub.targets(recipe)])
    if until not in STAGES:
        raise ValueError(f"until: {until!r} is not one of {', '.join(STAGES)}")
    opened, stages = open_run(recipe), Stages(titles(until))

    def begins(name: str) -> None:
        if name == "score" and tell_time is not None:
            stages.end()
            tell_time(opened, until)
        stages.begin(name)

    result = None
    try:
        prepare(opened, begins=begins)
        for name in list(STAGES)[1 : list(STAGES).index(until) + 1]:
            begins(name)
            result = STAGES[name](opened)
        stages.end()
    finally:
        opened.close()
    return result


def titles(until: str, only: str | None = None) -> dict[str, str]:
    """What is told of a run up to a stage, or of its preparation up to the step `only`."""
    names = [*STEPS, *(name for name in STAGES if name != "prepare")]
    last = until if until != "prepare" else only or list(STEPS)[-1]
    return {name: TITLES[name] for name in names[: names.index(last) + 1] if name in TITLES}


def prepare(run: Run, only: str | None = None, *, begins: Callable[[str], None] = lambda step: None) -> None:
    """Rows -> token ids, rewards, reference, log pi_ref(y|x), V(x), A(x, y) and extras; `only`: up to that step.

    begins: called with the name of every step before it.
    """
    check_settings(run)  # before anything is computed for them
    checks.check_recipe(run.recipe, run.reward)
    checks.check_reporting(run.recipe)
    check_models(run)
    for name, step in STEPS.items():
        begins(name)
        step(run)
        if name == only:
            return


def check_settings(run: Run) -> None:
    """Refuse what transformers refuses of the settings of a training."""
    from leftover.training.settings import reference_args, training_args, try_out

    if run.recipe.reference.source == "fit":
        try_out(reference_args(run.recipe, run.folder))
    for name in run.recipe.policies:
        try_out(training_args(run, name, run.recipe.seeds[0]))


def tokens(run: Run) -> None:
    """Token ids. Refuses a policy that compares completions if no prompt has two of them."""
    rows.tokens(run)
    checks.check_prompts(run.recipe, run.table)


def reference(run: Run) -> None:
    """The frozen reference, fitted if the recipe asks for one."""
    from leftover.training.run import fit_reference

    fit_reference(run)


# The steps of `prepare`, each a block of the table or a model.
STEPS: dict[str, Callable[[Run], None]] = {
    "rows": rows.read,
    "split": rows.split,
    "tokens": tokens,
    "score": scores.score,
    "reference": reference,
    "logprobs": constants.reference_columns,
    "value": constants.value,
    "extras": compute_extras,
}


def train(run: Run) -> None:
    """Every policy with every seed, from the reference, on the rows its objective selects."""
    from leftover.training.run import train_all

    train_all(run)


def evaluate(run: Run) -> None:
    """The reference and every policy on held-out prompts."""
    from leftover.evaluation.run import evaluate_all

    evaluate_all(run)


def report(run: Run) -> dict[str, Any] | None:
    """results.json, report.md and report.html of the run folder, and cards; then policies go to the Hub.

    All by the first of several processes; the others get None.
    """
    if not is_main_process():
        return None
    from leftover.evaluation.gather import gather
    from leftover.publish.card import write_cards
    from leftover.report.write import write_report
    from leftover.runs.finished import FinishedRun

    results, finished = gather(run), FinishedRun(run.folder, run.recipe)
    write_report(finished, results)
    write_cards(finished, results)
    hub.push_run(finished)
    return results


STAGES: dict[str, Callable[[Run], Any]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "report": report,
}

# A step or a stage -> what the terminal calls it, and those after it that have no title of their own.
TITLES = {
    "rows": "Read the rows",
    "score": "Score the answers",
    "reference": "Fit the reference, from which policies start",
    "value": "Estimate how well the reference answers each prompt",
    "train": "Train the policies",
    "evaluate": "Evaluate on held-out prompts",
    "report": "Write the report",
}
