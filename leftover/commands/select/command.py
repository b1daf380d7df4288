"""The options of `leftover select`."""

import click

from leftover.monitoring.terminal import set_up_logging

FORMATS = ("prompt-completion", "messages", "pairs", "kto", "groups")
ROWS = ("leftover", "best", "all")

_EPILOG = (
    "Columns are those of TRL. prompt-completion: prompt, completion, weight; messages: messages, weight; pairs: "
    "prompt, chosen, rejected, margin; kto: prompt, completion, label; groups: prompt, completions, rewards, "
    "advantages. A weight is the advantage of a leftover row, its score less its value, and 1 with --top and --rows. "
    "Texts are as a run trains on them: those of a recipe have its templates filled, so that a completion may begin "
    "with the space that parts it from its prompt. Messages are without them."
)


@click.command(short_help="The rows worth training on, for any trainer.", epilog=_EPILOG)
@click.argument("table")
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    metavar="ROWS.jsonl|ROWS.parquet|FOLDER",
    help="File to write; a name without an ending: a folder for datasets.load_from_disk.",
)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default=FORMATS[0], help="Columns for which kind of trainer."
)
@click.option("--rows", type=click.Choice(ROWS), help="Default: the leftover, rows above their value.")
@click.option(
    "--top",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="PERCENT",
    help="Take this many of the scored rows, by reward.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--reward", type=click.Path(), help="Score the rows of a file: a YAML list as under reward.functions.")
def select(
    table: str,
    output: str,
    kind: str,
    rows: str | None,
    top: float | None,
    overrides: tuple[str, ...],
    reward: str | None,
) -> None:
    """Write the rows that are worth training on, in the columns of other trainers.

    TABLE is a data file in any format of data.path, whose value is fitted as by `leftover inspect`, a recipe, or the
    folder of a run, whose own value it is. Of pairs the chosen completion is a selected one, and the rejected one the
    worst of all rows of its prompt; for kto the selected rows are the desirable ones and all others undesirable.
    """
    from leftover.commands.select.run import select

    set_up_logging()
    select(table, output, format=kind, rows=rows, top=top, overrides=overrides, reward=reward).show()
