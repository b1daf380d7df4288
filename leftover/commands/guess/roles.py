"""Which column is the prompt, which the completion, which the score: by their names, else by what stands in them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from leftover.commands.guess.ask import NONE, Questions
from leftover.commands.guess.columns import ANSWERED, ASKED, NUMBER, NUMBERS, PARTS, TEXT, TEXTS, TRUTH, Column
from leftover.commands.guess.worth import is_no_score, known_worths
from leftover.data.missing import ALMOST, USUAL_NAMES
from leftover.errors import UserError, closest
from leftover.recipe.data_section import ColumnsSection

Columns = Mapping[str, Column]

BY_NAME, BY_CONTENT, SET = "by its name", "by its content", "as you said"
TWO_PARTS = "{instruction}\n{input}"  # a prompt that many data sets part so
_SHORT_ANSWER = 40  # characters that a known answer has at most, on average
_FREE_TEXT = 8  # characters that texts have at least, on average
# Numbers that say something about a row, and not how good it is.
_NO_SCORE = re.compile(
    r"(^|_)(id|ids|idx|index|uuid|row|line|time|timestamp|date|day|hour|year|age|count|num|number|n|length|len|words|"
    r"tokens|seed|temperature|top_p|top_k|price|cost|latency|duration|seconds|ms|version|turn|phone|zip)(_|$)"
)


@dataclass
class Roles:
    """What the columns are for. `layout`: rows, pairs, groups or messages."""

    layout: str
    columns: dict[str, str] = field(default_factory=dict)  # key of data.columns, or a fixed name -> column
    why: dict[str, str] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)  # what words of the reward are worth
    unscored: list[str] = field(default_factory=list)  # words of the reward that are no score

    def take(self, role: str, column: str, why: str) -> None:
        self.columns[role], self.why[role] = column, why

    def is_taken(self, name: str) -> bool:
        """Whether a column, or one inside it, is used."""
        used = re.compile(rf"(^|{{){re.escape(name)}(}}|\.|$)")
        return any(used.search(column) for column in self.columns.values())


def named(role: str, columns: Columns, *kinds: str) -> list[str]:
    """The columns of these kinds that are called so, or as others call it, or almost so; the likeliest first."""
    usual = [role, *USUAL_NAMES.get(role, ())]
    found = dict[str, tuple[int, int]]()
    for name, column in columns.items():
        plain = re.sub(r"[\W_]+", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", name.rpartition(".")[2])).strip("_").lower()
        if column.kind not in kinds:
            continue
        if plain in usual:
            found[name] = (usual.index(plain), name.count("."))
        elif closest(plain, [role], ALMOST):
            found[name] = (0, 1 + name.count("."))
    return sorted(found, key=found.__getitem__)


def find_roles(columns: Columns, given: Mapping[str, Any], questions: Questions, *, scored: bool = False) -> Roles:
    """What the columns of a file are for.

    Args:
        given: of `data`, what the user has set: `columns`, `labels`.
        scored: functions give the scores, and no column of them is looked for.

    Raises UserError for rows that no recipe can read as they are, with what has to be done to them.
    """
    roles = Roles(_layout(columns))
    for role, column in (given.get("columns") or {}).items():
        if column is not None:
            roles.take(role, str(column), SET)
    if roles.layout == "rows":
        _refuse_other_names(columns)
        _take_texts(roles, columns, questions)
    elif roles.layout == "messages":
        roles.take("messages", "messages", BY_NAME)
    else:
        for name in ("chosen", "rejected") if roles.layout == "pairs" else ("completions",):
            roles.take(name, name, BY_NAME)
        if "prompt" not in roles.columns and (prompts := named("prompt", columns, TEXT, ASKED)):
            roles.take("prompt", prompts[0], BY_NAME)
    if not scored:
        _take_reward(roles, columns, given, questions)
    for role in ("family", "answer"):
        found = [name for name in named(role, columns, TEXT, NUMBER) if not roles.is_taken(name)]
        if role not in roles.columns and found and _serves(role, columns[found[0]], roles):
            roles.take(role, found[0], BY_NAME)
    for role in ("source", "split", "tools"):  # which are read by these names alone
        if role not in roles.columns and role in columns:
            roles.take(role, role, BY_NAME)
    return roles


def _layout(columns: Columns) -> str:
    """As `leftover.data.generic` tells them."""
    completion = ColumnsSection().completion
    if completion in columns:
        return "rows"
    if columns.keys() >= {"chosen", "rejected"}:
        return "pairs"
    if "completions" in columns and columns["completions"].kind == TEXTS:
        return "groups"
    if "messages" in columns and columns["messages"].kind == ANSWERED and not named("completion", columns, TEXT):
        return "messages"
    return "rows"


def _refuse_other_names(columns: Columns) -> None:
    """Pairs, groups and conversations are read by their own names alone."""
    pair = {found[0]: side for side in ("chosen", "rejected") if (found := named(side, columns, TEXT, ASKED, ANSWERED))}
    if len(pair) > 1:
        _refuse_name("a preference pair", pair)
    if named("completion", columns, TEXT, ASKED):
        return
    if found := named("completions", columns, TEXTS):
        scores = named("rewards", columns, NUMBERS)
        _refuse_name(
            "several completions of a prompt", {found[0]: "completions"} | dict.fromkeys(scores[:1], "rewards")
        )
    if found := named("messages", columns, ANSWERED):
        _refuse_name("conversations that an answer ends", {found[0]: "messages"})
    if found := named("messages", columns, PARTS):
        raise UserError(
            f"the column '{found[0]}' is a list of records that are no messages: write each as {{role, content}}, with "
            "the roles system, user and assistant, and call the column 'messages'"
        )


def _refuse_name(what: str, names: dict[str, str]) -> None:
    said = " and ".join(f"'{old}' '{new}'" for old, new in names.items())
    raise UserError(f"{' and '.join(map(repr, names))} look like {what}, which is read by other names: call {said}")


def _take_texts(roles: Roles, columns: Columns, questions: Questions) -> None:
    """Prompt and completion of rows that hold one of each."""
    for role in ("completion", "prompt"):
        found = [name for name in named(role, columns, TEXT, ASKED) if not roles.is_taken(name)]
        if role not in roles.columns and found:
            roles.take(role, found[0], BY_NAME)
    if roles.columns.get("prompt") == "instruction" and "input" in columns and not roles.is_taken("input"):
        roles.take("prompt", TWO_PARTS, BY_NAME)
    for role, other in (("prompt", "completion"), ("completion", "prompt")):
        if role in roles.columns:
            continue
        free = [c.name for c in columns.values() if _is_free_text(c) and not roles.is_taken(c.name)]
        if not free:
            _refuse_without(role, roles, columns)
        certain = len(free) == 1 and other in roles.columns
        remedy = f"name it by --set data.columns.{role}=COLUMN"
        chosen = free[0] if certain else questions.choose(f"Which column is the {role}?", free, remedy)
        roles.take(role, chosen, BY_CONTENT)


def _is_free_text(column: Column) -> bool:
    return column.kind == TEXT and column.values is None and column.mean_length >= _FREE_TEXT and "." not in column.name


def _refuse_without(role: str, roles: Roles, columns: Columns) -> None:
    found = ", ".join(name for name in columns if "." not in name) or "none"
    if role == "completion":
        raise UserError(
            f"there is no column of completions (found: {found}): name it by --set data.columns.completion=COLUMN. Of "
            "prompts alone, have a model write some first: leftover generate MODEL ROWS --n 8 --reward reward.yaml "
            "--output scored.jsonl"
        )
    raise UserError(
        f"there is no column of prompts (found: {found}): name it by --set data.columns.prompt=COLUMN, or give all "
        "rows one prompt by --set 'data.columns.prompt={text: \"Title: \"}'"
    )


def _take_reward(roles: Roles, columns: Columns, given: Mapping[str, Any], questions: Questions) -> None:
    """The recorded score, if there is one; asks where several columns could be it, or only the content tells."""
    if roles.layout in ("pairs", "groups"):
        for name in ("chosen_score", "rejected_score", "chosen_reward", "rejected_reward", "rewards"):
            if name in columns:
                roles.take(name, name, BY_NAME)
        return
    if "reward" not in roles.columns and (found := _likely_rewards(roles, columns)):
        names, certain = found
        none = [] if certain else [NONE]
        remedy = "name another by --set data.columns.reward=COLUMN"
        sure = certain and len(names) == 1
        choice = names[0] if sure else questions.choose("Which column is the score?", [*names, *none], remedy)
        if choice in names:
            roles.take("reward", choice, BY_NAME if certain else BY_CONTENT)
    reward = columns.get(roles.columns.get("reward", ""))
    if reward is not None and reward.kind == TEXT:
        _take_words(roles, reward, given, questions)


def _likely_rewards(roles: Roles, columns: Columns) -> tuple[list[str], bool] | None:
    """Columns that may be the score, the likeliest first, and whether they are called so."""
    free = {name: column for name, column in columns.items() if not roles.is_taken(name) and _may_score(column)}
    if found := named("reward", free, NUMBER, TRUTH, TEXT):
        found.sort(key=lambda name: free[name].counts)
        return found, not free[found[0]].counts
    marks = [name for name, column in free.items() if column.kind == TRUTH or column.kind == TEXT]
    others = named("answer", free, NUMBER)
    numbers = [n for n, c in free.items() if c.kind == NUMBER and n not in others and not _NO_SCORE.search(n.lower())]
    return (marks + numbers, False) if marks or numbers else None


def no_score_in(columns: Columns) -> str | None:
    """Why a column that is called as a score is none; None if no column is called so."""
    found = named("reward", columns, NUMBER, TRUTH, TEXT)
    column = columns[found[0]] if found else None
    if column is None:
        return None
    if not column.differs:
        value = next(iter(column.values or ()), "")
        return f"the column '{column.name}' is {value} in every row, and tells no row from another"
    return f"the column '{column.name}' holds texts such as '{column.sample:.40}': write them as numbers (3.5)"


def first_few(words: Iterable[str], number: int, most: int = 10) -> str:
    """`a, b, ... and 12 more`."""
    more = f" and {number - most:,} more" if number > most else ""
    return ", ".join(islice(words, most)) + more


def _may_score(column: Column) -> bool:
    """Whether cells differ, and are numbers, truth values or a few words of which some say how good a row is."""
    if not column.differs or column.name.rpartition(".")[2].isdecimal():
        return False
    if column.kind != TEXT:
        return column.kind in (NUMBER, TRUTH)
    words = [] if column.values is None else list(column.values)
    named_so = bool(named("reward", {column.name: column}, TEXT))
    return len(set(known_worths(words).values())) > 1 or (named_so and bool(words))


def _take_words(roles: Roles, column: Column, given: Mapping[str, Any], questions: Questions) -> None:
    """What the words of a reward are worth: as the user has set, as is known, else as the user says."""
    if given.get("labels"):
        return
    remedy = f"set it by --set 'data.labels={{WORD: NUMBER, ...}}' (the column '{column.name}')"
    if column.values is None:
        raise UserError(
            f"the column '{column.name}' holds too many different texts to be classes, such as '{column.sample:.40}': "
            f"write them as numbers (3.5), or {remedy}"
        )
    roles.labels = known_worths(column.values)
    for word in column.values:
        if word in roles.labels:
            continue
        if is_no_score(word):
            roles.unscored.append(word)
        elif not questions.assume:
            worth = questions.worth(word, remedy)
            roles.labels |= {} if worth is None else {word: worth}
            roles.unscored += [word] if worth is None else []
        else:
            roles.unscored.append(word)
            questions.assumed.append(f"What is '{word}' worth? Took it for no score; {remedy}")
            questions.doubts.append(f"What is '{word}' worth?")
    if len(set(roles.labels.values())) < 2:
        words = first_few(map(repr, column.values), len(column.values))
        raise UserError(f"nothing is known of what {words} are worth; {remedy}")


def _serves(role: str, column: Column, roles: Roles) -> bool:
    """A family has several rows; an answer is short, and is only asked for where nothing else scores."""
    if role == "family":
        return column.values is None or max(column.values.values(), default=0) > 1
    scored = "reward" in roles.columns or roles.layout != "rows"
    return not scored and (column.kind == NUMBER or column.mean_length <= _SHORT_ANSWER)
