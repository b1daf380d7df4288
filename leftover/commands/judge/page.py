"""The rating page: one HTML file that opens from disk, asks nothing of the network, and runs no text it shows."""

import json

from leftover.report.page import source_hash


def render_page(page: str, items: list[dict[str, str]]) -> str:
    """The page `page` over `items` (id, question, prompt, first, second), in the order given.

    The texts stand in a block of JSON without characters of markup, and are shown as text alone; a policy for the
    browser lets only the page's own script run.
    """
    data = json.dumps({"page": page, "items": items})
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    policy = (
        f"default-src 'none'; script-src '{source_hash(_SCRIPT)}'; style-src '{source_hash(_STYLE)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _HTML.format(policy=policy, style=_STYLE, script=_SCRIPT, data=data)


_STYLE = """
:root {
  color-scheme: light dark; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  --paper: light-dark(#faf8f4, #131517); --card: light-dark(#ffffff, #1b1e21); --ink: light-dark(#1d1c1a, #ecebe7);
  --muted: light-dark(#6a665f, #a3a09a); --line: light-dark(#e3ded5, #30343a); --accent: light-dark(#0b6b62, #45c4b2);
  --wash: light-dark(#e6f1ee, #16302d);
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 0 clamp(.9rem, 3vw, 2rem); max-width: 76rem; background: var(--paper); color: var(--ink);
  overflow-wrap: anywhere;
}
header { display: flex; flex-wrap: wrap; gap: .5rem .9rem; align-items: center; padding: .9rem 0; color: var(--muted);
  font-size: .9rem; border-bottom: 1px solid var(--line); }
header label { display: flex; gap: .5rem; align-items: center; }
#place { flex: none; }
progress { flex: 1 1 6rem; min-width: 4rem; height: .5rem; accent-color: var(--accent); }
h1 { font: 600 1.15rem/1.4 "Iowan Old Style", Palatino, Georgia, serif; margin: 1rem 0; max-width: 60rem; }
h2 { font-size: .75rem; letter-spacing: .06em; text-transform: uppercase; margin: 0 0 .35rem; color: var(--muted); }
.text { white-space: pre-wrap; unicode-bidi: plaintext; }
section { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: .8rem 1rem;
  max-height: 60vh; overflow: auto; }
#about { background: none; max-height: 34vh; margin-bottom: .9rem; }
#sides { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: .9rem; align-items: start; }
button, input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .45rem .8rem; min-width: 0; }
input { width: 11rem; }
button { cursor: pointer; }
button:hover:not(:disabled) { border-color: var(--accent); }
button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
kbd { font: inherit; font-weight: 700; color: var(--accent); margin-right: .45rem; }
nav { position: sticky; bottom: 0; display: grid; grid-template-columns: auto 1fr 1fr 1fr auto; gap: .5rem;
  padding: .7rem 0 .9rem; margin-top: .6rem; background: var(--paper); border-top: 1px solid var(--line); }
nav button { padding: .65rem .5rem; }
button[aria-pressed=true] { background: var(--wash); border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
#status { margin: .7rem 0 0; min-height: 1.55em; color: var(--accent); }
@media (max-width: 45rem) {
  #sides { grid-template-columns: minmax(0, 1fr); }
  section, #about { max-height: none; }
  h1 { font-size: 1.05rem; }
  header label, #place { flex: 1 1 auto; }
  nav { grid-template-columns: 1fr 1fr 1fr; }
  nav .more { display: none; }
  #back, #next { grid-row: 2; padding: .35rem; }
  #next { grid-column: 3; }
}
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
  for (const section of document.querySelectorAll?.("section") ?? []) section.scrollTop = 0;
  part("place").scrollIntoView?.();
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
<span id="place"></span><progress id="progress" aria-label="answered"></progress>
<label>Your name <input id="rater" autocomplete="off" maxlength="60"></label>
<button id="export" type="button">Export ratings</button>
<button id="restart" type="button">Start over</button>
</header>
<main>
<h1 id="question"></h1>
<section id="about" tabindex="0"><h2>Prompt</h2><div id="prompt" class="text" dir="auto"></div></section>
<div id="sides">
<section tabindex="0"><h2>First</h2><div id="first" class="text" dir="auto"></div></section>
<section tabindex="0"><h2>Second</h2><div id="second" class="text" dir="auto"></div></section>
</div>
<p id="status" role="status"></p>
<nav aria-label="Your rating">
<button id="back" type="button">← Back</button>
<button id="rate1" type="button"><kbd>1</kbd>First<span class="more"> is better</span></button>
<button id="rate2" type="button"><kbd>2</kbd>Equal</button>
<button id="rate3" type="button"><kbd>3</kbd>Second<span class="more"> is better</span></button>
<button id="next" type="button">Next →</button>
</nav>
<noscript>This page needs JavaScript.</noscript>
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
