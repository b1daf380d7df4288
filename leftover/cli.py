"""The command line. Exit status 0, or 2 with one message for anything the user can fix.

A command that is a package declares its options in its `command.py`, the others are declared here. Their bodies import
what they need, so that `--help` answers at once.
"""

import faulthandler
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leftover import __version__
from leftover.commands.compare.command import compare
from leftover.commands.generate.command import generate
from leftover.commands.init.command import init
from leftover.commands.judge.command import judge
from leftover.commands.select.command import select
from leftover.errors import UserError, nearest, remedy_of
from leftover.monitoring.ranks import is_main_process, launched, rank
from leftover.monitoring.signals import Interrupted, stop_on_sigterm
from leftover.monitoring.terminal import harmless, set_up_logging, tell_start
from leftover.trust import allow_code

if TYPE_CHECKING:
    from leftover.recipe.sections import Recipe

# Whose work the processes of a launch share.
_SHARED = ("run", "prepare", "train", "evaluate", "generate")
_EPILOG = "Errors that you can fix exit with status 2 and say how; --debug shows the traceback."


# In the order in which one comes to need them.
_ORDER = (
    "demo", "init", "inspect", "run", "watch", "report", "generate", "export", "select", "compare", "judge",
    "fit-reward", "prepare", "train", "evaluate", "check",
)  # fmt: skip


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


@click.group(
    cls=_InOrder, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--allow-code", is_flag=True, help="Run Python code that a run's folder names: for folders you trust.")
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context, debug: bool, allow_code: bool) -> None:
    """Turn scored text into a better language model (A-LoL).

    A recipe names rows, a reward, a model and methods; `run` makes a folder of it, the run. It fits a reference model
    on the rows, trains policies from it, one a method, and compares their answers to prompts that were held out.
    """
    if launched() > 1 and context.invoked_subcommand not in _SHARED:
        raise UserError(
            f"leftover {context.invoked_subcommand} runs in one process, and a launcher has started {launched()} "
            f"(WORLD_SIZE): start it without one; {', '.join(_SHARED)} share their work"
        )


for _command in (compare, generate, init, judge, select):
    cli.add_command(_command)

_RECIPE = click.argument("recipe", type=click.Path())
_SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be downloaded and computed, and run nothing.")
_DEVICE = click.option(
    "--device",
    metavar="NAME",
    help="With --dry-run: the time on this GPU (h100, a100, l4, ...) and on 8 and 64.",
)
_QUICK = click.option(
    "--quick", is_flag=True, help="A first look: one checkpoint evaluation, 64 test prompts, sampled completions only."
)
_PUSH = click.option("--push-to-hub", metavar="OWNER/NAME", help="Push the policy to the Hub, public unless --private.")
_PRIVATE = click.option("--private", is_flag=True, help="With --push-to-hub: create a private repository.")


@cli.command(short_help="Train by a recipe, evaluate, write the report.")
@_RECIPE
@click.option(
    "--model", metavar="ID", help="RECIPE is a data file: train this model on it, by the recipe of `init --yes`."
)
@_SET
@_QUICK
@click.option(
    "--rounds", type=click.IntRange(1), help="Train so often, each time on what the policy wrote (rounds.number)."
)
@_DRY_RUN
@_DEVICE
@_PUSH
@_PRIVATE
def run(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    dry_run: bool,
    device: str | None,
    push_to_hub: str | None,
    private: bool,
) -> None:
    """Read and score the rows, train, evaluate on held-out prompts, report.

    The same command goes on where it stopped, and makes nothing again that has not changed. RECIPE is a recipe, or the
    folder of a run; with --model a data file, whose recipe is written beside the folder of
    its run.
    """
    if device is not None and not dry_run:
        raise UserError("--device is of --dry-run: it says whose time is told")
    from leftover.publish.hub import targets, with_push
    from leftover.recipe.files import quick_overrides

    own, overrides = (
        overrides,
        (*(quick_overrides(overrides) if quick else ()), *overrides, *([f"rounds.number={rounds}"] if rounds else [])),
    )
    if model is None:
        loaded = _load(recipe, overrides)
    else:
        tell_start()
        from leftover.commands.init.run import recipe_of_rows

        set_up_logging()
        loaded = recipe_of_rows(recipe, model, own, overrides, write=not dry_run)
    loaded = with_push(loaded, push_to_hub, private)
    if quick:
        from leftover.runs.claim import check_quick

        check_quick(loaded)
    if loaded.rounds is None:
        _run_stages(loaded, "report", dry_run, device)
    else:
        _run_rounds(loaded, dry_run, device)
    for target in targets(loaded) if dry_run else ():
        click.echo(f"Then '{target.policy}' would be pushed to '{target.hub_id}'.")


