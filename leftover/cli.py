"""The command line. Exit status 0, or 2 with one message for anything the user can mend."""

import sys
from typing import Any

import click

from leftover.commands.judge.command import judge
from leftover.monitoring.terminal import harmless, set_up_logging

_EPILOG = "Errors that you can mend exit with 2 and say how; --debug shows the traceback."


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="leftover")
def cli(debug: bool) -> None:
    """Turn scored text into a better language model (A-LoL)."""


_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Print what it would download, compute and cost; no network, no run."
)


# The options of what is pushed, in the order of the help.
_PUSH = (
    click.option("--push-to-hub", metavar="OWNER/NAME", help="Push the policy to the Hub; public, but for --private."),
    click.option("--private", is_flag=True, help="With --push-to-hub: make the repository private where it is new."),
)


def _show_plan(recipe: Any, until: str) -> None:
    from leftover.commands.dry_run.show import dry_run

    dry_run(recipe, until)


def _stage(name: str, help_text: str) -> None:
    """A verb that runs the stages of a recipe up to its own."""

    @cli.command(name, help=help_text)
    @click.argument("recipe", type=click.Path())
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
    @_DRY_RUN
    def command(recipe: str, overrides: tuple[str, ...], dry_run: bool, **push: Any) -> None:
        from leftover.publish.hub import targets, with_push
        from leftover.recipe.files import load_recipe

        loaded = with_push(load_recipe(recipe, list(overrides)), push.get("push_to_hub"), push.get("private", False))
        until = "report" if name == "run" else name
        set_up_logging()
        if dry_run:
            _show_plan(loaded, until)
            for target in targets(loaded) if name == "run" else ():
                click.echo(f"Then '{target.policy}' would be pushed to '{target.hub_id}'.")
            return
        from leftover.pipeline import run

        results = run(loaded, until)
        if results is not None:
            _show(results, loaded.output_dir)

    for option in _PUSH if name == "run" else ():
        option(command)


_stage("run", "All stages: prepare, train, evaluate, report. Continues where it stopped.")


