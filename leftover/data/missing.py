"""What columns are usually called; and what is said of one that the records lack: what was probably meant."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leftover.errors import closest, shortened
from leftover.recipe.data_section import DataSection

# What others call the columns that we look for by default, the likeliest first.
USUAL_NAMES = {
    "prompt": (
        "question", "instruction", "query", "input", "context", "post", "title", "messages",
        "user_message", "user_input", "request", "user", "message", "ticket",
    ),
    "completion": (
        "response", "answer", "output", "reply", "target", "generation", "text", "content",
        "assistant_message", "model_output", "model_response", "generated_text", "assistant", "summary",
    ),
    "reward": (
        "score", "rating", "label", "grade", "stars", "points", "upvotes", "rewards",
        "thumbs", "thumb", "feedback", "vote", "votes", "liked", "helpful", "is_helpful", "quality", "correct",
        "is_correct", "user_rating", "user_feedback",
    ),
    "chosen": ("preferred", "better", "accepted", "winner", "chosen_response", "response_chosen"),
    "rejected": ("dispreferred", "worse", "declined", "loser", "rejected_response", "response_rejected"),
    "completions": ("responses", "answers", "outputs", "replies", "generations", "candidates", "samples"),
    "rewards": ("scores", "ratings", "labels", "grades"),
    "messages": ("conversation", "conversations", "chat", "dialog", "dialogue", "turns"),
    "answer": ("gold", "gold_answer", "expected", "expected_answer", "ground_truth", "reference_answer", "solution"),
    "family": ("conversation_id", "thread_id", "session_id", "dialog_id", "dialogue_id", "story_id", "document_id"),
}  # fmt: skip
_TEXTS = ("prompt", "completion")
# How alike two names are, of 1: a slip of the pen ("promt"), or one that may mean another thing ("prompt_id").
ALMOST, _SOMEWHAT = 0.85, 0.6


def no_column(names: Sequence[str], row: Mapping[str, Any], purpose: str = "", remedy: str = "") -> str:
    """The fault of a record without these columns; `purpose` is what they are for, `remedy` where others are named."""
    # Without filled templates and keys of our own.
    found = sorted(str(column) for column in row if "{" not in str(column) and not str(column).startswith("__"))
    said = f"no column {names[0]!r}{purpose} (found: {shortened(', '.join(found)) or 'none'})"
    said += "".join(f", and no column {name!r}" for name in names[1:]) + remedy
    if meant := {name: column for name in names if (column := _meant(name, row))}:
        return f"{said}; did you mean {' and '.join(map(repr, meant.values()))}?"
    return said


def documents_remedy(data: DataSection) -> str:
    """What documents are told apart by, if that is what the rows are."""
    separator = data.documents.separator
    if data.format != "documents":
        return ""
    return (
        f"; documents end at lines {separator!r}: name what stands between yours in data.documents.separator ('' for "
        "empty lines)"
    )


def _meant(name: str, row: Mapping[str, Any]) -> str | None:
    """The column, also inside nested records, that a name most likely stands for.

    One that is spelt almost alike, else one that others call so, else one that is spelt somewhat alike. A column that
    cannot hold what is sought (a number for a prompt, a record for a score) is none of them.
    """
    paths = [path for path, value in paths_of(row) if "{" not in path and _may_be(name, value)]
    inside = {path.rpartition(".")[2]: path for path in reversed(paths) if path not in row}
    top = {path: path for path in paths if path in row}
    lower = {end.lower(): path for end, path in [*inside.items(), *top.items()]}
    usual = next((lower[usual] for usual in USUAL_NAMES.get(name, ()) if usual in lower), None)
    for cutoff in (ALMOST, _SOMEWHAT):
        for columns, sought in ((top, name), (inside, name.rpartition(".")[2])):
            if close := closest(sought, columns, cutoff):
                return columns[close]
        if usual:
            return usual
    return None


def _may_be(name: str, value: Any) -> bool:
    """Whether a cell could be what the column of this name holds; an empty one tells nothing."""
    if name == "reward":
        return not isinstance(value, (Mapping, list))
    if are_turns(value):  # a conversation that an assistant ends is more than a prompt
        return value[-1].get("role") != "assistant" if name == "prompt" else len(value) == 1
    return name not in _TEXTS or value is None or isinstance(value, str)


def are_turns(value: Any) -> bool:
    """Whether a cell is a list of messages."""
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)


def paths_of(value: Any, before: str = "", depth: int = 5) -> Iterator[tuple[str, Any]]:
    """Names of the columns with their cells, and dotted ones of what the records and lists in them hold."""
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value[:1]):
        yield f"{before}{name}", inner
        if isinstance(inner, (Mapping, list)) and depth and not are_turns(inner):
            yield from paths_of(inner, f"{before}{name}.", depth - 1)
