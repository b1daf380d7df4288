"""Plain documents -> rows: a few sentences of prompt, and the sentences that follow."""

import re
from collections.abc import Iterator
from pathlib import Path

from leftover.data.files import Source, read_lines
from leftover.data.records import Located
from leftover.recipe.sections import DataSection

_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*)\s+")


def read_documents(source: Source, data: DataSection) -> Iterator[Located]:
    """Plain text cut into prompts of a few sentences and the sentences that follow; a document is a family."""
    settings = data.documents
    needed = settings.prompt_sentences + settings.completion_sentences
    stride = settings.stride or needed
    for number, document in _split_documents(source.path, settings.separator):
        sentences = split_sentences(document)
        for start in range(0, len(sentences) - needed + 1, stride):
            middle = start + settings.prompt_sentences
            yield (
                f"{source.path} document {number}",
                {
                    data.columns.prompt: " ".join(sentences[start:middle]),
                    data.columns.completion: " " + " ".join(sentences[middle : start + needed]),
                    data.columns.family: f"{Path(source.path).name}#{number}",
                },
            )


def _split_documents(path: str, separator: str) -> Iterator[tuple[int, str]]:
    lines: list[str] = []
    number = 1
    for _, line in read_lines(path):
        if line.strip() == separator:
            yield number, "".join(lines)
            lines, number = [], number + 1
        else:
            lines.append(line)
    yield number, "".join(lines)


def split_sentences(text: str) -> list[str]:
    """Sentences of plain English text; closing quotes stay with the sentence they close."""
    flat = " ".join(text.split())
    return [s for s in _SENTENCE_END.sub(lambda m: m.group(1) + "\n", flat).split("\n") if s]
