"""Knowledge-grounded dialogue: Wizard of Wikipedia, FaithDial, Topical-Chat, BEGIN. One row a reply."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from leftover.data.records import LEFT_OUT, Located, Record, Row, fill, layout_row, text_of
from leftover.errors import shortened
from leftover.recipe.data_section import DataSection, DialogueSection

Turns = list[dict[str, str]]

_NO_PASSAGE = "no_passages_used"  # Wizard of Wikipedia: the wizard used none of the sentences shown
_TITLE_END = "__knowledge__"  # between the title and the sentence


class Reply(NamedTuple):
    """A reply with what came before it."""

    history: Turns
    knowledge: str
    text: str
    original: str = ""  # FaithDial: what the reply was edited from
    fields: Mapping[str, Any] | None = None  # columns that belong to this turn


def expand_dialogue(record: Record, data: DataSection) -> Iterator[Located]:
    """The rows of a conversation, or of one reply with its history. The conversation is the family."""
    settings, columns = data.dialogue, data.columns
    form = next((replies for name, replies in _FORMS.items() if name in record.row), None)
    if form is None:
        raise ValueError(
            "not a dialogue: none of the columns dialog (Wizard of Wikipedia), utterances (FaithDial), content "
            "(Topical-Chat), response (one reply a record) (found: "
            f"{shortened(', '.join(sorted(record.row))) or 'none'})"
        )
    for turn, reply in enumerate(form(record.row), start=1):
        where = record.where if isinstance(record.row.get("response"), str) else f"{record.where} reply {turn}"
        if not reply.knowledge and settings.without_knowledge == "drop":
            yield where, {LEFT_OUT: "without knowledge (data.dialogue.without_knowledge: drop)"}
            continue
        if not reply.history and settings.without_history == "drop":
            yield where, {LEFT_OUT: "that open a conversation (data.dialogue.without_history: drop)"}
            continue
        fields = record.row | dict(reply.fields or {})
        made = {columns.reward: fields[columns.reward]} if fields.get(columns.reward) is not None else {}
        made[columns.prompt] = _prompt(reply, fields, settings)
        row = layout_row(fields, columns, made, family=_family(record, reply))
        for text, is_chosen in _texts(reply, settings):
            yield where, row | {columns.completion: text} | ({} if is_chosen is None else {"is_chosen": is_chosen})


def _family(record: Record, reply: Reply) -> str:
    """The conversation by its number or id; that of a reply without either by its knowledge.

    The systems that replied in BEGIN were given one passage in several spellings: case and marks do not count.
    """
    row = record.row
    if row.get("dialog_idx") is not None:
        return f"{record.source}#{row['dialog_idx']}"
    if isinstance(row.get("response"), str) and (reply.knowledge or reply.history):
        return " ".join(re.findall(r"\w+", (reply.knowledge or reply.history[0]["content"]).casefold()))
    return f"{record.source}#{record.number if row.get('id') is None else row['id']}"


def _prompt(reply: Reply, row: Row, settings: DialogueSection) -> Turns | str:
    knowledge = fill(settings.knowledge, row | {"knowledge": reply.knowledge}) if reply.knowledge else None
    history = reply.history[-settings.max_history_turns :] if settings.max_history_turns else reply.history
    if settings.style == "chat":
        return ([{"role": "system", "content": knowledge}] if knowledge else []) + history
    parts = ([knowledge] if knowledge else []) + [turn["content"] for turn in history]
    return "".join(part + settings.separator for part in parts)


def _texts(reply: Reply, settings: DialogueSection) -> list[tuple[str, bool | None]]:
    """The completions, each with whether it is the edited one of two."""
    if not reply.original or settings.response == "edited":
        return [(reply.text, True if settings.response == "both" else None)]
    if settings.response == "original":
        return [(reply.original, None)]
    return [(reply.text, True), (reply.original, False)]


def _wizard(row: Row) -> Iterator[Reply]:
    """Wizard of Wikipedia (arXiv 1811.01241): the turns of the Wizard, with the sentence it chose."""
    history: Turns = []
    for turn in _list(row, "dialog"):
        text, speaker = text_of(turn, "text"), text_of(turn, "speaker")
        if not speaker.endswith(("Wizard", "Apprentice")):
            raise ValueError(f"the speaker of a turn is '{speaker}', neither Wizard nor Apprentice")
        is_reply = speaker.endswith("Wizard")
        if is_reply:
            checked = turn.get("checked_sentence") or {}
            # Where all turns share one type, as on the Hub, a turn has the keys of the others too.
            sentence = next((text for text in checked.values() if text), "")
            yield Reply(list(history), "" if sentence == _NO_PASSAGE else sentence.strip(), text, fields=turn)
        history.append({"role": "assistant" if is_reply else "user", "content": text})


def _parallel(row: Row) -> Iterator[Reply]:
    """Wizard of Wikipedia as lists of the same length: post, response, knowledge shown, number of the one chosen."""
    history: Turns = []
    columns = [_list(row, name, dict | list | str | int) for name in ("post", "response", "knowledge", "labels")]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("post, response, knowledge and labels are lists of unequal length")
    for post, response, shown, label in zip(*columns, strict=True):
        if post.strip():
            history.append({"role": "user", "content": post.strip()})
        sentence = shown[label] if isinstance(label, int) and 0 <= label < len(shown) else ""
        sentence = sentence.rpartition(_TITLE_END)[2].strip()
        yield Reply(list(history), "" if sentence == _NO_PASSAGE else sentence, response.strip())
        history.append({"role": "assistant", "content": response.strip()})


def _faithdial(row: Row) -> Iterator[Reply]:
    """FaithDial (arXiv 2204.10757): utterances that each hold their history."""
    for utterance in _list(row, "utterances"):
        if "response" in utterance:
            yield from _flat(utterance)


def _topical(row: Row) -> Iterator[Reply]:
    """Topical-Chat (arXiv 2308.11995): two agents without roles, so that every turn is a reply to the other's."""
    said: list[tuple[str, str]] = []
    for turn in _list(row, "content"):
        agent, message, knowledge = text_of(turn, "agent"), turn.get("message"), turn.get("knowledge")
        if isinstance(message, list):  # enriched Topical-Chat gives it in segments
            message = " ".join(message)
        if not isinstance(message, str):
            raise ValueError(f"'message' is not a text: {message!r:.60}")
        history = [{"role": "assistant" if other == agent else "user", "content": text} for other, text in said]
        yield Reply(history, knowledge.strip() if isinstance(knowledge, str) else "", message.strip(), fields=turn)
        said.append((agent, message.strip()))


def _flat(row: Row) -> Iterator[Reply]:
    """One reply: knowledge, response, and history (a list of turns) or message (the last one)."""
    if isinstance(row["response"], list):
        yield from _parallel(row)
        return
    if "history" in row and not isinstance(row["history"], str):
        said = [turn.strip() for turn in _list(row, "history", str)]
    else:
        said = [text] if (text := text_of(row, "history" if "history" in row else "message")) else []
    # The reply is the assistant's, so the turn before it is the user's.
    roles = ("user", "assistant")
    history = [{"role": roles[(len(said) - 1 - i) % 2], "content": turn} for i, turn in enumerate(said)]
    original = text_of(row, "original_response") if "original_response" in row else ""
    yield Reply(history, text_of(row, "knowledge"), text_of(row, "response"), original, row)


def _list(row: Row, name: str, of: Any = dict) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
        raise ValueError(f"'{name}' is not a list of {'turns' if of is dict else 'the expected kind'}: {value!r:.60}")
    return value


# The column by which each form is known.
_FORMS = {"dialog": _wizard, "utterances": _faithdial, "content": _topical, "response": _flat}
