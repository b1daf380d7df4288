"""Texts of data and models in a page: as JSON that no parser mistakes for markup, within a budget of bytes."""

import base64
import gzip
import json
import math
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


def _shown(value: Any, limit: int | None) -> Any:
    """A JSON value as a reader sees it: its texts shortened, its numbers rounded (None if they are not finite)."""
    if isinstance(value, list):
        return [_shown(one, limit) for one in value]
    if isinstance(value, dict):
        return {name: _shown(one, limit) for name, one in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return shorten(value, limit) if isinstance(value, str) else value


class Embedded(NamedTuple):
    """JSON inside a page: its text, the encoding that page.js undoes, and a note of what was shortened."""

    text: str
    encoding: str  # "json", or "gzip": base64 of gzip
    note: str


def embed(value: dict[str, Any], max_bytes: int, noun: str = "prompts") -> Embedded:
    """A value with its `prompts` in at most `max_bytes`, and a note of what was lost (empty if nothing was).

    Numbers are rounded to four places. What does not fit is compressed (DEFLATE halves texts, in base64); if that is
    not enough, the longest texts lose their middle, those of more than 8,000 characters first, then of 4,000 and so on
    to 250; at last the last prompts are dropped. `noun`: what the note calls them.
    """
    value = _shown(value, None)
    plain = as_script_json(value)
    if len(plain.encode()) <= max_bytes:
        return Embedded(plain, "json", "")
    tried: Any = None
    ratio = 0.0
    for limit in _LIMITS:
        prompts = _shown(value["prompts"], limit)
        if prompts == tried:
            continue  # no text is that long
        text, note = _with_note(value, prompts, limit, noun)
        if limit != _LIMITS[-1] and ratio * len(text) > 1.1 * max_bytes:
            continue  # shorter texts are compressed no better: it saves the time to see it
        tried, found = prompts, _packed(text, note)
        ratio = len(found.text) / len(text)
        if len(found.text) <= max_bytes:
            return found
    while prompts and len(found.text) > max_bytes:
        # Compressed, a part of the prompts takes about that part of the bytes.
        prompts = prompts[: min(len(prompts) - 1, int(len(prompts) * 0.98 * max_bytes / len(found.text)))]
        found = _packed(*_with_note(value, prompts, limit, noun))
    return found


def _with_note(value: dict[str, Any], prompts: list[Any], limit: int | None, noun: str) -> tuple[str, str]:
    """The value as JSON with these `prompts`, whose texts have at most `limit` characters, and the note on them."""
    said = [f"texts of more than {limit:,} characters have lost their middle ({_MARK.strip()})"] if limit else []
    if len(prompts) < len(value["prompts"]):
        said.append(f"{len(prompts):,} of {len(value['prompts']):,} {noun} are shown")
    note = f"To keep this page small, {' and '.join(said)}." if said else ""
    return as_script_json(value | {"prompts": prompts, "note": note}), note


def _packed(text: str, note: str) -> Embedded:
    """Base64 of gzip; the same text gives the same bytes, and nothing in them is markup."""
    return Embedded(base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode(), "gzip", note)
