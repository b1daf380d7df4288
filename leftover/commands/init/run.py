"""`leftover init`: rows and a model -> a recipe, and what was taken for what."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from leftover.commands.dry_run.rows import Rows, read
from leftover.commands.dry_run.shape import Shape, find_config, measure
from leftover.commands.dry_run.trace import skeleton
from leftover.commands.guess.ask import Questions
from leftover.commands.guess.columns import NUMBER, Column, count_columns
from leftover.commands.guess.data import ignored, name_delimiter, names_of
from leftover.commands.guess.roles import Roles, find_roles, no_score_in
from leftover.commands.init.limits import limits
from leftover.commands.init.machine import this_machine
from leftover.commands.init.plan import Content, Plan, fit_memory, in_order, plan_data, plan_rewards, plan_training
from leftover.commands.init.prompts import are_conversations, join_texts
from leftover.commands.init.scores import scores_of
from leftover.commands.init.text import yaml_with_comments
from leftover.data.chat import Chat
from leftover.data.checks import SPLIT_NAMES, SPLITS, check_row
from leftover.data.formats import list_sources, read_records, read_rows
from leftover.data.records import LEFT_OUT
from leftover.data.rows import check_rows
from leftover.data.tokenizer import load_tokenizer
from leftover.errors import UserError, counted, looked_for
from leftover.models.load import max_positions, reads_two_texts, torch_dtype
from leftover.monitoring.ranks import launched
from leftover.monitoring.terminal import harmless, one_line
from leftover.recipe.data_section import ENDINGS, LAYOUTS, ColumnsSection, DataSection
from leftover.recipe.files import load_recipe, load_yaml, make_recipe, set_key
from leftover.recipe.sections import Recipe
from leftover.rewards.base import read_section
from leftover.runs.claim import model_positions
from leftover.store.files import write_text
from leftover.store.folders import check_output

_NO_LIMIT = 10**6  # tokens, while the lengths of rows are not known
_MOST_FAULTY = 0.2  # of the rows; with more of them something else is wrong
_SEVERAL = 1.2  # completions of a prompt, on average
_WHAT_SCORES = """What can be done:
  name the column of scores, thumbs or labels: --set data.columns.reward=COLUMN
  name a column of known answers, which completions are compared with: --set data.columns.answer=COLUMN
  score the rows by functions: --reward reward.yaml, a file such as
    - {type: text, function: vader}  # sentiment; also regex, length, ngram_diversity
    - {type: classifier, model: ID, label: LABEL}
    - {type: python, function: "my_module:my_score"}"""


@dataclass(frozen=True)
class Written:
    """A recipe, its text, and what is said of it."""

    recipe: Recipe
    text: str
    said: list[str]


def recipe_name(rows: str) -> str:
    """What a run of a data file is called: its name without endings."""
    name = Path(rows).name.removesuffix(".gz")
    name = name.removesuffix(Path(name).suffix) if Path(name).suffix in ENDINGS else name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")[:60] or "rows"


def init(rows: str, model: str, output: str | Path, **options: Any) -> Path:
    """Look at `rows` and write a recipe that trains `model` on them to `output`, which must not be there.

    `options`: those of `make`. Raises UserError for rows that no recipe can be written for, with what can be done.
    """
    path = Path(output)
    if path.exists():
        raise UserError(f"{path} is there already: name another by --output")
    check_output(path)
    written = make(rows, model, **options)
    write_text(path, written.text)
    say(written)
    click.echo(f"Recipe: {path}. Read it, then: leftover run {path} (--dry-run: how long it takes)")
    return path


def recipe_of_rows(
    rows: str, model: str, own: Sequence[str], overrides: Sequence[str], *, write: bool = True
) -> Recipe:
    """The recipe that `init` makes of `rows` without asking, `OUTPUT_DIR.yaml`, changed by `overrides`.

    It is written once and then read, so that the same command continues, and changes of the user's stay.

    Args:
        own: the overrides that are written into it.
        write: False: nothing is.

    Raises UserError if the recipe there is of other rows or of another model.
    """
    if launched() > 1:
        raise UserError(
            f"--model is for one process: `leftover init {rows} --model {model}` first, then run its recipe"
        )
    start = _start(rows, model, own)
    path = Path(f"{Path(start.content['output_dir'])}.yaml")
    if path.is_file():
        found = load_recipe(path, overrides)
        if (found.data.path, found.model.path) != (rows, model):
            raise UserError(
                f"{path} trains '{found.model.path}' on '{found.data.path}': name another folder by "
                "--set output_dir=FOLDER"
            )
        click.echo(f"Recipe: {path}, written before; `leftover run {path}` runs it as well")
        return found
    written = make(rows, model, overrides=own, assume=True)
    say(written)
    if write:
        write_text(path, written.text)
        click.echo(f"Recipe: {path}")
    return make_recipe(load_yaml(written.text), str(path), overrides)


def say(written: Written) -> None:
    """Print what was taken for what."""
    for line in written.said:
        click.echo(harmless(line))


def make(
    rows: str, model: str, *, overrides: Sequence[str] = (), reward: str | None = None, assume: bool = False
) -> Written:
    """The recipe that trains `model` on `rows`; nothing is written.

    Args:
        rows: a data file.
        model: a folder or Hub id.
        overrides: `dotted.key=value` of the recipe, which nothing is guessed for.
        reward: a YAML as `reward` of a recipe, whose functions score the rows in place of a column.
        assume: ask nothing and take the likeliest.
    """
    plan, questions = _start(rows, model, overrides), Questions(assume)
    scored_by = None if reward is None else read_section(Path(reward))
    name_delimiter(plan.content["data"])
    data, tokens = make_recipe(plan.content).data, _Tokens(plan)
    columns, number = count_columns(row for _, row in read_records(data))
    if not number:
        raise UserError(f"{rows} holds no row")
    published = data.format in LAYOUTS
    roles = Roles(data.format) if published else find_roles(columns, plan.content["data"], questions)
    own_splits = not published and _name_columns(plan, roles, columns, number)
    if not published:
        tokens.join(plan, roles, columns)
    found = _read(plan)
    if "family" in roles.columns and len(np.unique(found.family)) == len(found.family):  # it tells no rows together
        named = plan.content["data"].get("columns", {})
        if roles.columns.pop("family") in named.values():
            del named["family"]
            found = _read(plan)
    rejected = _first_fault(plan, found)
    scores = None if scored_by else scores_of(found)
    if scored_by is None and scores is None:
        scored_by = _by_answers(roles, columns, rows)
    assert found.lengths is not None  # the tokenizer is here
    whole = found.lengths.kept
    within = limits(found.lengths.prompts[whole], found.lengths.completions[whole], tokens.positions)
    plan_data(plan, within, found, rejected, own_splits)
    plan_rewards(plan, scores, scored_by)
    machine, shape = this_machine(), tokens.shape()
    _override(plan, overrides)
    used = read(make_recipe(plan.content))
    assert isinstance(used, Rows) and used.lengths is not None
    plan_training(plan, _num_training(used, scores is not None), shape, machine)
    _override(plan, overrides)
    fit_memory(plan, used, shape, machine)
    _override(plan, overrides)
    _comment(plan, roles, found, str(scores or "scored by the functions below"))
    said = [
        *_said_of_columns(rows, number, data, roles, columns),
        f"Model: {shape.parameters:,} parameters, {tokens.described}; on {machine}",
        *questions.assumed,
        *plan.notes,
    ]
    text = _text(plan, rows, model)
    recipe = make_recipe(load_yaml(text), "the recipe that init writes")
    assert recipe == make_recipe(plan.content)
    return Written(recipe, text, said)


def _start(rows: str, model: str, overrides: Sequence[str]) -> Plan:
    """What is known before anything is read. UserError if `rows` is no data file."""
    if Path(rows).suffix in (".yaml", ".yml"):
        raise UserError(f"{rows} is a recipe, which names its model itself: a data file goes with --model")
    if not Path(rows).is_file():
        raise UserError(f"no data file at '{rows}'{looked_for(rows)}; of a data set on the Hub, save a file first")
    name = recipe_name(rows)
    plan = Plan({"name": name, "output_dir": f"runs/{name}", "model": {"path": model}, "data": {"path": rows}})
    _override(plan, overrides)
    return plan


class _Tokens:
    """The model's tokenizer, chat template and positions."""

    def __init__(self, plan: Plan):
        self.section = make_recipe(plan.content).model
        self.positions = model_positions(self.section)
        path = self.section.tokenizer if isinstance(self.section.tokenizer, str) else str(self.section.path)
        remote = self.section.remote_code
        self.tokenizer = load_tokenizer(path, chat_template=self.section.chat_template, trust_remote_code=remote)

    @property
    def described(self) -> str:
        template = "a chat template" if self.tokenizer.chat_template else "no chat template"
        return f"{'no limit of' if self.positions is None else format(self.positions, ',')} positions, {template}"

    def join(self, plan: Plan, roles: Roles, columns: Mapping[str, Column]) -> None:
        """See that conversations have a template, and that texts and completions do not run together."""
        prompts = plan.content["data"].get("prompts")
        if are_conversations(roles, columns) or prompts == "chat":
            if self.tokenizer.chat_template is None:
                plan.put("model.chat_template", "plain", "the model has none: turns of Human: and Assistant:")
            return
        if reads_two_texts(self.section):  # which do not meet
            return
        chat = None if prompts else Chat(self.tokenizer, self.section.template_options)
        for key, value in join_texts(roles, columns, chat).items():
            plan.put(f"data.{key}", value)

    def shape(self) -> Shape:
        config, where = find_config(self.section)
        if config is None:
            raise UserError(f"the size of the model is {where}")
        self.positions = max_positions(config)
        return measure(skeleton(config, None, torch_dtype(self.section.dtype)), config, False)


