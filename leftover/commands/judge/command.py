"""The options of `leftover judge`."""

from pathlib import Path
from typing import Any

import click

_GIVEN = "RUN/judge/verdicts.jsonl keeps every answer as it arrives: the same command goes on, and pays nothing twice."


@click.command("judge", epilog=_GIVEN)
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option(
    "--against",
    default="data",
    show_default=True,
    metavar="data|reference|RUN2",
    help="The data's own completions, the reference's, or those of a policy of another run, or of this one.",
)
@click.option("--policy", help="Which policy; default: the recipe's first.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Of which training seeds; default: the recipe's first.")
@click.option("--against-policy", help="Of RUN2; default: its recipe's first.")
@click.option("--against-seed", type=int, help="Of RUN2; default: the same seed, or its recipe's first.")
@click.option("--decoding", type=click.Choice(["sampled", "greedy"]), help="Default: evaluate.primary.")
@click.option("--max-prompts", type=click.IntRange(1), help="Default: all that were evaluated; with --human 50.")
@click.option(
    "--criteria",
    multiple=True,
    metavar="NAME|FILE",
    help="helpful, safe, or your own: a YAML of names and texts, or a text file. Default: helpful and safe.",
)
@click.option("--model", help="The judge, by the name that the service knows it by.")
@click.option("--base-url", help="Of any OpenAI-compatible service; default: OPENAI_BASE_URL, or OpenAI's own.")
@click.option(
    "--token-env", metavar="VARIABLE", help="Which holds the key. Default, without --base-url: OPENAI_API_KEY."
)
@click.option(
    "--request",
    "fields",
    multiple=True,
    metavar="KEY=VALUE",
    help="A field of the request, such as max_completion_tokens=500; null leaves one out. Default: temperature=0.",
)
@click.option("--parallel", type=click.IntRange(1), default=8, show_default=True, help="Requests at once.")
@click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True), help="At most; default: no limit.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Seconds.")
@click.option("--retries", type=click.IntRange(0), default=5, show_default=True, help="Of a request that fails.")
@click.option(
    "--prices",
    type=click.FloatRange(0),
    nargs=2,
    help="Of a million tokens of questions, and of answers; any currency.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be asked, and what it would take; no network.")
@click.option("--human", type=click.Path(dir_okay=False), metavar="PAGE.html", help="Write a page for people to rate.")
@click.option(
    "--import",
    "ratings",
    multiple=True,
    type=click.Path(dir_okay=False),
    metavar="RATINGS.json",
    help="Exported by the page, one file a person. With --model, also compared with that judge's verdicts.",
)
def judge(run_folder: str, **options: Any) -> None:
    """Completions of a policy against others of the same prompts, judged by a language model or by people."""
    from leftover.errors import UserError
    from leftover.monitoring.terminal import set_up_logging

    set_up_logging()
    settings = _settings(options)
    if options["human"] and options["ratings"]:
        raise UserError("--human writes a page, --import reads its answers: give one of them")
    if options["ratings"]:
        _import(Path(run_folder), options, settings)
    elif options["human"]:
        _write_page(run_folder, options)
    elif settings is None:
        raise UserError("--model is missing: the name of the judge; or --human PAGE.html to have people rate")
    else:
        _ask(run_folder, options, settings)


def _ask(run_folder: str, options: dict[str, Any], settings: Any) -> None:
    from leftover.commands.judge import run, show
    from leftover.commands.judge.summary import Prices

    comparison, criteria = _comparison(run_folder, options), _criteria(options)
    prices = Prices(*options["prices"]) if options["prices"] else None
    if options["dry_run"]:
        show.print_plan(run.plan(Path(run_folder), comparison, criteria, settings, prices))
        return
    results, path, failures = run.judge(Path(run_folder), comparison, criteria, settings, prices)
    show.print_results(results, path)
    run.raise_for(failures)


def _write_page(run_folder: str, options: dict[str, Any]) -> None:
    from leftover.commands.judge.human import write_page

    options["max_prompts"] = options["max_prompts"] or 50
    comparison, criteria = _comparison(run_folder, options), _criteria(options)
    count = write_page(Path(run_folder), comparison, criteria, Path(options["human"]))
    click.echo(f"{options['human']}: {count} questions. Open it in a browser, rate, export, and give the files to:")
    click.echo(f"  leftover judge {run_folder} --import RATINGS.json")


def _import(folder: Path, options: dict[str, Any], settings: Any) -> None:
    from leftover.commands.judge.human import import_ratings
    from leftover.commands.judge.show import print_ratings
    from leftover.runs.finished import FinishedRun

    files = [Path(name) for name in options["ratings"]]
    print_ratings(*import_ratings(FinishedRun(folder).folder, files, settings))


def _comparison(run_folder: str, options: dict[str, Any]) -> Any:
    from leftover.commands.judge.pairs import compare_sides
    from leftover.runs.finished import FinishedRun

    names = ("against", "policy", "seeds", "against_policy", "against_seed", "decoding", "max_prompts")
    return compare_sides(FinishedRun(run_folder), **{name: options[name] for name in names})


def _criteria(options: dict[str, Any]) -> Any:
    from leftover.commands.judge.criteria import load_criteria

    return load_criteria(options["criteria"])


def _settings(options: dict[str, Any]) -> Any:
    """The judge that the options name; None where they name none."""
    from leftover.commands.judge.endpoint import JudgeSettings
    from leftover.errors import UserError
    from leftover.recipe.files import set_key

    if options["model"] is None:
        return None
    request: dict[str, Any] = {"temperature": 0}
    for given in options["fields"]:
        if "=" not in given:
            raise UserError(f"--request takes key=value, got '{given}'")
        set_key(request, given)
    names = ("model", "base_url", "token_env", "timeout", "retries", "parallel", "requests_per_minute")
    return JudgeSettings(request=request, **{name: options[name] for name in names})
