"""Text as Markdown."""

from leftover.monitoring.terminal import visible

_TEXT_SHOWN = 300


def quote(text: str) -> str:
    """A text on one line of Markdown, markup escaped, long ones cut in the middle."""
    flat = visible(" ".join(text.split())) or "(empty)"
    if len(flat) > _TEXT_SHOWN:
        flat = f"{flat[: _TEXT_SHOWN // 2]} … {flat[-_TEXT_SHOWN // 2 :]}"
    for character in "\\`*_[]<>|#":
        flat = flat.replace(character, f"\\{character}")
    return flat