def _override(plan: Plan, overrides: Sequence[str]) -> None:
    for override in overrides:
        set_key(plan.content, override)


def _name_columns(plan: Plan, roles: Roles, columns: Mapping[str, Column], number: int) -> bool:
    """`data.columns` and `data.labels`; returns whether the rows' own splits are used."""
    named: dict[str, Any] = dict(names_of(roles, columns))
    split = columns.get(roles.columns.get("split", ""))
    own_splits = False
    if split is not None:
        names = {SPLIT_NAMES.get(str(value)) for value in split.values or ["?"]}
        own_splits = names == set(SPLITS) and split.cells == number
        if not own_splits:
            named["split"] = None
            del roles.columns["split"]
            plan.notes.append(
                f"The column '{split.name}' does not give every row one of {', '.join(SPLITS)}: not used."
            )
    data = plan.content["data"]
    if named := named | (data.get("columns") or {}):
        data["columns"] = named
    if roles.labels:
        data["labels"] = roles.labels
    return own_splits


def _read(plan: Plan) -> Rows:
    """The rows as the recipe will read them, at their whole lengths; faulty ones are counted."""
    data = plan.content["data"] | {"on_bad_row": "skip"}
    data |= {"max_prompt_tokens": _NO_LIMIT, "max_completion_tokens": _NO_LIMIT}
    reward = {"functions": [{"type": "text", "function": "length"}]}  # no score is missed
    found = read(make_recipe(plan.content | {"data": data, "reward": reward}))
    assert isinstance(found, Rows)  # of a file that is here
    return found


