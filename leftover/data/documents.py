"""Plain documents -> rows: a few sentences of prompt, and the sentences that follow."""

import re
from collections.abc import Iterator
from pathlib import Path

from leftover.data.files import Source, read_lines
from leftover.data.records import Located
from leftover.recipe.data_section import DataSection

_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*)\s+")


def read_documents(source: Source, data: DataSection) -> Iterator[Located]:
    """Plain text cut into prompts of a few sentences and the sentences that follow; a document is a family."""
    settings, columns = data.documents, data.columns
    needed = settings.prompt_sentences + settings.completion_sentences
    for number, document in enumerate(_documents(source.path, settings.separator), start=1):
        sentences = split_sentences(document)
        for start in range(0, len(sentences) - needed + 1, settings.stride or needed):
            middle = start + settings.prompt_sentences
            row = {
                columns.prompt: " ".join(sentences[start:middle]),
                columns.completion: " " + " ".join(sentences[middle : start + needed]),
                columns.family: f"{Path(source.path).name}#{number}",
            }
            yield f"{source.path} document {number}", row


def _documents(path: str, separator: str) -> Iterator[str]:
    lines: list[str] = []
    for _, line in read_lines(path):
        if line.strip() == separator:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def split_sentences(text: str) -> list[str]:
    """Sentences of plain English text; closing quotes stay with the sentence they close."""
    flat = " ".join(text.split())
    return [s for s in _SENTENCE_END.sub(lambda m: m.group(1) + "\n", flat).split("\n") if s]
