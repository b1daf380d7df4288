"""Reddit: comments with their parents (Kaggle's reddit-comment-score-prediction), and tables of posts with votes."""

import math
from collections.abc import Iterator
from typing import Any

from leftover.data.records import LEFT_OUT, Located, Record, fill, kept_columns, number_of, text_of
from leftover.recipe.sections import DataSection

_PROMPTS = {
    "reply": "{parent_text}\n",
    "body": "r/{subreddit}: {title}\n\n",
    "title": "r/{subreddit}: {title_start}",
}
# Where the text of a prompt or completion stands.
_COLUMNS = {"reply": ("parent_text", "text"), "body": ("title", "selftext"), "title": ("title", "title")}
_DELETED = ("[deleted]", "[removed]")


def expand_reddit(record: Record, data: DataSection) -> Iterator[Located]:
    """One comment or post as one row. The family of a comment is its thread (`link_id`), of a post its prompt.

    Rows without the text that a row needs are left out. Raises ValueError for a column that is not there.
    """
    settings, columns = data.reddit, data.columns
    first, second = _COLUMNS[settings.completion]
    missing = [name for name in (first, second) if name not in record.row]
    if missing:
        raise ValueError(
            f"no column '{missing[0]}', which data.reddit.completion: {settings.completion} reads "
            f"(found: {', '.join(sorted(record.row))})"
        )
    row = record.row | {name: text_of(record.row, name) for name in (first, second)}
    if not row[first] or not row[second]:
        yield record.where, {LEFT_OUT: f"without {first} or {second}"}
        return
    if settings.deleted == "drop" and (row[first] in _DELETED or row[second] in _DELETED):
        yield record.where, {LEFT_OUT: "whose text was deleted"}
        return
    row["subreddit"] = record.row.get("subreddit") or record.source.rpartition("/")[2]
    completion = row[second]
    if settings.completion == "title":
        words = row["title"].split()
        row["title_start"], rest = " ".join(words[: settings.split_words]), words[settings.split_words :]
        if not rest:
            yield record.where, {LEFT_OUT: f"with a title of at most {settings.split_words} words"}
            return
        completion = " " + " ".join(rest)
    prompt = fill(settings.prompt or _PROMPTS[settings.completion], row)
    family = {columns.family: row["link_id"]} if settings.completion == "reply" and row.get("link_id") else {}
    made = {
        columns.prompt: [{"role": "user", "content": prompt.strip()}] if settings.style == "chat" else prompt,
        columns.completion: completion.strip() if settings.style == "chat" else completion,
        columns.reward: _reward(record.row, settings.reward),
    }
    yield record.where, family | kept_columns(record.row, columns) | made


def _reward(row: dict[str, Any], kind: str) -> float | None:
    """The score; the share of up-votes; or sign(s) log(1 + |s|), which is log(1 + s) for a score s >= 0."""
    if kind == "ratio":
        ups, downs = number_of(row, "ups"), number_of(row, "downs")
        return None if ups is None or downs is None or ups + downs == 0 else ups / (ups + downs)
    score = number_of(row, "score")
    if score is None or kind == "score":
        return score
    return math.copysign(math.log1p(abs(score)), score)