def _first_fault(plan: Plan, rows: Rows) -> str:
    """Of the faulty rows the first, empty if there is none. UserError if they are too many to be put aside."""
    data = make_recipe(plan.content).data
    if rows.stats["rejected"] > _MOST_FAULTY * rows.stats["read"]:
        for _ in check_rows(read_rows(data), data, None, {}):
            pass
    for where, row in read_rows(data) if rows.stats["rejected"] else ():
        try:
            if LEFT_OUT not in row:
                check_row(row, data)
        except ValueError as error:
            return one_line(f"{where.rpartition('/')[2]}: {error}", 80)
    return ""


def _by_answers(roles: Roles, columns: Mapping[str, Column], rows: str) -> Content:
    """What compares completions with known answers. UserError if there are none: then nothing scores the rows."""
    answer = columns.get(roles.columns.get("answer", ""))
    if answer is None:
        found = ", ".join(name for name in columns if "." not in name)
        free = {name: column for name, column in columns.items() if not roles.is_taken(name)}
        why = no_score_in(free) or f"no column holds scores (found: {found})"
        raise UserError(f"{rows}: {why}, and rows are weighed by them. {_WHAT_SCORES}")
    return {"functions": [{"type": "text", "function": "numeric_answer" if answer.kind == NUMBER else "answer"}]}


def _num_training(rows: Rows, recorded: bool) -> int:
    """Rows that plain fine-tuning would train on: of the training split, not too long and, if scores are `recorded`,
    with one."""
    assert rows.lengths is not None
    inside = rows.where("train") & rows.scored if recorded else rows.where("train")
    if rows.lengths.exact:
        return int((inside & rows.lengths.kept).sum())
    return round(rows.lengths.kept_share * int(inside.sum()))


def _comment(plan: Plan, roles: Roles, rows: Rows, scores: str) -> None:
    """Comments on what the plan did not decide."""
    prompts = len(np.unique(rows.group))
    each = len(rows.group) / prompts
    several = f", {each:.1f} completions each" if each >= _SEVERAL else ""
    plan.comments |= {
        "name": "of the run, for reports",
        "output_dir": "the run's folder: models, results, report.html",
        "data.path": f"{counted(len(rows.group), 'row')} of {counted(prompts, 'prompt')}{several}; {scores}",
        "data.columns": "what your columns are for; a name with braces is a template",
        "data.prompts": "each is asked as a user's message, through the model's chat template",
        "data.labels": "what the words are worth",
        "data.table": "how the columns of the file are parted",
    }
    plan.comments.setdefault("model.path", "what is trained")
    if roles.unscored:
        words = ", ".join(map(repr, roles.unscored))
        plan.comments["data.labels"] += f"; {words} are no score"


def _said_of_columns(
    rows: str, number: int, data: DataSection, roles: Roles, columns: Mapping[str, Column]
) -> list[str]:
    kind = list_sources(data)[0].kind
    said = [f"{rows}: {counted(number, 'record')} ({kind}), read as {roles.layout}"]
    said += [
        f"  {role:<12} {column!r} ({roles.why.get(role, '')})"
        for role, column in sorted(roles.columns.items(), key=_place)
    ]
    return [*said, f"  {'ignored':<12} {', '.join(ignored(roles, columns)) or 'none'}"]


def _place(role: tuple[str, str]) -> int:
    """Prompt, completion and reward first."""
    order = [*ColumnsSection.model_fields]
    return order.index(role[0]) if role[0] in order else -1


def _text(plan: Plan, rows: str, model: str) -> str:
    head = f"# Written by `leftover init {rows} --model {model}`. Every key and its default: docs/reference/recipe.md\n"
    judges = plan.content.get("evaluate", {}).get("judges") or [{}]
    fit = judges[0].get("fit")
    shared = [key for key in ("path", "columns", "labels") if isinstance(fit, dict) and key in fit]
    return harmless(head) + yaml_with_comments(in_order(plan.content), plan.comments, shared)
