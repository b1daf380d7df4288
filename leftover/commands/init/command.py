"""The options of `leftover init`."""

from typing import Any

import click

from leftover.monitoring.terminal import set_up_logging


@click.command(short_help="Write a recipe for a file of rows.")
@click.argument("rows", type=click.Path())
@click.option("--model", required=True, metavar="ID", help="The model to train: a folder or Hub id.")
@click.option("--output", default="recipe.yaml", type=click.Path(), help="Recipe to write; never over another file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a recipe key, such as data.columns.reward=label.",
)
@click.option("--reward", type=click.Path(), help="Score the rows: a YAML list as under reward.functions.")
@click.option("--yes", "assume", is_flag=True, help="Ask nothing: take the likeliest, and say so.")
def init(rows: str, model: str, output: str, **options: Any) -> None:
    """Look at ROWS, at this machine and at a model, and write a recipe for `leftover run`.

    ROWS is a data file. What its columns are for is told by their names and by what stands in them; where that leaves
    a choice, you are asked.
    """
    from leftover.commands.init.run import init as write

    set_up_logging()
    write(rows, model, output, **options)
