"""The options of `leftover judge`."""

from pathlib import Path
from typing import Any

import click

from leftover.errors import UserError
from leftover.monitoring.terminal import set_up_logging, tell_start

_EPILOG = "RUN/judge/verdicts.jsonl keeps every answer as it arrives: the same command continues and never pays twice."
_PROMPTS_OF_PAGE = 50


@click.command(short_help="Let a language model or people judge the answers.", epilog=_EPILOG)
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option(
    "--against",
    default="data",
    metavar="data|reference|RUN2",
    help="Compare with the data's own completions, the reference's, or those of a policy of another run or of RUN.",
)
@click.option("--policy", help="Name of the policy; default: the recipe's first.")
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    help="Training seed of the policy, may be repeated; default: the recipe's first.",
)
@click.option("--against-policy", help="Name of the policy in RUN2; default: its recipe's first.")
@click.option(
    "--against-seed", type=int, help="Training seed of that policy; default: the same seed, or its recipe's first."
)
@click.option("--decoding", type=click.Choice(["sampled", "greedy"]), help="Default: evaluate.primary.")
@click.option("--max-prompts", type=click.IntRange(1), help="Default: all evaluated prompts; with --human 50.")
@click.option(
    "--criteria",
    multiple=True,
    metavar="NAME|FILE",
    help="helpful, safe, or your own: a YAML of names and texts, or a text file. Default: helpful and safe.",
)
@click.option("--model", help="Name of the judge at the service.")
@click.option("--base-url", help="Address of any OpenAI-compatible service; default: OPENAI_BASE_URL, or OpenAI's own.")
@click.option(
    "--token-env", metavar="VARIABLE", help="Environment variable with the key; without --base-url OPENAI_API_KEY."
)
@click.option(
    "--request",
    "fields",
    multiple=True,
    metavar="KEY=VALUE",
    help="Field of the request, such as max_completion_tokens=500; null omits a field. Default: temperature=0.",
)
@click.option("--parallel", type=click.IntRange(1), default=8, help="Number of requests at once.")
@click.option("--requests-per-minute", type=click.FloatRange(0.01), help="Default: no limit.")
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=60.0, help="Seconds.")
@click.option("--retries", type=click.IntRange(0), default=5, help="How often a failed request is sent again.")
@click.option(
    "--prices",
    type=click.FloatRange(0),
    nargs=2,
    help="Prices per million tokens of questions and of answers, for the estimate.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be asked and the tokens it would take, and ask nothing."
)
@click.option("--human", type=click.Path(), metavar="PAGE.html", help="Write a page for people to rate.")
@click.option(
    "--import",
    "ratings",
    multiple=True,
    type=click.Path(dir_okay=False),
    metavar="RATINGS.json",
    help="Ratings exported by the page, one file per person. With --model, also compared with that judge's verdicts.",
)
def judge(
    run_folder: str,
    criteria: tuple[str, ...],
    prices: tuple[float, float] | None,
    dry_run: bool,
    human: str | None,
    ratings: tuple[str, ...],
    max_prompts: int | None,
    **options: Any,
) -> None:
    """Compare a policy's completions with others of the same prompts, judged by a language model or by people."""
    tell_start()
    from leftover.commands.judge import run, show
    from leftover.commands.judge.endpoint import read_settings
    from leftover.commands.judge.human import import_ratings, write_page
    from leftover.commands.judge.pairs import compare_sides
    from leftover.commands.judge.questions import load_criteria
    from leftover.commands.judge.summary import Prices
    from leftover.runs.finished import FinishedRun

    set_up_logging()
    settings = read_settings(options)
    if human and ratings:
        raise UserError("--human writes a page, --import reads its answers: give one of them")
    if not (human or ratings or settings):
        raise UserError("--model is missing: the name of the judge; or --human PAGE.html to have people rate")
    evaluated = FinishedRun(run_folder)
    if ratings:
        show.print_results(*import_ratings(evaluated.folder, [Path(name) for name in ratings], settings))
        return
    max_prompts = max_prompts or (_PROMPTS_OF_PAGE if human else None)
    comparison, chosen = compare_sides(evaluated, max_prompts=max_prompts, **options), load_criteria(criteria)
    if human:
        count = write_page(evaluated.folder, comparison, chosen, Path(human))
        click.echo(f"{human}: {count} questions. Open it in a browser, rate, export, and import the exported files:")
        click.echo(f"  leftover judge {run_folder} --import RATINGS.json")
        return
    assert settings is not None  # neither a page nor ratings
    asked = run.Judgement(evaluated.folder, comparison, chosen, settings, Prices(*prices) if prices else None)
    if dry_run:
        show.print_plan(asked)
        return
    results, path, failures = asked.ask()
    show.print_results(results, path)
    run.raise_for(failures)
