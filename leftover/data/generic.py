"""Records in the users' own columns -> rows: pairs, groups of completions, conversations, templates."""

from collections.abc import Iterator
from typing import Any

from leftover.data.records import FAULT, LEFT_OUT, Located, Record, fill_templates
from leftover.recipe.sections import ColumnsSection, DataSection


def expand_record(record: Record, data: DataSection) -> Iterator[Located]:
    """The rows of one record: itself, two of a pair, one a completion of a group, or the last turn of a conversation.

    Raises ValueError for a record that says two things.
    """
    columns = data.columns
    row = fill_templates(record.row, columns)
    if columns.completion in row:
        yield record.where, row
    elif "chosen" in row and "rejected" in row:
        yield from expand_pair(record.where, row, columns)
    elif "completions" in row:
        yield from _group(record.where, row, columns)
    elif "messages" in row and columns.prompt not in row:
        yield record.where, _conversation(row, columns)
    else:
        yield record.where, row


def expand_pair(where: str, row: dict[str, Any], columns: ColumnsSection | None = None) -> Iterator[Located]:
    """One row as it is; a `chosen`/`rejected` pair as two rows that share a prompt.

    Scores come from `chosen_reward` and `rejected_reward` (or `_score`); a pair that has neither says that the
    chosen one is better and no more: 1 and 0.
    """
    columns = columns or ColumnsSection()
    if "chosen" not in row or "rejected" not in row or columns.completion in row:
        yield where, row
        return
    if row.get(columns.reward) is not None:
        one = f"a chosen/rejected pair with one '{columns.reward}': give chosen_reward and rejected_reward"
        yield where, row | {FAULT: one}
        return
    rest = {k: v for k, v in row.items() if not k.startswith(("chosen", "rejected"))}
    scores = {side: row.get(f"{side}_score", row.get(f"{side}_reward")) for side in ("chosen", "rejected")}
    if scores == {"chosen": None, "rejected": None}:
        scores = {"chosen": 1.0, "rejected": 0.0}
    if row["chosen"] == row["rejected"] and len(set(scores.values())) > 1:
        yield where, {LEFT_OUT: "whose chosen and rejected completion are the same"}
        return
    for side in ("chosen", "rejected"):
        prompt, completion = rest.get(columns.prompt), row[side]
        if isinstance(completion, list) and prompt is None:  # implicit prompt: all turns but the last
            prompt, completion = completion[:-1], completion[-1:]
        extra = {"is_chosen": side == "chosen", columns.reward: scores[side]}
        yield f"{where} {side}", rest | {columns.prompt: prompt, columns.completion: completion} | extra


def _group(where: str, row: dict[str, Any], columns: ColumnsSection) -> Iterator[Located]:
    """`completions` and, where there are scores, `rewards` of the same length: one row a completion."""
    completions, rewards = row["completions"], row.get("rewards")
    if not isinstance(completions, list) or not completions:
        raise ValueError(f"'completions' is not a list of completions: {completions!r:.60}")
    if rewards is not None and (not isinstance(rewards, list) or len(rewards) != len(completions)):
        raise ValueError(f"'rewards' is not a list of {len(completions)} scores, one a completion: {rewards!r:.60}")
    if row.get(columns.reward) is not None:
        raise ValueError(f"a group of completions with one '{columns.reward}': give 'rewards', one a completion")
    rest = {name: value for name, value in row.items() if name not in ("completions", "rewards")}
    for i, completion in enumerate(completions):
        scored = {columns.completion: completion, columns.reward: rewards[i] if rewards is not None else None}
        yield f"{where} completion {i}", rest | scored


def _conversation(row: dict[str, Any], columns: ColumnsSection) -> dict[str, Any]:
    """`messages` that end in an assistant turn: the turns before it are the prompt; either may hold the score."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or len(messages) < 2:
        raise ValueError(f"'messages' is not a list of at least two {{role, content}} messages: {messages!r:.60}")
    if messages[-1].get("role") != "assistant":
        raise ValueError(f"the last of 'messages' is of the role {messages[-1].get('role')!r}, not 'assistant'")
    rest = {name: value for name, value in row.items() if name != "messages"}
    if rest.get(columns.reward) is None:
        rest[columns.reward] = messages[-1].get(columns.reward)
    # Scores of turns are no part of the prompt: rows of one prompt would no longer be of one group.
    turns = [{name: value for name, value in turn.items() if name != columns.reward} for turn in messages]
    return rest | {columns.prompt: turns[:-1], columns.completion: turns[-1:]}
