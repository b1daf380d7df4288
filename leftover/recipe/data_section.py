"""The section `data` of a recipe."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainSerializer, WrapValidator, field_validator, model_validator

from leftover.errors import RECIPE, SettingNames
from leftover.recipe.forms import OneOrMore, Section, TextKeys


class Constant(str):
    """`{text: ...}` in place of a column's name: one text for every row. The str is what its cell is called."""

    text: str

    def __new__(cls, text: str) -> Self:
        found = super().__new__(cls, f"{{text: {text}}}")
        found.text = text
        return found

    def __getnewargs__(self) -> tuple[str]:
        return (self.text,)


def _constant_or(value: Any, column: Callable[[Any], str]) -> str:
    if not isinstance(value, dict):
        return value if isinstance(value, Constant) else column(value)  # which would make a plain str of it
    if value.keys() != {"text"} or not isinstance(value["text"], str) or not value["text"].strip():
        raise ValueError("takes the name of a column, a template over columns, or {text: ...}, one text for all rows")
    return Constant(value["text"])


def _plain(value: str) -> Any:
    return {"text": value.text} if isinstance(value, Constant) else value


ColumnOrText = Annotated[str, WrapValidator(_constant_or), PlainSerializer(_plain, return_type=Any)]


class ColumnsSection(Section):
    """Names of the user's columns; a template over them ("{title}: {body}"), or a path into nested records ("a.b")."""

    prompt: ColumnOrText = "prompt"  # or {text: ...}: one prompt for all rows
    completion: str = "completion"  # what follows the prompt as it is
    reward: str = "reward"  # a recorded score; rows may lack it
    split: str | None = "split"  # the user's own splits: train, validation, test; null ignores them
    answer: str | None = None  # what a verifiable task should give, for the reward functions that compare with it
    tools: str = "tools"  # of a conversation: tools as the chat template takes them
    family: str = "family"  # rows of one story or conversation, kept on one side of every split
    source: str = "source"  # which data set a row comes from; default: its file or subset, if several are read


class TableSection(Section):
    """How CSV and TSV files are read, where their ending does not tell."""

    names: list[str] | None = Field(None, min_length=1)  # of the columns, for a file without a header line
    delimiter: str | None = Field(None, min_length=1, max_length=1)  # default: a comma, a tab in TSV
    quotes: bool | None = None  # whether double quotes enclose cells; default: in CSV yes, in TSV no


class DocumentsSection(Section):
    """How `format: documents` cuts plain text: sentences of prompt, then sentences of completion."""

    separator: str = "<|endoftext|>"  # between two documents of a file
    prompt_sentences: int = Field(3, gt=0)  # of a row
    completion_sentences: int = Field(1, gt=0)  # of a row, after those
    stride: int | None = Field(None, gt=0)  # sentences between two rows; default: they do not overlap


class CometSection(Section):
    """How `format: comet` writes a head, relation, tail triple of ATOMIC as text: templates over its columns."""

    # Template; COMET-distill was taught "<head> {head} </head> <relation> {relation} </relation> [GEN]".
    prompt: str = "{head} {relation} [GEN]"
    completion: str = " {tail}"  # template
    relations: list[str] | None = None  # the only ones to read; default: all
    # The column of the score. Default: data.columns.reward, or else p_valid_model (ATOMIC-10x), label or valid.
    score: str | None = None
    empty_tails: Literal["drop", "fault"] = "drop"  # fault: a bad row, see data.on_bad_row
    none_tails: Literal["drop", "keep"] = "drop"  # the word "none": the annotator saw nothing to say


class RedditSection(Section):
    """How `format: reddit` makes rows of comments or posts that have a score."""

    # A reply to its parent comment; the body of a titled post; or the title after its first `split_words` words.
    completion: Literal["reply", "body", "title"] = "reply"
    split_words: int = Field(5, gt=0)  # completion: title - words of the prompt
    # A template over the columns, {subreddit} and {title_start}. Default, in the order above: "{parent_text}\n",
    # "r/{subreddit}: {title}\n\n", "r/{subreddit}: {title_start}". DialoGPT takes "{parent_text}<|endoftext|>".
    prompt: str | None = None
    style: Literal["text", "chat"] = "text"  # chat: the prompt is a user's message
    # score: votes up less votes down; ratio: ups / (ups + downs); log_score: log(1 + score), odd about zero.
    reward: Literal["score", "ratio", "log_score"] = "score"
    deleted: Literal["drop", "keep"] = "drop"  # texts of which only the sign [deleted] or [removed] is left


