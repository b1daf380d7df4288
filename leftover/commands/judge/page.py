"""The rating page: one HTML file that opens from disk, asks nothing of the network, and runs no text it shows."""

import json

from leftover.report.page import TEMPLATES, content_policy


def render_page(page: str, items: list[dict[str, str]]) -> str:
    """The page `page` over `items` (id, question, prompt, first, second), in the order given.

    The texts stand in a block of JSON without characters of markup, and are shown as text alone; a policy for the
    browser lets only the page's own script run.
    """
    data = json.dumps({"page": page, "items": items})
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    style, script = ("\n" + (TEMPLATES / name).read_text("utf-8") for name in ("rating.css", "rating.js"))
    html = (TEMPLATES / "rating.html").read_text("utf-8")
    return html.format(policy=content_policy(style, script), style=style, script=script, data=data)
