"""Reddit: comments with their parents (Kaggle's reddit-comment-score-prediction), and tables of posts with votes."""

import math

from leftover.data.records import LEFT_OUT, Record, Row, fill, layout_row, number_of, text_of
from leftover.recipe.data_section import DataSection

_PROMPTS = {
    "reply": "{parent_text}\n",
    "body": "r/{subreddit}: {title}\n\n",
    "title": "r/{subreddit}: {title_start}",
}
# The columns of a prompt's text and of a completion's.
_COLUMNS = {"reply": ("parent_text", "text"), "body": ("title", "selftext"), "title": ("title", "title")}
_DELETED = {"[deleted]", "[removed]"}


def reddit_row(record: Record, data: DataSection) -> Row:
    """One comment or post as one row. The family of a comment is its thread (`link_id`), of a post its prompt."""
    settings, columns = data.reddit, data.columns
    purpose = f" for data.reddit.completion: {settings.completion}"
    names = _COLUMNS[settings.completion]
    texts = {name: text_of(record.row, name, purpose) for name in names}
    if not all(texts.values()):
        return {LEFT_OUT: f"without {' or '.join(names)}"}
    if settings.deleted == "drop" and _DELETED & set(texts.values()):
        return {LEFT_OUT: "whose text was deleted"}
    row = record.row | texts | {"subreddit": record.row.get("subreddit") or record.source.rpartition("/")[2]}
    completion = texts[names[1]]
    if settings.completion == "title":
        words = completion.split()
        row["title_start"], rest = " ".join(words[: settings.split_words]), words[settings.split_words :]
        if not rest:
            return {LEFT_OUT: f"with a title of at most {settings.split_words} words"}
        completion = " " + " ".join(rest)
    prompt = fill(settings.prompt or _PROMPTS[settings.completion], row)
    made = {
        columns.prompt: [{"role": "user", "content": prompt.strip()}] if settings.style == "chat" else prompt,
        columns.completion: completion.strip() if settings.style == "chat" else completion,
        columns.reward: _reward(record.row, settings.reward),
    }
    thread = row.get("link_id") if settings.completion == "reply" else None
    return layout_row(record.row, columns, made, family=thread or None)


def _reward(row: Row, kind: str) -> float | None:
    """The score; the share of up-votes; or sign(s) log(1 + |s|), which is log(1 + s) for a score s >= 0."""
    if kind == "ratio":
        ups, downs = number_of(row, "ups"), number_of(row, "downs")
        return None if ups is None or downs is None or ups + downs == 0 else ups / (ups + downs)
    score = number_of(row, "score")
    if score is None or kind == "score":
        return score
    return math.copysign(math.log1p(abs(score)), score)
