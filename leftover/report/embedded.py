"""Texts of data and models in a page: as JSON that no parser mistakes for markup, within a budget of bytes."""

import base64
import gzip
import json
import re
from typing import Any, NamedTuple

_LIMITS = (None, 8000, 4000, 2000, 1000, 500, 350, 250)
_MARK = " […] "
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def as_script_json(value: Any) -> str:
    r"""JSON for the inside of a `<script type="application/json">`.

    `<` is written as \u003c, so that neither `</script>` nor `<!--` can end or open anything; `>` and `&` likewise.
    Half surrogates, which have no UTF-8 form, and the two line ends that only JSON allows are escaped as well.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shorten(text: str, limit: int | None) -> str:
    """The text, without its middle if it is longer than `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    half = (limit - len(_MARK)) // 2
    return text[:half] + _MARK + text[-half:]


def _shorten_all(value: Any, limit: int | None) -> Any:
    """Every string of a JSON value shortened; names of fields stay."""
    if isinstance(value, list):
        return [_shorten_all(one, limit) for one in value]
    if isinstance(value, dict):
        return {name: _shorten_all(one, limit) for name, one in value.items()}
    return shorten(value, limit) if isinstance(value, str) else value


class Embedded(NamedTuple):
    """JSON inside a page: its text, the encoding that page.js undoes, and a note of what was shortened."""

    text: str
    encoding: str  # "json", or "gzip": base64 of gzip
    note: str


def embed(value: dict[str, Any], max_bytes: int) -> Embedded:
    """A value with its `prompts` in at most `max_bytes`, and a note of what was lost (empty if nothing was).

    As it is if it fits; else compressed (DEFLATE halves texts, in base64); else the longest texts lose their middle,
    those of more than 8,000 characters first, then of 4,000 and so on to 250; at last the last prompts are dropped.
    """
    plain = as_script_json(value)
    if len(plain.encode()) <= max_bytes:
        return Embedded(plain, "json", "")
    prompts, ratio = value["prompts"], 0.0
    for limit in _LIMITS:
        shown = _shorten_all(prompts, limit) if limit else prompts
        note = _note(limit, len(prompts), len(prompts))
        text = as_script_json(value | {"prompts": shown, "note": note}).encode()
        if limit != _LIMITS[-1] and ratio * len(text) > 1.1 * max_bytes:
            continue  # shorter texts are compressed no better: it saves the time to see it
        packed = _packed(text)
        ratio = len(packed) / len(text)
        if len(packed) <= max_bytes:
            return Embedded(packed, "gzip", note)
    count = len(shown)
    while count and len(packed) > max_bytes:
        # Compressed, a part of the prompts takes about that part of the bytes.
        count = min(count - 1, int(count * 0.98 * max_bytes / len(packed)))
        note = _note(limit, count, len(prompts))
        packed = _packed(as_script_json(value | {"prompts": shown[:count], "note": note}).encode())
    return Embedded(packed, "gzip", note)


def _note(limit: int | None, shown: int, prompts: int) -> str:
    said = [f"texts of more than {limit:,} characters have lost their middle ({_MARK.strip()})"] if limit else []
    said += [f"{shown:,} of {prompts:,} prompts are shown"] if shown < prompts else []
    return f"To keep this page small, {' and '.join(said)}." if said else ""


def _packed(text: bytes) -> str:
    """Base64 of gzip; the same text gives the same. Nothing in it is markup."""
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
