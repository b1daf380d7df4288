"""Texts of data and models inside a page: as JSON that no parser takes for markup, within a budget of bytes."""

import json
from typing import Any

MAX_BYTES = 2_200_000  # of completions in one page, which leaves room for pictures below 3 MB
_LIMITS = (None, 8000, 4000, 2000, 1000, 500, 250)
_MARK = " […] "


def as_script_json(value: Any) -> str:
    r"""JSON for the inside of a `<script type="application/json">`.

    `<` is written as \u003c, so that neither `</script>` nor `<!--` can end or open anything; `>` and `&` likewise.
    Half surrogates, which UTF-8 has not, and the two line ends that only JSON allows are escaped as well.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text) if _has_half(text) else text


def _has_half(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def shorten(text: str, limit: int | None) -> str:
    """The text, its middle left out where it is longer than `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    half = (limit - len(_MARK)) // 2
    return text[:half] + _MARK + text[-half:]


def shorten_all(value: Any, limit: int | None) -> Any:
    """Every string of a JSON value shortened; names of fields stay."""
    if isinstance(value, str):
        return shorten(value, limit)
    if isinstance(value, list):
        return [shorten_all(one, limit) for one in value]
    if isinstance(value, dict):
        return {name: shorten_all(one, limit) for name, one in value.items()}
    return value


def within(prompts: list[dict[str, Any]], max_bytes: int = MAX_BYTES) -> tuple[list[dict[str, Any]], str]:
    """As many prompts with their completions as fit, long texts shortened first; and a sentence on what that took.

    The sentence is empty where everything fits as it is.
    """
    limit, sizes = None, [0]
    shown = prompts
    for limit in _LIMITS:
        shown = [shorten_all(prompt, limit) for prompt in prompts] if limit else prompts
        sizes = [len(as_script_json(prompt).encode()) + 1 for prompt in shown]
        if sum(sizes) <= max_bytes:
            break
    said = [f"texts of more than {limit:,} characters have lost their middle ({_MARK.strip()})"] if limit else []
    if sum(sizes) > max_bytes:
        total, count = 0, 0
        while total + sizes[count] <= max_bytes:
            total += sizes[count]
            count += 1
        shown = shown[:count]
        said.append(f"{count:,} of {len(prompts):,} prompts are shown")
    sentence = " and ".join(said)
    return shown, f"To keep this page small, {sentence}; the run's folder holds all in evaluation/." if said else ""