@cli.command(short_help="The part of `run` before training.")
@_RECIPE
@_SET
@click.option(
    "--only",
    metavar="STEP",
    help="Stop after rows, split, tokens, score, reference, logprobs, value or extras.",
)
@_DRY_RUN
def prepare(recipe: str, overrides: tuple[str, ...], only: str | None, dry_run: bool) -> None:
    """The part of `run` before training: read and score the rows, fit the reference model on them.

    Then, for every row: how likely the reference finds the answer (log-probability), what score it would reach itself
    (value), and by how much the row is better (advantage).
    """
    tell_start()
    from leftover import pipeline
    from leftover.monitoring.stages import Stages
    from leftover.runs.claim import open_run

    if only not in (None, *pipeline.STEPS):
        raise UserError(f"--only {only}{nearest(str(only), list(pipeline.STEPS))}: {', '.join(pipeline.STEPS)}")
    loaded = _load(recipe, overrides)
    if dry_run:
        _run_stages(loaded, "prepare", dry_run)
    else:
        set_up_logging()
        opened = open_run(loaded)
        try:
            stages = Stages(pipeline.titles("prepare", only))
            pipeline.prepare(opened, only, begins=stages.begin)
            stages.end()
        finally:
            opened.close()


@cli.command(short_help="The part of `run` up to the trained policies.")
@_RECIPE
@_SET
@_DRY_RUN
def train(recipe: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """The part of `run` up to the trained policies: one for every method and seed of the recipe."""
    _run_stages(_load(recipe, overrides), "train", dry_run)


@cli.command(short_help="The part of `run` before the report.")
@_RECIPE
@_SET
@_DRY_RUN
def evaluate(recipe: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """The part of `run` before the report: train, and let reference and policies answer held-out prompts."""
    _run_stages(_load(recipe, overrides), "evaluate", dry_run)


@cli.command(short_help="Are all files of a run as they were written?")
@click.argument("run", type=click.Path())
def check(run: str) -> None:
    """Hold every file of the folder RUN against what was written; status 1 if one is damaged. Writes nothing."""
    from leftover.commands.check import check, lines

    found = check(run)
    for folder, checked in found:
        for line in lines(folder, checked):
            click.echo(harmless(line))
    if any(checked.faults for _, checked in found):
        sys.exit(1)


def _load(recipe: str, overrides: tuple[str, ...]) -> "Recipe":
    tell_start()
    from leftover.recipe.files import load_recipe

    return load_recipe(recipe, list(overrides))


def _run_stages(recipe: "Recipe", until: str, dry_run: bool, device: str | None = None) -> None:
    set_up_logging()
    if dry_run:
        from leftover.commands.dry_run.show import dry_run as print_estimate

        print_estimate(recipe, until, device)
    else:
        from leftover import pipeline
        from leftover.commands.dry_run.ahead import tell_time

        _show(pipeline.run(recipe, until, tell_time=tell_time), recipe.output_dir)


def _run_rounds(recipe: "Recipe", dry_run: bool, device: str | None) -> None:
    set_up_logging()
    if dry_run:
        from leftover.rounds.dry_run import dry_run as print_estimate

        print_estimate(recipe, device)
        return
    from leftover.report.write import print_rounds
    from leftover.rounds.run import run

    results = run(recipe)
    assert results is not None  # the report is the last stage
    print_rounds(results)
    _show_end(recipe.output_dir, better=True)


@cli.command(short_help="One page of one or more runs, finished or not.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@_SET
@click.option("--output", type=click.Path(), help="Page to write; default: RUN/report.html.")
@_DRY_RUN
def report(runs: tuple[str, ...], overrides: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Write report.html of runs (their folders), finished or not; several go side by side into ./report.html.

    Of a folder nothing is computed. A recipe in its place is run first, up to results.json and report.md.
    """
    tell_start()
    from leftover.commands.report import report_on

    if dry_run:
        for name in runs:
            if Path(name).is_dir():
                click.echo(f"{name}: a run is shown as it is, nothing is computed")
            else:
                _run_stages(_load(name, overrides), "report", dry_run)
        return
    set_up_logging()
    click.echo(f"Report: {report_on(runs, overrides=overrides, output=output)}")


@cli.command(short_help="The report of a run while it runs.")
@click.argument("run", type=click.Path())
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    show_default=False,
    help="Port on 127.0.0.1; default: one that is free.",
)
def watch(run: str, port: int) -> None:
    """Serve the report of a run in progress, as a page that only this machine can open.

    The page says which step the run is at, and loads itself anew within about ten seconds of every line of a training's
    log and every evaluation. It answers GET and HEAD, reads the folder of RUN and writes nothing; Ctrl-C stops it, and
    the run goes on.
    """
    tell_start()
    from leftover.commands.watch import watch

    set_up_logging()
    watch(run, port)


@cli.command(short_help="How good is my data? Before any training.")
@click.argument("table")
@_SET
@click.option("--reward", type=click.Path(), help="Score the rows of a file: a YAML list as under reward.functions.")
@click.option(
    "--output",
    type=click.Path(),
    help="Page to write; default: TABLE.inspect.html, or RUN/inspect.html.",
)
@click.option(
    "--export",
    type=click.Path(),
    metavar="ROWS.csv|.jsonl|.parquet",
    help="Also write every row: its line, reward, value (what its prompt is expected to reach), advantage (the "
    "difference), whether it would train, what it repeats or contradicts.",
)
def inspect(table: str, overrides: tuple[str, ...], reward: str | None, output: str | None, export: str | None) -> None:
    """How good is my data? Which rows are better than expected (the leftover), repeat or contradict others.

    TABLE is a data file in any format of data.path, a recipe, or the folder of a run.
    """
    tell_start()
    from leftover.commands.inspect import inspect

    set_up_logging()
    inspect(table, overrides=overrides, reward=reward, output=output, export=export).show()


@cli.command(short_help="A trained model as a plain folder, or to the Hub.")
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option("--policy", help="Name of the policy; default: the recipe's first.")
@click.option("--seed", type=int, help="Training seed of the policy; default: the recipe's first.")
@click.option("--output", type=click.Path(), help="Folder to write; default: RUN/export.")
@click.option("--merge", is_flag=True, help="Merge a LoRA adapter into its model.")
@_PUSH
@_PRIVATE
def export(run_folder: str, push_to_hub: str | None, private: bool, **options: Any) -> None:
    """Write a policy (a trained model of RUN) as a plain folder for transformers and vLLM, or push it to the Hub."""
    tell_start()
    from leftover.publish.export import export_policy
    from leftover.publish.hub import export_and_push

    set_up_logging()
    if push_to_hub or private:
        click.echo(export_and_push(run_folder, push_to_hub, private, **options))
    else:
        click.echo(export_policy(run_folder, **options))


@cli.command("fit-reward", short_help="Learn a reward from scored or preferred rows.")
@click.argument("rows", type=click.Path())
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    help="Folder to write, for a recipe's {type: ..., path: FOLDER}.",
)
@click.option("--kind", type=click.Choice(["linear", "fine-tuned"]), help="Default: the type in the YAML, or linear.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key, such as features=pair.")
def fit_reward(rows: str, output: str, kind: str | None, overrides: tuple[str, ...]) -> None:
    """Fit a reward on labelled, scored or preferred ROWS: a data file, or a YAML with `fit:` and other keys."""
    tell_start()
    from leftover.commands.fit_reward import fit_reward, show

    set_up_logging()
    show(*fit_reward(rows, output, kind, overrides), output)


@cli.command(short_help="The whole method on made-up data.")
@click.option("--seed", default=0, help="Seed of the data, the model and the run.")
@click.option("--output-dir", default="runs/demo", type=click.Path(), help="Folder that gets one for each seed.")
def demo(seed: int, output_dir: str) -> None:
    """The whole method on made-up data: no network, no GPU, about three minutes."""
    tell_start()
    from leftover.commands.dry_run.ahead import tell_time
    from leftover.demo import run_demo

    set_up_logging()
    _show(*run_demo(output_dir, seed, tell_time))


def _show(results: dict[str, Any] | None, folder: str) -> None:
    if results is not None:  # the last stage ran
        from leftover.evaluation.verdict import is_better
        from leftover.report.write import print_results

        print_results(results)
        _show_end(folder, is_better(results))


def _show_end(folder: str, better: bool) -> None:
    """Where the report is, and two things to do next: use the policy, or, unless it is better, look at the rows."""
    run = shlex.quote(folder)
    use = {
        f"leftover generate {run} PROMPTS.jsonl --output answers.jsonl": "let it answer prompts of your own",
        f"leftover export {run}": "a plain folder of the model, for transformers and vLLM",
    }
    look = {
        f"leftover inspect {run}": "which rows repeat or contradict others, and which would train",
        f"leftover select {run} --output best.jsonl": "the rows that are worth training on, for any trainer",
    }
    click.echo(f"Report: {Path(folder) / 'report.html'} (and report.md)")
    click.echo("Next:")
    for command, what in (use if better else look).items():
        click.echo(f"  {command}\n    {what}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the entry point of the `leftover` script."""
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # a user's function, or a library, that crashes the process is named on stderr
    stop_on_sigterm()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    allow_code("--allow-code" in given)
    try:
        # Taken out here, so that they may stand before the verb or after it.
        cli.main(args=[word for word in given if word not in ("--debug", "--allow-code")], standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes any for Ctrl-D; it is a defect of ours
            raise error.__cause__ from None
        found = error if isinstance(error, Interrupted) else error.__cause__  # click has its own word for both
        stopped = found if isinstance(found, Interrupted) else Interrupted(signal.SIGINT)
        click.echo(f"{stopped.where or 'stopped'}; the same command continues", err=True)
        sys.exit(stopped.status)
    except Exception as error:
        message = remedy_of(error)
        if debug or message is None:
            raise
        who = "" if is_main_process() else f" (process {rank()} of {launched()})"
        click.echo(f"error{who}: {harmless(message)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
