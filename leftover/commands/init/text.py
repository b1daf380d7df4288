"""A recipe as YAML with a comment a line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leftover.recipe.files import one_line_of_yaml

_LONGEST = 120  # columns; a comment that does not fit stands above its line


def yaml_with_comments(content: Mapping[str, Any], comments: Mapping[str, str], shared: Sequence[str] = ()) -> str:
    """Sections that have comments inside are written as blocks, all else on one line.

    Args:
        comments: dotted key -> what stands beside it.
        shared: keys of `data` whose values stand elsewhere again, where YAML's aliases are written in their place.
    """
    return "\n".join(_Writer(comments, {key: content["data"][key] for key in shared}).lines(content)) + "\n"


@dataclass(frozen=True)
class _Writer:
    comments: Mapping[str, str]
    shared: Mapping[str, Any]

    def lines(self, content: Mapping[str, Any], at: str = "", depth: int = 0) -> Iterator[str]:
        blank, after_block = "  " * depth, False
        for key, value in content.items():
            name = f"{at}{key}"
            inside = isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in self.comments)
            if depth == 0 and (inside or after_block):
                yield ""
            after_block = inside
            line = f"{blank}{key}:" if inside else f"{blank}{self._line(name, key, value)}"
            comment = self.comments.get(name, "")
            if comment and len(line) + len(comment) + 4 > _LONGEST:
                yield f"{blank}# {comment}"
                comment = ""
            yield f"{line}  # {comment}" if comment else line
            if inside:
                yield from self.lines(value, f"{name}.", depth + 1)

    def _line(self, name: str, key: str, value: Any) -> str:
        line = one_line_of_yaml({key: value})
        if name == f"data.{key}" and key in self.shared:
            return line.replace(": ", f": &{key} ", 1)
        for other, same in self.shared.items():
            line = line.replace(one_line_of_yaml({other: same}), f"{other}: *{other}")
        return line
