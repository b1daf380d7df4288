"""From what columns are for to the section `data` of a recipe: for `init`, and for commands that read a file alone."""

import json
import logging
import shlex
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from leftover.commands.guess.ask import Questions
from leftover.commands.guess.columns import NUMBER, Column, count_columns
from leftover.commands.guess.roles import Roles, find_roles, first_few, no_score_in
from leftover.data.files import DELIMITERS, read_lines
from leftover.data.labels import LABEL, label_is_reward, truth
from leftover.data.missing import paths_of
from leftover.data.records import FAULT, Row
from leftover.errors import UserError, located
from leftover.recipe.data_section import ENDINGS, LAYOUTS, ColumnsSection, DataSection

log = logging.getLogger(__name__)

Content = dict[str, Any]

_LOOKED_AT = 100  # records that tell whether the columns are called as ours are
_GUESSED = {"prompt": "prompt", "completion": "completion", "reward": "score"}  # and what a person calls them


def name_delimiter(data: Content) -> None:
    """What parts the columns of a table, where that is not what its ending says."""
    kind = next((ENDINGS[end] for end in Path(data["path"]).suffixes[-2:] if end in ENDINGS), "")
    if data.get("format", kind) not in ("csv", "tsv") or data.get("table"):
        return
    usual = "," if data.get("format", kind) == "csv" else "\t"
    header = next(line for _, line in read_lines(data["path"]))
    if usual not in header and (sign := next((sign for sign in DELIMITERS if sign in header), None)):
        data["table"] = {"delimiter": sign}


def names_of(roles: Roles, columns: Mapping[str, Column]) -> dict[str, str]:
    """Key of `data.columns` -> column, of those that are called otherwise."""
    usual, by_itself = ColumnsSection().model_dump(), set[str]()
    label = columns.get(LABEL)
    if not roles.labels and label is not None and all(truth(value) is not None for value in label.values or [None]):
        by_itself.add(LABEL)  # true and false are read by this name, for KTO as well
    return {
        key: column
        for key, column in roles.columns.items()
        if key in usual and column != usual[key] and not (key == "reward" and column in by_itself)
    }


def ignored(roles: Roles, columns: Mapping[str, Column]) -> list[str]:
    """The columns that are for nothing."""
    top = [name for name in columns if "." not in name] + [name.partition(".")[0] for name in columns]
    return [name for name in dict.fromkeys(top) if not roles.is_taken(name)]


def guess_columns(
    content: Content,
    data: DataSection,
    records: Callable[[], Iterable[Row]],
    *,
    option: Callable[[list[str]], str],
    scored: bool = False,
) -> None:
    """Name prompt, completion and score in the section `content` where the records call them otherwise; log what was.

    Args:
        content: as the user has set it; what is set stays.
        data: the same as it is read.
        records: reads them anew.
        option: `key=value`, several -> what the user types to set them.
        scored: functions give the scores, and none is looked for.

    Raises UserError where the columns do not tell for certain, with what to type if the likeliest is right.
    """
    if data.format in LAYOUTS or _are_named(records(), content, data, scored):
        return
    columns, number = count_columns(records())
    if not number:
        return
    questions = Questions(assume=True)
    with located(str(data.path)):
        roles = find_roles(columns, content, questions, scored=scored)
    for role in roles.columns.keys() - _GUESSED.keys():  # which these commands do not need
        if role in ColumnsSection.model_fields:
            del roles.columns[role]
    if not scored and roles.layout in ("rows", "messages") and "reward" not in roles.columns:
        free = {name: column for name, column in columns.items() if not roles.is_taken(name)}
        if why := no_score_in(free):
            raise UserError(f"{data.path}: {why}")
    given, found = content.get("columns") or {}, names_of(roles, columns)
    names = {key: found[key] for key in _GUESSED if key in found and key not in given}
    if questions.doubts:
        typed = [f"data.columns.{key}={_as_yaml(column)}" for key, column in names.items()]
        if roles.labels:
            typed.append(f"data.labels={json.dumps(roles.labels, ensure_ascii=False)}")
        if roles.unscored:
            typed.append("data.on_bad_row=skip")
        raise UserError(
            f"{data.path}: it is not certain what the columns are for. {' '.join(questions.doubts)} "
            f"If the first is right, add: {option(typed)}"
        )
    if not names and not roles.labels:
        return
    content["columns"] = given | names
    if roles.labels:
        content["labels"] = roles.labels
    if roles.unscored:
        content.setdefault("on_bad_row", "skip")
    log.warning("%s", _said(roles, columns, content))


def _are_named(records: Iterable[Row], content: Content, data: DataSection, scored: bool) -> bool:
    """Whether prompt, completion and score stand in columns of the names that are read, or that the user has set."""
    first = [row for row in islice(records, _LOOKED_AT) if FAULT not in row]
    found = {name for row in first for name, _ in paths_of(row)}
    found |= {getattr(data.columns, role) for role in content.get("columns") or {}}
    columns = data.columns
    prompted = columns.prompt in found
    if columns.completion not in found:
        if found >= {"chosen", "rejected"} or "completions" in found:
            return prompted
        if "messages" not in found or prompted:
            return False
        prompted = True
    return prompted and (scored or columns.reward in found or label_is_reward(first, data))


def _as_yaml(text: str) -> str:
    plain = text.replace("_", "").replace(".", "").replace(" ", "")
    is_text = plain.isalpha() and plain.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "none")
    return text if is_text else json.dumps(text, ensure_ascii=False)


def as_set(settings: list[str]) -> str:
    """Options of the command line."""
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)


def as_overrides(settings: list[str]) -> str:
    """An argument in Python."""
    return f"overrides={settings!r}"


def _said(roles: Roles, columns: Mapping[str, Column], content: Content) -> str:
    """`Read 'question' as the prompt, 'stars' (1 to 5) as the score; ignored: id`."""
    taken = [
        f"'{roles.columns[role]}'{_range(roles, columns) if role == 'reward' else ''} as the {word}"
        for role, word in _GUESSED.items()
        if role in roles.columns
    ]
    sign = (content.get("table") or {}).get("delimiter")
    parted = f"columns parted by {sign!r}; " if sign else ""
    unused = ignored(roles, columns)
    rest = first_few(map(repr, unused), len(unused))
    return f"Read {', '.join(taken)}; {parted}other columns ignored: {rest or 'none'}"


def _range(roles: Roles, columns: Mapping[str, Column]) -> str:
    """What the scores are: an id or a year is seen by it."""
    if roles.labels:
        no_score = [f"rows of {word} are left out" for word in roles.unscored]
        return f" ({', '.join([f'{word}: {worth:g}' for word, worth in roles.labels.items()] + no_score)})"
    reward = columns.get(roles.columns["reward"])
    return f" ({reward.low:g} to {reward.high:g})" if reward is not None and reward.kind == NUMBER else ""