class DialogueSection(Section):
    """How `format: dialogue` makes rows of conversations about a piece of knowledge: one a reply."""

    style: Literal["chat", "text"] = "chat"  # messages, the knowledge in a system turn; or turns joined to one text
    separator: str = "<|endoftext|>"  # text: after the knowledge and every turn
    knowledge: str = "Knowledge: {knowledge}"  # how the prompt gives the knowledge
    max_history_turns: int | None = Field(None, gt=0)  # default: all turns before the reply
    # FaithDial holds the edited reply and the one it was edited from; both: two rows of one prompt.
    response: Literal["edited", "original", "both"] = "edited"
    without_knowledge: Literal["drop", "keep"] = "drop"  # replies for which no knowledge was used
    without_history: Literal["drop", "keep"] = "drop"  # replies that open the conversation


Split = Literal["train", "validation", "test"]

# Ending of a file -> its format, with `format: auto`.
ENDINGS = {f".{kind}": kind for kind in ("jsonl", "json", "parquet", "csv", "tsv")} | {".ndjson": "jsonl"}


class DataSection(Section):
    names: ClassVar[SettingNames] = RECIPE  # what messages call these settings

    path: OneOrMore  # files, or ids of data sets on the Hub
    # The kind of the files (auto: by their names), or a published layout, over any kind except documents.
    format: Literal[
        "auto", "jsonl", "json", "parquet", "csv", "tsv", "hub", "documents", "hh", "comet", "reddit", "dialogue"
    ] = "auto"
    columns: ColumnsSection = ColumnsSection()
    # What a prompt that is a text becomes. chat: one message of a user, whose answer the completion is, so that an
    # instruct model is asked through its chat template, and reward functions get messages; text: it stays as it is.
    prompts: Literal["text", "chat"] = "text"
    labels: Annotated[dict[str, float], TextKeys] = {}  # what classes in the reward column are worth: {good: 1, bad: 0}
    split_names: Annotated[dict[str, Split], TextKeys] = {}  # further names in the split column, as {holdout: test}
    source_splits: dict[str, Split] = {}  # the split of every source, where files or subsets are splits
    table: TableSection = TableSection()
    documents: DocumentsSection = DocumentsSection()
    comet: CometSection = CometSection()
    reddit: RedditSection = RedditSection()
    dialogue: DialogueSection = DialogueSection()
    drop_listed: str | None = None  # format hh: the authors' JSON of bad rows, by file name
    hub_config: str | None = None  # configuration of a data set on the Hub
    hub_data_dir: OneOrMore | None = None  # and its subfolders (the subsets of Anthropic/hh-rlhf)
    hub_split: OneOrMore = "train"  # and its splits
    max_prompt_tokens: int = Field(512, gt=0)  # longer prompts are cut on the left
    max_completion_tokens: int = Field(128, gt=0)  # with the end of sequence
    long_completions: Literal["drop", "cut"] = "drop"  # rows that are longer; cut trains on rows that never end
    on_bad_row: Literal["error", "skip"] = "error"  # skip puts faulty rows aside, in rejected_rows.jsonl
    train_on: Literal["all", "chosen"] = "all"  # chosen: one completion of a pair, except for methods that compare
    validation_size: float = Field(0.1, gt=0, lt=1)  # share of prompt families
    test_size: float = Field(0.1, gt=0, lt=1)  # as well
    max_rows: int | None = Field(None, gt=0)  # read no more than these; default: all
    # The families that belong here, as a range of a hash from 0 to 1: rows of [0, 0.5] and [0.5, 1] share no family.
    part: tuple[float, float] = (0.0, 1.0)

    @field_validator("path")
    @classmethod
    def _names_a_file(cls, path: str | list[str]) -> str | list[str]:
        if not path or (isinstance(path, list) and "" in path):
            raise ValueError("name a file, or the id of a data set")
        return path

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _goes_with_the_format(self) -> Self:
        if self.drop_listed is not None and self.format != "hh":
            raise ValueError("data.drop_listed goes with data.format: hh, and only with it")
        if self.format in LAYOUTS and "{" in self.columns.prompt + self.columns.completion:
            raise ValueError(f"data.format: {self.format} makes prompt and completion itself: no template of columns")
        return self


# Settings of `data` that do not change the rows, only how policies are trained on them.
POLICY_KEYS = {
    "max_prompt_tokens",
    "max_completion_tokens",
    "long_completions",
    "train_on",
    "validation_size",
    "test_size",
}


def idle_for_rows(data: DataSection) -> set[str]:
    """The keys of a data section that its rows do not depend on. `prompts` came later: at its default, keys of earlier
    tables and rewards stay as they are."""
    return POLICY_KEYS | ({"prompts"} if data.prompts == "text" else set())


# Formats that make prompts and completions themselves.
LAYOUTS = ("documents", "hh", "comet", "reddit", "dialogue")
