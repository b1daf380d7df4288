"""What may stand in a card that others read: ids of the Hub and names of files, and no path of this machine."""

import re
from collections.abc import Iterator
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# The folders of an absolute path; not those of an address, nor the stroke in `distinct-1/2` or `reward/length`.
_FOLDERS = re.compile(r"(?<![\w/:.<])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+~-]+[/\\])+")


def is_hub_id(name: str | None) -> bool:
    """Whether a model or data set is named by an id of the Hub, and not by a folder or file of this machine."""
    return name is not None and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """An id of the Hub as it is; of a path its last part."""
    return name if is_hub_id(name) else base_name(name)


def base_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def without_paths(text: str, settings: object) -> str:
    """The text with every path in it, and those in the nested `settings`, shortened to its last part."""
    # The paths of the settings go first: they may hold spaces, which mark no end of a path in a text.
    for path in sorted(filter(_is_local, _texts(settings)), key=len, reverse=True):
        text = text.replace(path, base_name(path))
    return _FOLDERS.sub("", text)


def _is_local(text: str) -> bool:
    if re.match(r"(?:~|[A-Za-z]:)?[/\\]", text):
        return re.search(r"[^/\\]", text) is not None
    where = text.rpartition(":")[0] or text  # a function is file.py:name
    return len(re.findall(r"[^/\\]+", where)) > 1 and Path(where).exists()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
