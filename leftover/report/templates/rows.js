"use strict";
// The table of all rows: only those in view are in the page's tree. Texts reach it through textContent alone.
(function () {
  const HEIGHT = 48, BEYOND = 10; // pixels of a row (rows.css); rows drawn above and below the view

  function element(name, text) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const PLACES = ["where", "repeats", "contradicts"];

  // Places without the folders of their files.
  function brief(places) {
    return places === null ? "" : places.replace(/[^\s;]*\//g, "");
  }

  function written(value) {
    if (value === null) return "";
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "number" ? (value < 0 ? "−" : "") + Math.abs(value).toFixed(3) : value;
  }

  class Rows {
    constructor(root, data) {
      Object.assign(this, { root, names: data.names, all: data.prompts, sorted: -1, down: false });
      for (const name of ["search", "train", "fault", "source", "status", "view", "head", "body", "detail"])
        this[name] = root.querySelector("[data-" + name + "]");
      this.names.forEach((name, i) => this.head.append(this.heading(name, i)));
      const at = this.at("source"), sources = [...new Set(this.all.map((row) => row[at]))].filter((s) => s !== null).sort();
      for (const source of sources) this.source.append(new Option(source, source));
      this.source.closest("label").hidden = sources.length < 2;
      this.search.addEventListener("input", () => this.refresh());
      for (const select of [this.train, this.fault, this.source]) select.addEventListener("change", () => this.refresh());
      this.view.addEventListener("scroll", () => this.draw());
      this.body.addEventListener("click", (event) => {
        const line = event.target.closest("tr[data-row]");
        if (line) this.show(this.shown[Number(line.dataset.row)]);
      });
      root.hidden = false;
      this.refresh();
    }

    at(name) {
      return this.names.indexOf(name);
    }

    heading(name, i) {
      const cell = element("th"), button = element("button", name);
      cell.scope = "col";
      button.type = "button";
      button.addEventListener("click", () => {
        this.down = this.sorted === i ? !this.down : typeof this.all[0][i] !== "string";
        this.sorted = i;
        this.refresh();
      });
      cell.append(button);
      return cell;
    }

    keeps(row, words) {
      const kept = row[this.at("kept")], repeats = row[this.at("repeats")], contradicts = row[this.at("contradicts")];
      if (this.train.value && (this.train.value === "yes") !== kept) return false;
      if (this.fault.value === "repeats" && repeats === null) return false;
      if (this.fault.value === "contradicts" && contradicts === null) return false;
      if (this.fault.value === "unscored" && row[this.at("reward")] !== null) return false;
      if (this.source.value && row[this.at("source")] !== this.source.value) return false;
      const text = words.length ? row.filter((cell) => typeof cell === "string").join("\n").toLowerCase() : "";
      return words.every((word) => text.includes(word));
    }

    // Rows without what is sorted by stand last, whichever way it goes.
    refresh() {
      const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean), i = this.sorted, sign = this.down ? -1 : 1;
      this.shown = this.all.filter((row) => this.keeps(row, words));
      if (i >= 0)
        this.shown.sort((a, b) => {
          if (a[i] === null || b[i] === null) return (a[i] === null) - (b[i] === null);
          return sign * (typeof a[i] === "string" ? a[i].localeCompare(b[i], undefined, { numeric: true }) : a[i] - b[i]);
        });
      [...this.head.children].forEach((cell, n) => cell.setAttribute("aria-sort", n !== i ? "none" : this.down ? "descending" : "ascending"));
      this.status.textContent = this.shown.length + " of " + this.all.length + " rows";
      this.view.scrollTop = 0;
      this.draw();
    }

    draw() {
      const first = Math.max(0, Math.floor(this.view.scrollTop / HEIGHT) - BEYOND);
      const last = Math.min(this.shown.length, first + Math.ceil(this.view.clientHeight / HEIGHT) + 2 * BEYOND);
      const lines = this.shown.slice(first, last).map((row, n) => this.line(row, first + n));
      this.body.replaceChildren(this.gap(first), ...lines, this.gap(this.shown.length - last));
    }

    gap(rows) {
      const line = element("tr"), cell = element("td");
      line.className = "gap";
      line.setAttribute("aria-hidden", "true");
      cell.colSpan = this.names.length;
      cell.style.height = rows * HEIGHT + "px";
      line.append(cell);
      return line;
    }

    line(row, place) {
      const line = element("tr");
      line.dataset.row = place;
      line.setAttribute("aria-selected", row === this.chosen ? "true" : "false");
      row.forEach((value, i) => {
        const cell = element(i ? "td" : "th"), box = element("div", PLACES.includes(this.names[i]) ? brief(value) : written(value));
        box.dir = "auto";
        cell.append(box);
        line.append(cell);
      });
      return line;
    }

    show(row) {
      this.chosen = row;
      this.draw();
      this.detail.replaceChildren();
      for (const name of ["prompt", "completion"]) {
        const text = element("p", row[this.at(name)]);
        text.className = name === "prompt" ? "text prompt" : "text";
        text.dir = "auto";
        this.detail.append(text);
      }
    }
  }

  async function unpacked(source) {
    if (source.dataset.encoding !== "gzip") return JSON.parse(source.textContent);
    const bytes = Uint8Array.from(atob(source.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const root = document.querySelector("[data-rows]");
  unpacked(document.querySelector("[data-of-rows]")).then((data) => new Rows(root, data), () => {
    root.before(element("p", "This browser cannot unpack the rows: take a newer one."));
  });
})();
