"""The options of `leftover generate`."""

from typing import Any

import click

from leftover.monitoring.terminal import set_up_logging, tell_start


@click.command(short_help="Let a model answer prompts, and score the answers.")
@click.argument("model")
@click.argument("prompts", required=False)
@click.option("--output", required=True, type=click.Path(), help="JSON lines file to write or continue.")
@click.option(
    "--recipe",
    type=click.Path(),
    help="Take tokenizer, limits, rewards and, without PROMPTS, the prompts from this recipe.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a recipe key, such as data.columns.prompt=q."
)
@click.option("--reward", type=click.Path(), help="YAML list as under reward.functions; default: the recipe's.")
@click.option(
    "--n",
    "--completions",
    "n",
    type=click.IntRange(1, 100_000),
    help="Completions per prompt; default: 8, or 1 with --greedy.",
)
@click.option("--temperature", default=1.0, type=click.FloatRange(0, min_open=True), help="Of sampled completions.")
@click.option("--greedy", is_flag=True, help="Take the most likely token at every step.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Default: data.max_completion_tokens.")
@click.option("--max-prompts", type=click.IntRange(1), help="Use this many prompts, drawn by the seed; default: all.")
@click.option(
    "--unfinished",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    help="What to do with completions that reach --max-new-tokens without an end.",
)
@click.option(
    "--splits/--no-splits", default=True, help="Write the split of a recipe's own prompts, so that they keep it."
)
@click.option("--batch-size", type=click.IntRange(1), help="Default: evaluate.batch_size.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of the sampling.")
@click.option("--policy", help="If MODEL is a run: the name of its policy; default: the recipe's first.")
@click.option("--policy-seed", type=int, help="Training seed of that policy; default: the recipe's first.")
@click.option("--overwrite", is_flag=True, help="Start over if the output holds rows from other settings.")
def generate(model: str, prompts: str | None, **options: Any) -> None:
    """Sample completions of PROMPTS from MODEL, score them, and write rows to train on.

    MODEL is a folder, a Hub id, an adapter or the folder of a run; PROMPTS is a file in any format of data.path, of
    which only the prompts are read.
    """
    tell_start()
    from leftover.commands.generate.run import generate_rows

    set_up_logging()
    generate_rows(model, prompts, **options)