@cli.command()
@click.argument("recipe", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
@click.option(
    "--only", metavar="STEP", help="Stop after: rows, split, tokens, score, reference, logprobs, value or extras."
)
@_DRY_RUN
def prepare(recipe: str, overrides: tuple[str, ...], only: str | None, dry_run: bool) -> None:
    """Tokenise, score, fit the reference, its log-probabilities, value and advantage."""
    from leftover import pipeline
    from leftover.errors import UserError, nearest
    from leftover.recipe.files import load_recipe
    from leftover.runs.claim import open_run

    if only not in (None, *pipeline.STEPS):
        raise UserError(f"--only {only}{nearest(str(only), list(pipeline.STEPS))}: {', '.join(pipeline.STEPS)}")
    loaded = load_recipe(recipe, list(overrides))
    set_up_logging()
    if dry_run:
        _show_plan(loaded, "prepare")
        return
    pipeline.prepare(open_run(loaded), only)


_stage("train", "prepare, and train every policy of the recipe.")
_stage("evaluate", "train, and evaluate the reference and every policy on held-out prompts.")


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipes.")
@click.option("--output", type=click.Path(dir_okay=False), help="Default: report.html in RUN; of several, in here.")
@_DRY_RUN
def report(runs: tuple[str, ...], overrides: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Write report.html of finished runs (their folders), side by side where several are named.

    A recipe in place of a folder is run first, up to results.json and report.md.
    """
    from leftover.commands.report import report_on
    from leftover.recipe.files import load_recipe

    set_up_logging()
    if dry_run:
        for run in runs:
            _show_plan(load_recipe(run, list(overrides)), "report")
        return
    click.echo(f"Report: {report_on(runs, overrides=overrides, output=output)}")


@cli.command("inspect")
@click.argument("table")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe key, as data.columns.reward.")
@click.option("--reward", type=click.Path(), help="YAML: a list as under reward.functions, to score a file's rows.")
@click.option("--output", type=click.Path(dir_okay=False), help="Default: TABLE.inspect.html, or RUN/inspect.html.")
def inspect_rows(table: str, **options: Any) -> None:
    """How good is my data? What is left over, duplicates, rows that contradict others; before any training.

    TABLE is a data file in any format of data.path, a recipe, or the folder of a run.
    """
    from leftover.commands.inspect import inspect, show

    set_up_logging()
    show(*inspect(table, **options))


@cli.command()
@click.argument("recipe", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
@click.option(
    "--methods", metavar="NAMES", help="Methods, policies, paper, nll_top, samplers, all; default: the recipe's."
)
@click.option("--seeds", type=click.IntRange(1), help="How many; default: the recipe's, or 3 where it names one.")
@click.option(
    "--budget",
    type=click.Choice(["equal", "paper"]),
    default="equal",
    show_default=True,
    help="Updates: the same for all, or scaled by the share of rows that a method selects.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once, each a process.")
@click.option(
    "--grid",
    multiple=True,
    metavar="none|declared|KEY=A,B",
    help="Settings to try for every method, chosen on the selection prompts; default: the recipe's compare.grid.",
)
@click.option("--dry-run", is_flag=True, help="Print methods, updates, trials and what does not apply; no run.")
def compare(recipe: str, overrides: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Every method on the same rows under the same budget, in one table. Continues where it stopped."""
    from leftover.commands.compare.run import Options, compare
    from leftover.recipe.files import load_recipe

    loaded, asked = load_recipe(recipe, list(overrides)), Options(**options)
    set_up_logging()
    if dry_run:
        from leftover.commands.compare.dry_run import dry_run as show_plan

        show_plan(loaded, asked)
        return
    from leftover.commands.compare.jobs import raise_for
    from leftover.commands.compare.show import print_comparison

    results, failed = compare(loaded, asked)
    print_comparison(results, loaded.output_dir)
    raise_for(failed, results["num_runs"])


@cli.command()
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option("--policy", help="Which policy; default: the recipe's first.")
@click.option("--seed", type=int, help="Of which training seed; default: the recipe's first.")
@click.option("--output", type=click.Path(), help="Folder to write; default: RUN/export.")
@click.option("--merge", is_flag=True, help="Merge an adapter into its base.")
@_PUSH[0]
@_PUSH[1]
def export(run_folder: str, push_to_hub: str | None, private: bool, **options: Any) -> None:
    """Write a policy as a plain folder for from_pretrained and vLLM, or push it to the Hub."""
    from leftover.publish.export import export_policy
    from leftover.publish.hub import export_and_push

    if push_to_hub or private:
        set_up_logging()
        click.echo(export_and_push(run_folder, push_to_hub, private, **options))
    else:
        click.echo(export_policy(run_folder, **options))


@cli.command("generate")
@click.argument("model")
@click.argument("prompts", required=False)
@click.option("--output", required=True, type=click.Path(dir_okay=False), help="JSON lines to write, or to continue.")
@click.option("--recipe", type=click.Path(), help="Its tokenizer, limits, rewards and, without PROMPTS, its prompts.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe key, such as data.columns.prompt."
)
@click.option("--reward", type=click.Path(), help="YAML: a list as under reward.functions; default: the recipe's.")
@click.option("--n", type=click.IntRange(1), help="Completions a prompt; default: 8, or 1 with --greedy.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--greedy", is_flag=True, help="The most likely token at every step.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Default: data.max_completion_tokens.")
@click.option("--max-prompts", type=click.IntRange(1), help="So many prompts, drawn by the seed; default: all.")
@click.option(
    "--unfinished",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    show_default=True,
    help="Completions that reach --max-new-tokens without an end.",
)
@click.option(
    "--splits/--no-splits",
    default=True,
    show_default=True,
    help="Write the split of a recipe's own prompts, so that they stay on their side.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Default: evaluate.batch_size.")
@click.option("--seed", default=0, show_default=True, help="Of the sampling.")
@click.option("--policy", help="Where MODEL is a run: which policy; default: the recipe's first.")
@click.option("--policy-seed", type=int, help="Of which training seed; default: the recipe's first.")
@click.option("--overwrite", is_flag=True, help="Start over where the output holds rows of other settings.")
def generate_rows(model: str, prompts: str | None, **options: Any) -> None:
    """Sample completions of PROMPTS from MODEL, score them, and write rows to train on.

    MODEL is a folder, a Hub id, an adapter or the folder of a run; PROMPTS a file in any format of data.path, of which
    only the prompts are read.
    """
    from leftover.commands.generate.run import sample_from

    set_up_logging()
    sample_from(model, prompts, **options)


@cli.command("fit-reward")
@click.argument("rows", type=click.Path())
@click.option("--output", required=True, type=click.Path(), help="Folder to write, for {type: ..., path: FOLDER}.")
@click.option("--kind", type=click.Choice(["linear", "fine-tuned"]), help="Default: the YAML's type, or linear.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key, such as features=pair.")
def fit_reward(rows: str, output: str, kind: str | None, overrides: tuple[str, ...]) -> None:
    """Fit a reward on labelled, scored or preferred ROWS: a data file, or a YAML with `fit:` and other keys."""
    from leftover.commands.fit_reward import fit_reward, show

    set_up_logging()
    show(*fit_reward(rows, output, kind, overrides), output)


cli.add_command(judge)


@cli.command()
@click.option("--seed", default=0, show_default=True, help="Of the data, the model and the run.")
@click.option("--output-dir", default="runs/demo", show_default=True, type=click.Path())
def demo(seed: int, output_dir: str) -> None:
    """The whole method on made-up data: no network, no GPU, about three minutes."""
    from leftover.demo import run_demo

    set_up_logging()
    results, folder = run_demo(output_dir, seed)
    _show(results, folder)


def _show(results: dict[str, Any], folder: str) -> None:
    from pathlib import Path

    from leftover.report.write import print_results

    print_results(results)
    click.echo(f"Report: {Path(folder) / 'report.html'} (and report.md)")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the entry point of the `leftover` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        # Taken out here, so that it may stand before the verb or after it.
        cli.main(args=[argument for argument in given if argument != "--debug"], standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command continues", err=True)
        sys.exit(130)
    except Exception as error:
        message = _mendable(error)
        if debug or message is None:
            raise
        click.echo(f"error: {harmless(message)}", err=True)
        sys.exit(2)


def _mendable(error: Exception) -> str | None:
    """What to tell the user of an error that the user can mend; None for a defect of ours."""
    import errno

    from leftover.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    code = error.errno if isinstance(error, OSError) else None
    # A write on an open file knows no name; safetensors and torch.save raise errors of their own without a number.
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if code in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error) for sign in _DISK_FULL):
        return f"the disk is full{place}; free some space, then run again: it continues"
    if code == errno.EROFS:
        return f"the disk is read-only{place}; set output_dir to one that is not"
    if code == errno.EACCES:
        return f"no permission for a file{place}; set output_dir to a folder of your own, or make the file readable"
    return None


_DISK_FULL = ("No space left on device", "inline_container.cc")


if __name__ == "__main__":
    main()
