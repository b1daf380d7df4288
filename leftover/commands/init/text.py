"""A recipe as YAML with a comment a line."""

from collections.abc import Iterator, Mapping
from typing import Any

from leftover.recipe.files import one_line_of_yaml

_LONGEST = 120  # columns; a comment that does not fit stands above its line


def yaml_with_comments(content: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """`comments`: dotted key -> what stands beside it. Sections that have comments inside are written as blocks."""
    return "\n".join(_lines(content, comments)) + "\n"


def _lines(content: Mapping[str, Any], comments: Mapping[str, str], at: str = "", depth: int = 0) -> Iterator[str]:
    blank, before = "  " * depth, ""
    for key, value in content.items():
        name = f"{at}{key}"
        inside = isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in comments)
        line = f"{blank}{key}:" if inside else f"{blank}{one_line_of_yaml({key: value})}"
        comment = comments.get(name, "")
        if depth == 0 and (inside or before == "block"):
            yield ""
        before = "block" if inside else "line"
        if comment and len(line) + len(comment) + 4 > _LONGEST:
            yield f"{blank}# {comment}"
            comment = ""
        yield f"{line}  # {comment}" if comment else line
        if inside:
            yield from _lines(value, comments, f"{name}.", depth + 1)
