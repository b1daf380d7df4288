"""The rating page: one HTML file that opens from disk, asks nothing of the network, and runs no text it shows."""

import base64
import hashlib
import json


def render_page(page: str, items: list[dict[str, str]]) -> str:
    """The page `page` over `items` (id, criterion, question, prompt, first, second), in the order given.

    The texts stand in a block of JSON without any character of markup, and are shown as text alone; a policy for the
    browser lets no script run but the page's own.
    """
    data = json.dumps({"page": page, "items": items})
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    policy = (
        f"default-src 'none'; script-src '{_source_hash(_SCRIPT)}'; style-src '{_source_hash(_STYLE)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _HTML.format(policy=policy, style=_STYLE, script=_SCRIPT, data=data)


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; }
header, nav { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
h1 { font-size: 1.1rem; margin: .5rem 0; }
h2 { font-size: .9rem; margin: 0 0 .3rem; opacity: .75; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
section { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .4rem; padding: .75rem;
  margin: .75rem 0; max-height: 60vh; overflow: auto; }
#sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 .75rem; }
button, input { font: inherit; padding: .4rem .9rem; }
button[aria-pressed=true] { outline: 3px solid #2a6fdb; }
progress { flex: 1 1 8rem; }
@media (max-width: 45rem) { #sides { grid-template-columns: 1fr; } }
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const part = name => document.getElementById(name);
const place = "leftover-rating-" + data.page;
let state = {rater: "", ratings: {}}, at = 0;

function say(text) { part("status").textContent = text; }

function save() {
  try { localStorage.setItem(place, JSON.stringify(state)); }
  catch (error) { say("This browser does not save: export before you close the page."); }
}

function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(place));
    if (saved && saved.ratings) state = saved;
  } catch (error) { say("This browser does not save: export before you close the page."); }
}

function count() { return data.items.filter(item => item.id in state.ratings).length; }

function show() {
  const item = data.items[at];
  for (const name of ["question", "prompt", "first", "second"]) part(name).textContent = item[name];
  for (const value of [1, 2, 3]) part("rate" + value).setAttribute("aria-pressed", state.ratings[item.id] === value);
  part("place").textContent = "Question " + (at + 1) + " of " + data.items.length + ", " + count() + " answered";
  part("progress").max = data.items.length;
  part("progress").value = count();
  part("back").disabled = at === 0;
  part("next").disabled = at === data.items.length - 1;
}

function move(step) {
  at = Math.min(Math.max(at + step, 0), data.items.length - 1);
  show();
}

function rate(value) {
  state.ratings[data.items[at].id] = value;
  say("");
  save();
  if (count() === data.items.length) say("All questions are answered: export your ratings.");
  move(1);
}

function exported() {
  return JSON.stringify({page: data.page, rater: state.rater, ratings: state.ratings}, null, 1);
}

function download() {
  if (!state.rater) {
    say("Give your name first, or any word that tells you from the others.");
    part("rater").focus();
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], {type: "application/json"}));
  link.download = "ratings-" + data.page + "-" + state.rater.replace(/[^A-Za-z0-9]+/g, "-") + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.addEventListener("keydown", event => {
  if (event.target === part("rater") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (["1", "2", "3"].includes(event.key)) rate(Number(event.key));
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
});
for (const value of [1, 2, 3]) part("rate" + value).addEventListener("click", () => rate(value));
part("back").addEventListener("click", () => move(-1));
part("next").addEventListener("click", () => move(1));
part("export").addEventListener("click", download);
part("restart").addEventListener("click", () => {
  if (!confirm("Forget all ratings on this page? Export them first, to keep them.")) return;
  state = {rater: "", ratings: {}};
  part("rater").value = "";
  save();
  move(-data.items.length);
});
part("rater").addEventListener("input", () => { state.rater = part("rater").value.trim(); save(); });

load();
part("rater").value = state.rater;
at = Math.max(data.items.findIndex(item => !(item.id in state.ratings)), 0);
show();
"""

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which completion is better?</title>
<style>{style}</style>
</head>
<body>
<header>
<label>Your name <input id="rater" autocomplete="off" maxlength="60"></label>
<span id="place"></span><progress id="progress" aria-label="answered"></progress>
<button id="export" type="button">Export ratings</button>
<button id="restart" type="button">Start over</button>
</header>
<main>
<h1 id="question"></h1>
<section><h2>Prompt</h2><div id="prompt" class="text" dir="auto"></div></section>
<nav aria-label="Your rating">
<button id="rate1" type="button">1: the first is better</button>
<button id="rate2" type="button">2: equal</button>
<button id="rate3" type="button">3: the second is better</button>
<button id="back" type="button">← back</button>
<button id="next" type="button">skip →</button>
</nav>
<p id="status" role="status"></p>
<div id="sides">
<section><h2>First</h2><div id="first" class="text" dir="auto"></div></section>
<section><h2>Second</h2><div id="second" class="text" dir="auto"></div></section>
</div>
<noscript>This page needs JavaScript.</noscript>
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
