"""`--dry-run` of rounds: the tables of the first round, and what every further one adds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from leftover.commands.dry_run.checks import check_here
from leftover.commands.dry_run.estimate import Estimate, estimate_run
from leftover.commands.dry_run.pace import HERE, device_name
from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.show import operations_text, plain_table, print_tables, show
from leftover.commands.dry_run.sources import offline
from leftover.commands.dry_run.work import Sizes
from leftover.monitoring.terminal import console
from leftover.recipe.sections import Recipe
from leftover.rounds.recipes import BEST_OF_N, check, first_round, later_round, rounds_of
from leftover.runs.run import Run
from leftover.trust import no_code


@no_code()
def dry_run(recipe: Recipe, device: str | None = None) -> None:
    """Print the estimate of all rounds, of the first with its time on a device (by default this machine).

    Raises UserError if the run would refuse the recipe.
    """
    device = HERE if device is None else device_name(device)
    check(recipe)
    terminal = console(width=140)
    with offline():
        start = first_round(recipe)
        rows = read(start)
        prompts = rows.prompts("train") if isinstance(rows, Rows) else recipe.data.max_rows
        first = estimate_run(first_round(recipe, prompts) if prompts else start, rows=rows, device=device)
        show(first, terminal)
        lines = [("round 1", "", _count(rows), _together(first)), *_later_rounds(recipe, first, prompts)]
    known = [operations for *_, operations in lines]
    lines.append(("together", "", "", None if None in known else sum(filter(None, known))))
    cells = [(*texts, operations_text(operations, True)) for *texts, operations in lines]
    columns = ("", "completions sampled before", "training rows", "floating-point operations")
    print_tables(terminal, [plain_table("Rounds", *columns, rows=cells)])
    check_here(start)  # last, since one may ask what a run costs before its files are here


def _later_rounds(recipe: Recipe, first: Estimate, prompts: int | None) -> Iterator[tuple[str, str, str, float | None]]:
    """Name, completions sampled before it, training rows, and operations of the sampling and of the round."""
    rounds, main, start, rows = rounds_of(recipe), recipe.main_policy, Run(first.recipe), first.rows
    copies, keeps = rounds.completions_per_prompt, rounds.keep == "all"
    sampled = None if prompts is None else copies * prompts
    for policy in (main, *([BEST_OF_N] if BEST_OF_N in rounds.controls else [])):
        before = start
        for number in range(2, rounds.number + 1):
            made = later_round(recipe, start, before, policy, number, [Path("samples.jsonl")] * (number - 1))
            before = Run(made)
            # What does not change the work is left as in the first round, whose rows and models are here.
            made = made.model_copy(update={"data": recipe.data, "reward": recipe.reward, "model": recipe.model})
            times = copies * (number - 1) if keeps else copies
            grown = _grown(rows, times, keeps, recipe.max_new_tokens) if isinstance(rows, Rows) else rows
            estimate = estimate_run(made, rows=grown, with_memory=False)
            operations = _together(estimate)
            if sampled is not None and operations is not None and estimate.shape is not None:
                # Generated, and read once more for the sampler's log-probabilities.
                operations += 2 * Sizes(recipe, rows).generated(sampled).operations(estimate.shape)
            name = f"round {number}" + ("" if policy == main else f", {policy}")
            yield name, "unknown" if sampled is None else f"{sampled:,}", _count(grown), operations


def _together(estimate: Estimate) -> float | None:
    operations = [line.operations for line in estimate.work]
    return None if None in operations else sum(filter(None, operations))


def _count(rows: Rows | str) -> str:
    return f"{int(rows.where('train').sum()):,}" if isinstance(rows, Rows) else "unknown"


def _grown(rows: Rows, copies: int, keeps: bool, limit: int) -> Rows:
    """The rows with `copies` completions of every training prompt, as long as they may be; `keeps`: beside its own."""
    trains = rows.where("train")
    _, first = np.unique(np.where(trains, rows.group, -1), return_index=True)
    new = np.repeat(first[trains[first]], copies)
    taken = np.concatenate([np.flatnonzero(~trains | keeps), new])
    lengths = rows.lengths
    if lengths is not None and lengths.exact:
        completions, kept = lengths.completions[taken], lengths.kept[taken]
        completions[len(taken) - len(new) :], kept[len(taken) - len(new) :] = limit, True
        lengths = replace(
            lengths, prompts=lengths.prompts[taken], completions=completions, kept=kept, num_rows=len(taken)
        )
    else:
        lengths = None  # a sample of the rows is none of these
    arrays = {name: getattr(rows, name)[taken] for name in ("group", "family", "split", "chosen", "recorded")}
    return replace(rows, **arrays, lengths=lengths)
