"""The options of `leftover compare`."""

from typing import Any

import click

from leftover.monitoring.terminal import set_up_logging, tell_start


@click.command(short_help="Several methods on the same rows, in one table.")
@click.argument("recipe", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--methods",
    metavar="NAMES",
    help="Names of methods or policies, paper, nll_top, samplers or all; default: the recipe's.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), help="Number of seeds; default: the recipe's, or 3 if it has only one."
)
@click.option(
    "--budget",
    type=click.Choice(["equal", "paper"]),
    default="equal",
    help="The same number of updates for all, or scaled by the share of rows that a method selects.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, help="How many runs train at once, each in its own process.")
@click.option(
    "--grid",
    multiple=True,
    metavar="none|declared|KEY=A,B",
    help="Settings to try for every method, chosen on the selection prompts; default: the recipe's compare.grid. With "
    "--frontier the strengths of every method; default: its own.",
)
@click.option(
    "--frontier",
    is_flag=True,
    help="Train every method at several strengths, with one seed by default, and draw reward and judges against KL.",
)
@click.option("--quick", is_flag=True, help="A first look: one checkpoint evaluation, 64 test prompts, sampled only.")
@click.option(
    "--dry-run", is_flag=True, help="Print methods, updates, trials and what does not apply, and run nothing."
)
def compare(
    recipe: str, overrides: tuple[str, ...], frontier: bool, quick: bool, dry_run: bool, **options: Any
) -> None:
    """Every method on the same rows under the same budget, in one table. Continues where it stopped."""
    tell_start()
    from leftover.recipe.files import load_recipe, quick_overrides

    loaded = load_recipe(recipe, [*(quick_overrides(overrides) if quick else ()), *overrides])
    if quick:
        from leftover.runs.claim import check_quick

        check_quick(loaded)
    from leftover.commands.compare.run import Options, compare  # after a fault of the recipe is told: it takes seconds

    asked = Options(**options)
    set_up_logging()
    if dry_run:
        from leftover.commands.compare.dry_run import dry_run as print_estimate

        print_estimate(loaded, asked, frontier)
        return
    from leftover.commands.compare.frontier import frontier as draw_frontier
    from leftover.commands.compare.jobs import raise_for
    from leftover.commands.compare.tables import print_comparison, print_frontier

    results, failed = (draw_frontier if frontier else compare)(loaded, asked)
    (print_frontier if frontier else print_comparison)(results, loaded.output_dir)
    raise_for(failed, results["num_runs"])
