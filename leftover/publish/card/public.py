"""What may stand in a card that others read: ids of the Hub and names of files, and no path of this machine."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# The folders of an absolute path; not those of an address, nor the stroke in `distinct-1/2` or `reward/length`.
_FOLDERS = re.compile(r"(?<![\w/:.<])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+~-]+[/\\])+")


def is_hub_id(name: str | None) -> bool:
    """Whether a model or data set is named by an id of the Hub, and not by a folder or file of this machine."""
    return name is not None and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """An id of the Hub as it is; of a path its last part."""
    return name if is_hub_id(name) else _base_name(name)


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def without_paths(text: str, settings: Any) -> str:
    """The text without the folders of any path that stands in `settings` (nested mappings and lists), nor of another.

    The paths of the settings go first: they may hold spaces, which tell no end of a path in a text.
    """
    for path in sorted(_local_paths(settings), key=len, reverse=True):
        text = text.replace(path, _base_name(path))
    return _FOLDERS.sub("", text)


def _local_paths(settings: Any) -> Iterator[str]:
    for value in _texts(settings):
        where = value.rpartition(":")[0] or value  # a function is file.py:name
        absolute = re.match(r"(?:~|[A-Za-z]:)?[/\\]", value) is not None
        if (absolute and _parts(value)) or (len(_parts(where)) > 1 and Path(where).exists()):
            yield value


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
