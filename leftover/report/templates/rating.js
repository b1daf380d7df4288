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
