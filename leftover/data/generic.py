"""Records in the users' own columns -> rows: pairs, groups of completions, conversations, templates."""

from collections.abc import Iterator

from leftover.data.labels import with_label
from leftover.data.records import FAULT, LEFT_OUT, Located, Record, Row, cell, fill_templates
from leftover.errors import shortened
from leftover.recipe.data_section import ColumnsSection, DataSection

_SIDES = ("chosen", "rejected")


def expand_record(record: Record, data: DataSection) -> Iterator[Located]:
    """The rows of one record: itself, two of a pair, one for each completion of a group, or one of a conversation."""
    columns = data.columns
    row = fill_templates(record.row, columns)
    given = {name for name, value in row.items() if value is not None}  # data sets fill columns of other rows with None
    if columns.completion in given:
        yield record.where, with_label(row, data) if record.labelled else row
    elif given & {*_SIDES} and row.keys() >= {*_SIDES}:
        yield from expand_pair(record.where, row, columns)
    elif "completions" in given:
        yield from _group(record.where, row, columns)
    elif "messages" in given and columns.prompt not in given:
        found = _conversation(row, columns)
        yield record.where, with_label(found, data) if record.labelled else found
    else:
        yield record.where, row


def expand_pair(where: str, row: Row, columns: ColumnsSection) -> Iterator[Located]:
    """Two rows that share a prompt, scored by `chosen_reward` and `rejected_reward` (or `_score`), else as 1 and 0."""
    if row.get(columns.reward) is not None:
        raise ValueError(f"a chosen/rejected pair with one '{columns.reward}': give chosen_reward and rejected_reward")
    rest = {name: value for name, value in row.items() if not name.startswith(_SIDES)}
    scores = {side: row.get(f"{side}_score", row.get(f"{side}_reward")) for side in _SIDES}
    if scores == {"chosen": None, "rejected": None}:
        scores = {"chosen": 1.0, "rejected": 0.0}
    if row["chosen"] == row["rejected"] and len(set(scores.values())) > 1:
        yield where, {LEFT_OUT: "whose chosen and rejected completion are the same"}
        return
    for side in _SIDES:
        try:
            prompt, completion = _side(row, side, columns)
        except ValueError as error:  # both sides are faulty rows
            yield f"{where} {side}", row | {FAULT: str(error)}
            continue
        extra = {"is_chosen": side == "chosen", columns.reward: scores[side]}
        yield f"{where} {side}", rest | {columns.prompt: prompt, columns.completion: completion} | extra


def _side(row: Row, side: str, columns: ColumnsSection) -> tuple[object, object]:
    """Prompt and completion of one side of a pair, which may hold its prompt. Raises ValueError if there is none.

    A conversation's prompt is all turns but the last, also where a column repeats it as text. Two texts without a
    prompt share their beginning (TRL's implicit prompt): up to the word in which they part, whose space is the
    completions'.
    """
    given, whole = row.get(columns.prompt), row[side]
    if isinstance(whole, list) and (given is None or (isinstance(given, str) and len(whole) > 1)):
        if len(whole) == 1:
            raise ValueError(f"no column '{columns.prompt}', and '{side}' has no turn before its last one")
        return whole[:-1], whole[-1:]
    by_default = columns.prompt == ColumnsSection().prompt  # a column that the user names must be there
    if given is None and by_default and all(isinstance(row[name], str) for name in _SIDES):
        cut = _where_they_part(row["chosen"], row["rejected"])
        if not whole[:cut].strip():
            found = shortened(", ".join(sorted(row)))
            raise ValueError(
                f"no column '{columns.prompt}', and 'chosen' and 'rejected' share no beginning that could be the "
                f"prompt (found: {found})"
            )
        return whole[:cut], whole[cut:]
    return cell(row, columns.prompt), whole


def _where_they_part(one: str, other: str) -> int:
    """Where the word begins in which two texts first differ; both have text from there on, unless one is empty."""
    shortest = min(len(one), len(other))
    cut = next((i for i in range(shortest) if one[i] != other[i]), shortest)
    if cut == shortest:  # one text is the beginning of the other: its last word is the completion
        cut -= len(one[:cut]) - len(one[:cut].rstrip())
        cut = max((i + 1 for i, mark in enumerate(one[:cut]) if mark.isspace()), default=0)
    while cut and one[cut - 1].isalnum() and (one[cut].isalnum() or other[cut].isalnum()):
        cut -= 1
    return cut - 1 if cut and one[cut - 1] == " " else cut


def _group(where: str, row: Row, columns: ColumnsSection) -> Iterator[Located]:
    """`completions` and, if there are scores, `rewards` of the same length: one row a completion."""
    rest = dict(row)
    completions, rewards = rest.pop("completions"), rest.pop("rewards", None)
    if not isinstance(completions, list) or not completions:
        raise ValueError(f"'completions' is not a list of completions: {completions!r:.60}")
    if rewards is not None and (not isinstance(rewards, list) or len(rewards) != len(completions)):
        raise ValueError(f"'rewards' is not a list of {len(completions)} scores, one a completion: {rewards!r:.60}")
    if row.get(columns.reward) is not None:
        raise ValueError(f"a group of completions with one '{columns.reward}': give 'rewards', one a completion")
    for i, (completion, reward) in enumerate(zip(completions, rewards or [None] * len(completions), strict=True)):
        yield f"{where} completion {i}", rest | {columns.completion: completion, columns.reward: reward}


def _conversation(row: Row, columns: ColumnsSection) -> Row:
    """`messages` that end in an assistant turn: the turns before it are the prompt; either may hold the score."""
    rest = dict(row)
    messages = rest.pop("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or len(messages) < 2:
        raise ValueError(f"'messages' is not a list of at least two {{role, content}} messages: {messages!r:.60}")
    if messages[-1].get("role") != "assistant":
        raise ValueError(f"the last of 'messages' has the role {messages[-1].get('role')!r}, not 'assistant'")
    if rest.get(columns.reward) is None:
        rest[columns.reward] = messages[-1].get(columns.reward)
    # Without the scores of turns, which would put rows of one prompt into several groups.
    turns = [{name: value for name, value in turn.items() if name != columns.reward} for turn in messages]
    return rest | {columns.prompt: turns[:-1], columns.completion: turns[-1:]}
