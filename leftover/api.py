"""The commands in Python. Options have the names and defaults of the command line; rows may be objects in memory."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import click

from leftover.commands.compare.command import compare as compare_command
from leftover.commands.generate.command import generate as generate_command
from leftover.commands.inspect import inspect
from leftover.commands.judge.command import judge as judge_command
from leftover.commands.scored import IN_PYTHON
from leftover.commands.select.run import select
from leftover.errors import UserError, nearest
from leftover.monitoring.shown import Results
from leftover.prepare.own_rows import Rows, stream
from leftover.recipe.files import load_recipe, make_recipe
from leftover.recipe.sections import Recipe
from leftover.store.files import write_lines

__all__ = ["compare", "generate", "inspect", "judge", "run", "select"]

Given = Recipe | Mapping[str, Any] | str | Path  # a recipe: as it is read, as a dictionary, or its file


def run(
    recipe: Given, until: str = "report", *, data: Rows | None = None, overrides: Sequence[str] = ()
) -> Results | None:
    """`leftover run`: prepare, train, evaluate, report; what is finished is reused.

    Args:
        until: the last stage: prepare, train, evaluate or report; before the report there are no results (None).
        data: in place of the recipe's `data.path`. Rows in memory are written to OUTPUT_DIR.rows.jsonl, beside the
            run's folder: the run reads them there, now and when it goes on.
        overrides: `dotted.key=value` of the recipe.

    Returns the content of results.json, or, with rounds, of rounds.json.
    """
    from leftover.report.write import print_results, print_rounds
    from leftover.rounds.run import run

    loaded = _recipe(recipe, overrides, data)
    found = run(loaded, until)
    show = print_results if loaded.rounds is None else print_rounds
    return None if found is None else Results(found, lambda: show(found))


def compare(
    recipe: Given, *, data: Rows | None = None, overrides: Sequence[str] = (), frontier: bool = False, **options: Any
) -> Results:
    """`leftover compare`: every method on the same rows; returns the content of comparison.json (frontier.json).

    Args:
        recipe, data, overrides: as of `run`.
        options: methods, seeds, budget, jobs, grid.
    """
    from leftover.commands.compare.frontier import frontier as draw_frontier
    from leftover.commands.compare.jobs import raise_for
    from leftover.commands.compare.run import Options, compare
    from leftover.commands.compare.tables import print_comparison, print_frontier

    asked = Options(
        **_options(compare_command, options, without=("recipe", "overrides", "frontier", "quick", "dry_run"))
    )
    loaded = _recipe(recipe, overrides, data)
    found, failed = (draw_frontier if frontier else compare)(loaded, asked)
    raise_for(failed, found["num_runs"])
    show = print_frontier if frontier else print_comparison
    return Results(found, lambda: show(found, loaded.output_dir))


def generate(model: str | Path, prompts: Rows | None = None, *, output: str | Path, **options: Any) -> Results:
    """`leftover generate`: completions sampled from a model, scored, as rows to train on in the file `output`.

    Args:
        prompts: in memory: written to OUTPUT.prompts.jsonl first.
        options: as of the command, such as n, reward, recipe, overrides, max_new_tokens, seed.

    Returns counts of what was drawn and written.
    """
    from leftover.commands.generate.run import generate_rows

    asked = _options(generate_command, options, without=("model", "prompts", "output"))
    path = None if prompts is None else _as_file(prompts, f"{output}.prompts.jsonl", "prompts")
    counts = generate_rows(str(model), path, output=str(output), **asked)
    return Results(counts, lambda: click.echo(f"{counts['rows']:,} rows of {counts['prompts']:,} prompts in {output}"))


def judge(run: str | Path, *, criteria: Sequence[str] = (), **options: Any) -> Results:
    """`leftover judge`: a language model compares a policy's completions with others; returns the results.

    Args:
        run: the folder of an evaluated run.
        criteria: helpful, safe, or files of your own; default: helpful and safe.
        options: as of the command: model (needed), base_url, against, policy, seeds, decoding, max_prompts, parallel,
            fields (of the request), ... People are asked by the command.

    Raises UserError if questions got no answer; the same call asks them again.
    """
    from leftover.commands.judge.endpoint import read_settings
    from leftover.commands.judge.pairs import compare_sides
    from leftover.commands.judge.questions import load_criteria
    from leftover.commands.judge.run import Judgement, raise_for
    from leftover.commands.judge.show import print_results
    from leftover.commands.judge.summary import Prices
    from leftover.runs.finished import FinishedRun

    unlike = ("run_folder", "criteria", "dry_run", "human", "ratings")
    asked = _options(judge_command, options, without=unlike)
    settings, prices, evaluated = read_settings(asked), asked.pop("prices"), FinishedRun(run)
    if settings is None:
        raise UserError("model is missing: the name of the judge")
    comparison = compare_sides(evaluated, **asked)
    judgement = Judgement(
        evaluated.folder, comparison, load_criteria(tuple(criteria)), settings, Prices(*prices) if prices else None
    )
    found, path, failures = judgement.ask()
    raise_for(failures)
    return Results(found, lambda: print_results(found, path))


def _options(command: click.Command, given: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """The options of a command, those that are given and the defaults of all others. UserError for a faulty one."""
    params = {param.name: param for param in command.params if param.name and param.name not in without}
    if unknown := next((name for name in given if name not in params), None):
        raise UserError(f"{command.name} has no option '{unknown}'{nearest(unknown, params)}: {', '.join(params)}")
    context = command.make_context(command.name, [], resilient_parsing=True)  # a missing argument is no fault here
    found = {name: context.params[name] for name in params}
    for name, value in given.items():
        try:
            found[name] = params[name].type_cast_value(context, value)
        except click.BadParameter as error:
            raise UserError(f"{name}: {error.message}") from None
    return found


def _recipe(recipe: Given, overrides: Sequence[str], data: Rows | None) -> Recipe:
    """The recipe with these overrides, and these rows in place of its own."""
    if data is None:
        return _read(recipe, overrides)
    named = isinstance(data, (str, Path))
    folder = "" if named else _read(recipe, [*overrides, f"data.path={IN_PYTHON}"]).output_dir
    path = _as_file(data, f"{folder}.rows.jsonl", "data")
    return _read(recipe, [*overrides, f"data.path={json.dumps(path)}"])


def _read(recipe: Given, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, overrides)
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    content = recipe.model_dump() if isinstance(recipe, Recipe) else recipe
    return make_recipe(deepcopy(dict(content)), overrides=overrides)


def _as_file(rows: Rows, path: str, name: str) -> str:
    """The path of a file of these rows; those in memory are written to `path`."""
    if isinstance(rows, (str, Path)):
        return str(rows)
    write_lines(Path(path), stream(rows, name))
    return path
