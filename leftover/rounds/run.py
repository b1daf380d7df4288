"""`leftover run`: once, or in rounds, each a run of its own that goes on from the policy of the one before."""

import logging
from pathlib import Path
from typing import Any

from leftover import pipeline
from leftover.evaluation.gather import gather as results_of
from leftover.monitoring.ranks import is_main_process, join
from leftover.publish import hub
from leftover.publish.card import write_cards
from leftover.recipe.files import load_recipe
from leftover.recipe.sections import Recipe
from leftover.report.write import write_report
from leftover.rounds.recipes import BEST_OF_N, check, first_round, later_round, rounds_of
from leftover.rounds.results import gather
from leftover.rounds.samples import sample, training_prompts, write_first_rows
from leftover.runs.claim import claim
from leftover.runs.finished import FinishedRun
from leftover.runs.run import Run
from leftover.store.sealed import write_sealed

log = logging.getLogger(__name__)


def run(recipe: Recipe | str | Path, until: str = "report") -> dict[str, Any] | None:
    """`leftover.pipeline.run`; of a recipe with `rounds` all of them, and the content of `rounds.json`."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.rounds is None or until != "report":
        return pipeline.run(recipe, until)
    check(recipe)
    hub.check_login([target.hub_id for target in hub.targets(recipe)])
    join()
    whole = Run(recipe)
    try:
        claim(whole)
        return _run_rounds(whole)
    finally:
        whole.close()


def _run_rounds(whole: Run) -> dict[str, Any] | None:
    recipe, number = whole.recipe, rounds_of(whole.recipe).number
    written = whole.folder / "rounds.json"
    if is_main_process():
        written.unlink(missing_ok=True)  # it may be about other settings
    pipeline.run(first_round(recipe), "prepare")
    prompts = training_prompts(Run(first_round(recipe)))
    first = _done(first_round(recipe, len(prompts)), 1, number)
    write_first_rows(first)
    chains: dict[str, list[Run]] = {policy: [first] for policy in first.recipe.policies}
    for policy in (recipe.main_policy, *([BEST_OF_N] if BEST_OF_N in rounds_of(recipe).controls else [])):
        samples = list[Path]()
        for following in range(2, number + 1):
            before = chains[policy][-1]
            samples.append(sample(recipe, before, policy, following - 1, prompts))
            made = later_round(recipe, first, before, policy, following, samples)
            # The last one's report is about all rounds.
            until = "evaluate" if (policy, following) == (recipe.main_policy, number) else "report"
            chains[policy].append(_done(made, following, number, until))
    if not is_main_process():
        return None
    results = gather(recipe, chains)
    write_sealed(written, results, copied=False)
    _publish(whole, chains[recipe.main_policy][-1])
    return results


def _done(recipe: Recipe, number: int, of: int, until: str = "report") -> Run:
    """One round, up to and including `until`; what is finished is reused."""
    log.info("round %d of %d: %s", number, of, recipe.output_dir)
    pipeline.run(recipe, until)
    return Run(recipe)


def _publish(whole: Run, last: Run) -> None:
    """The last round's report and cards, with all rounds; into the whole run's folder too, and to the Hub."""
    finished, results = FinishedRun(last.folder, last.recipe), results_of(last)
    write_report(finished, results, last.folder, whole.folder)
    write_cards(finished, results)
    for target in hub.targets(whole.recipe):
        hub.push_policy(last.folder, target.hub_id, policy=target.policy, seed=target.seed, private=target.private)
