"use strict";
// Texts of data and models reach the page through textContent alone: nothing here parses HTML.
(function () {
  const PAGE_SIZE = 200; // prompts listed at a time
  const MOST_WORDS = 1200; // of a text whose differences are marked; comparing costs the product of two lengths

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function stored(name, value) {
    try {
      if (value === undefined) return localStorage.getItem(name);
      if (value === null) localStorage.removeItem(name);
      else localStorage.setItem(name, value);
    } catch (refused) {
      // A browser that keeps nothing for files from disk: the choice lasts for the visit.
    }
    return null;
  }

  // Theme: as the system, light, dark.
  function setUpTheme() {
    const button = document.querySelector("[data-theme-button]");
    const themes = ["system", "light", "dark"];
    function show(theme) {
      if (theme === "system") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = theme;
      const said = theme === "system" ? "as the system" : theme;
      button.setAttribute("aria-label", "Theme: " + said);
      button.title = "Theme: " + said;
      button.dataset.now = theme;
    }
    const remembered = stored("leftover-theme");
    show(themes.includes(remembered) ? remembered : "system");
    button.addEventListener("click", function () {
      const next = themes[(themes.indexOf(button.dataset.now) + 1) % themes.length];
      stored("leftover-theme", next === "system" ? null : next);
      show(next);
    });
  }

  // The link of the section in view is marked.
  function setUpSections() {
    const links = new Map();
    for (const link of document.querySelectorAll("nav.sections a")) {
      const target = document.getElementById(link.hash.slice(1));
      if (target) links.set(target.querySelector(":scope > .verdict") && links.size === 0 ? target.firstElementChild : target, link);
    }
    const inView = new Set();
    const watcher = new IntersectionObserver(
      function (entries) {
        for (const entry of entries) entry.isIntersecting ? inView.add(entry.target) : inView.delete(entry.target);
        let marked = false;
        for (const [target, link] of links) {
          link.classList.toggle("here", !marked && inView.has(target));
          marked = marked || inView.has(target);
        }
      },
      { rootMargin: "-30% 0px -60% 0px" }
    );
    for (const target of links.keys()) watcher.observe(target);
  }

  // Words of `text` that a longest common subsequence with `other` leaves out.
  function differences(text, other) {
    const ours = text.split(/(\s+)/).filter(Boolean), theirs = other.split(/\s+/).filter(Boolean);
    const words = ours.filter((word) => word.trim());
    if (words.length > MOST_WORDS || theirs.length > MOST_WORDS) return null;
    const width = theirs.length + 1;
    const longest = new Uint16Array((words.length + 1) * width);
    for (let i = words.length - 1; i >= 0; i--)
      for (let j = theirs.length - 1; j >= 0; j--)
        longest[i * width + j] =
          words[i] === theirs[j]
            ? longest[(i + 1) * width + j + 1] + 1
            : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    const parts = [];
    let i = 0, j = 0;
    for (const word of ours) {
      if (!word.trim()) {
        parts.push([word, false]);
        continue;
      }
      while (j < theirs.length && words[i] !== theirs[j] && longest[i * width + j + 1] >= longest[(i + 1) * width + j]) j++;
      const common = j < theirs.length && words[i] === theirs[j];
      parts.push([word, !common]);
      if (common) j++;
      i++;
    }
    return parts;
  }

  function write(target, text, against) {
    const parts = against === null ? null : differences(text, against);
    if (parts === null) {
      target.textContent = text;
      return;
    }
    for (const [part, differs] of parts) target.append(differs ? element("mark", "", part) : part);
  }

  function signed(number) {
    return (number >= 0 ? "+" : "−") + Math.abs(number).toFixed(3);
  }

  function plain(number) {
    return number === null ? "–" : (number < 0 ? "−" : "") + Math.abs(number).toFixed(3);
  }

  class Browser {
    constructor(root, data) {
      this.root = root;
      this.data = data;
      this.run = root.dataset.browser;
      this.shown = [];
      this.limit = PAGE_SIZE;
      this.at = -1;
      for (const name of ["search", "sort", "filter", "source", "decoding", "against", "status", "list", "detail", "printed"])
        this[name] = root.querySelector("[data-" + name + "]");
      this.fillControls();
      root.hidden = false;
      this.listen();
      this.refresh();
      if (!this.follow()) this.show(0);
    }

    get main() {
      return this.data.main;
    }

    cell(prompt, name) {
      if (name === "data") return prompt.data;
      return (prompt[this.decoding.value] || {})[name] || null;
    }

    reward(prompt, name) {
      const cell = this.cell(prompt, name);
      return cell ? cell[1] : null;
    }

    gain(prompt) {
      const ours = this.reward(prompt, this.main), theirs = this.reward(prompt, "reference");
      return ours === null || theirs === null ? null : ours - theirs;
    }

    options(select, pairs) {
      for (const [value, label] of pairs) {
        const option = element("option", "", label);
        option.value = value;
        select.append(option);
      }
      select.closest("label").hidden = pairs.length < 2;
    }

    fillControls() {
      const names = this.data.names, scored = this.data.prompts.some((p) => (p[this.data.decodings[0]][this.main] || [])[1] !== null);
      this.options(this.decoding, this.data.decodings.map((d) => [d, d]));
      this.options(this.sort, [["order", "as in the data"]].concat(
        scored ? [["gain", "largest gain first"], ["loss", "largest loss first"]] : [],
        scored ? names.filter((n) => n !== "data").map((n) => ["reward " + n, "reward of " + n]) : [],
        [["length", "longest first"], ["change", "most changed first"]]
      ));
      this.options(this.filter, [["all", "all prompts"]].concat(
        scored ? [["better", "better than the reference"], ["worse", "worse than the reference"], ["same", "same reward"]] : [],
        [["unended", "ran into the length limit"]]
      ));
      const sources = [...new Set(this.data.prompts.map((p) => p.source))].filter((s) => s !== null).sort();
      this.options(this.source, sources.length > 1 ? [["", "all"]].concat(sources.map((s) => [s, s])) : [["", "all"]]);
      this.options(this.against, [["reference", "reference"], ["data", "data"], ["", "nothing"]]);
    }

    listen() {
      const again = () => {
        this.limit = PAGE_SIZE;
        this.refresh();
        this.show(0);
      };
      this.search.addEventListener("input", again);
      for (const select of [this.sort, this.filter, this.source, this.decoding]) select.addEventListener("change", again);
      this.against.addEventListener("change", () => this.show(this.at));
      this.list.addEventListener("click", (event) => {
        const option = event.target.closest(".option");
        if (option) this.show(Number(option.dataset.at), true);
      });
      this.list.addEventListener("keydown", (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        this.step(step);
      });
      window.addEventListener("hashchange", () => this.follow());
      window.addEventListener("beforeprint", () => this.print());
    }

    keeps(prompt, words) {
      if (this.source.value && prompt.source !== this.source.value) return false;
      const gain = this.gain(prompt), cell = this.cell(prompt, this.main);
      const kind = this.filter.value;
      if (kind === "better" && !(gain > 0)) return false;
      if (kind === "worse" && !(gain < 0)) return false;
      if (kind === "same" && gain !== 0) return false;
      if (kind === "unended" && (!cell || cell[3])) return false;
      if (!words.length) return true;
      const texts = [prompt.prompt].concat(this.data.names.map((n) => (this.cell(prompt, n) || [""])[0]));
      const all = texts.join("\n").toLowerCase();
      return words.every((word) => all.includes(word));
    }

    order() {
      const kind = this.sort.value, last = -Infinity;
      if (kind === "gain") return (p) => this.gain(p) ?? last;
      if (kind === "loss") return (p) => -(this.gain(p) ?? -last);
      if (kind === "length") return (p) => (this.cell(p, this.main) || [""])[0].length;
      if (kind === "change") return (p) => this.changed(p);
      if (kind.startsWith("reward ")) return (p) => this.reward(p, kind.slice(7)) ?? last;
      return null;
    }

    // Share of the main policy's words that the reference's completion has not.
    changed(prompt) {
      const ours = this.cell(prompt, this.main), theirs = this.cell(prompt, "reference");
      if (!ours || !theirs) return -1;
      const known = new Set(theirs[0].split(/\s+/)), words = ours[0].split(/\s+/).filter(Boolean);
      return words.filter((word) => !known.has(word)).length / Math.max(words.length, 1);
    }

    refresh() {
      const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.shown = this.data.prompts.filter((prompt) => this.keeps(prompt, words));
      const key = this.order();
      if (key) {
        const keyed = this.shown.map((prompt, i) => [key(prompt), i, prompt]);
        keyed.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
        this.shown = keyed.map((entry) => entry[2]);
      }
      this.status.textContent = this.shown.length + " of " + this.data.prompts.length + " prompts";
      this.listPrompts();
    }

    listPrompts() {
      this.list.replaceChildren();
      const shown = this.shown.slice(0, this.limit);
      shown.forEach((prompt, i) => {
        const option = element("div", "option");
        option.dataset.at = i;
        option.id = this.run + "-option-" + i;
        option.setAttribute("role", "option");
        const gain = this.gain(prompt), text = element("span", "", prompt.prompt.slice(-160));
        text.dir = "auto";
        option.append(text);
        if (gain !== null) option.append(element("b", gain > 0 ? "up" : gain < 0 ? "down" : "", signed(gain)));
        this.list.append(option);
      });
      if (this.shown.length > shown.length) {
        const more = element("button", "more", "Show " + Math.min(PAGE_SIZE, this.shown.length - shown.length) + " more");
        more.type = "button";
        more.addEventListener("click", () => {
          this.limit += PAGE_SIZE;
          this.listPrompts();
          this.select();
        });
        this.list.append(more);
      }
      if (!shown.length) this.list.append(element("p", "empty", "No prompt fits: change the search or the filter."));
    }

    step(by) {
      const to = this.at + by;
      if (to < 0 || to >= this.shown.length) return;
      while (to >= this.limit) {
        this.limit += PAGE_SIZE;
        this.listPrompts();
      }
      this.show(to, true);
    }

    // The row that the page's address names, if it is one of this run.
    follow() {
      const found = /^#(run-\d+)-row-(\d+)$/.exec(location.hash);
      if (!found || found[1] !== this.run) return false;
      const id = Number(found[2]), current = this.shown[this.at];
      if (current && current.id === id) return true;
      let at = this.shown.findIndex((prompt) => prompt.id === id);
      if (at < 0) {
        this.search.value = this.source.value = "";
        this.filter.value = "all";
        this.refresh();
        at = this.shown.findIndex((prompt) => prompt.id === id);
      }
      if (at < 0) return false;
      while (at >= this.limit) this.limit += PAGE_SIZE;
      this.listPrompts();
      this.show(at);
      this.root.scrollIntoView();
      return true;
    }

    select() {
      for (const option of this.list.querySelectorAll(".option")) {
        const here = Number(option.dataset.at) === this.at;
        option.setAttribute("aria-selected", here ? "true" : "false");
        if (here) {
          const top = option.offsetTop - this.list.offsetTop;
          if (top < this.list.scrollTop) this.list.scrollTop = top;
          const below = top + option.offsetHeight - this.list.clientHeight;
          if (below > this.list.scrollTop) this.list.scrollTop = below;
        }
      }
      if (this.at >= 0) this.list.setAttribute("aria-activedescendant", this.run + "-option-" + this.at);
      else this.list.removeAttribute("aria-activedescendant");
    }

    show(at, named) {
      this.at = at < this.shown.length ? at : -1;
      this.select();
      this.detail.replaceChildren();
      const prompt = this.shown[this.at];
      if (!prompt) return;
      const hash = "#" + this.run + "-row-" + prompt.id;
      if (named) history.replaceState(null, "", hash);
      this.detail.append(this.barOfDetail(prompt, hash));
      const asked = element("div", "asked"), text = element("p", "text", prompt.prompt);
      text.dir = "auto";
      asked.append(element("p", "meta", prompt.source === null ? "Prompt" : "Prompt · " + prompt.source), text);
      const answers = element("div", "answers");
      for (const name of this.data.names) {
        const cell = this.cell(prompt, name);
        if (cell) answers.append(this.answer(prompt, name, cell));
      }
      this.detail.append(asked, answers);
    }

    barOfDetail(prompt, hash) {
      const bar = element("div", "bar-of-detail");
      for (const [label, by] of [["← Previous", -1], ["Next →", 1]]) {
        const button = element("button", "", label);
        button.type = "button";
        button.disabled = !this.shown[this.at + by];
        button.addEventListener("click", () => this.step(by));
        bar.append(button);
      }
      bar.append(element("span", "", this.at + 1 + " of " + this.shown.length));
      const link = element("a", "", "Link to row " + prompt.id);
      link.href = hash;
      bar.append(link);
      return bar;
    }

    // On paper: some prompts from the shown one on, in their order, each with the data, the reference and the main policy.
    print() {
      this.printed.replaceChildren();
      const count = Number(this.printed.dataset.printed), first = Math.max(0, Math.min(this.at, this.shown.length - count));
      for (const prompt of this.shown.slice(first, first + count)) {
        const row = element("div", "row"), asked = element("p", "text prompt", prompt.prompt), answers = element("div", "answers");
        asked.dir = "auto";
        for (const name of ["data", "reference", this.main]) {
          const cell = this.cell(prompt, name);
          if (!cell) continue;
          const answer = element("div"), text = element("p", "text", cell[0].trim());
          text.dir = "auto";
          answer.append(element("h4", "", cell[1] === null ? name : name + " " + plain(cell[1])), text);
          answers.append(answer);
        }
        row.append(asked, answers);
        this.printed.append(row);
      }
    }

    answer(prompt, name, cell) {
      const card = element("div", "answer" + (name === this.main ? " main" : ""));
      const title = element("h4"), text = element("p", "text");
      title.append(element("span", "", name), element("span", "", cell[1] === null ? "" : plain(cell[1])));
      const other = this.against.value, against = other && other !== name ? this.cell(prompt, other) : null;
      write(text, cell[0].trim(), against ? against[0] : null);
      text.dir = "auto";
      card.append(title, text);
      const meta = element("p", "meta");
      if (cell.length > 2) meta.append(element("span", "", cell[2] + " tokens" + (cell[3] ? "" : ", cut at the limit")));
      (cell[4] || []).forEach((score, i) => meta.append(element("span", "", this.data.components[i].replace("/", ": ") + " " + plain(score))));
      const reference = this.reward(prompt, "reference");
      if (name !== "data" && name !== "reference" && cell[1] !== null && reference !== null) {
        const gain = cell[1] - reference;
        meta.append(element("span", gain > 0 ? "up" : gain < 0 ? "down" : "", signed(gain) + " on the reference"));
      }
      card.append(meta);
      return card;
    }
  }

  // Tables begin with the columns that answer first; without a script all are shown.
  function setUpColumns() {
    for (const region of document.querySelectorAll("[data-columns]")) {
      const button = element("button", "columns", "All columns");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      region.classList.add("few");
      button.addEventListener("click", function () {
        const few = region.classList.toggle("few");
        button.setAttribute("aria-pressed", String(!few));
        button.textContent = few ? "All columns" : "Fewer columns";
      });
      region.before(button);
    }
  }

  // A term explains itself under the pointer, on a tap, or when it has the focus.
  function setUpTerms() {
    const tip = element("div", "tip");
    tip.id = "tip";
    tip.setAttribute("role", "tooltip");
    tip.hidden = true;
    document.body.append(tip);
    function show(term) {
      tip.textContent = term.dataset.meaning;
      tip.hidden = false;
      const box = term.getBoundingClientRect();
      const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
      tip.style.left = left + window.scrollX + "px";
      tip.style.top = box.bottom + 6 + window.scrollY + "px";
      term.setAttribute("aria-describedby", "tip");
    }
    function hide() {
      tip.hidden = true;
    }
    for (const term of document.querySelectorAll("[data-meaning]")) {
      term.addEventListener("mouseenter", () => show(term));
      term.addEventListener("focus", () => show(term));
      term.addEventListener("click", () => show(term));
      term.addEventListener("mouseleave", hide);
      term.addEventListener("blur", hide);
    }
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  }

  function setUpKeys(browsers) {
    document.addEventListener("keydown", function (event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.matches("input, select, textarea");
      if (event.key === "Escape" && typing) event.target.blur();
      if (typing) return;
      // Of several runs, the one that stands nearest to the middle of the window.
      const middle = window.innerHeight / 2;
      const distance = (b) => {
        const box = b.root.getBoundingClientRect();
        return box.top > middle ? box.top - middle : box.bottom < middle ? middle - box.bottom : 0;
      };
      const browser = [...browsers].sort((a, b) => distance(a) - distance(b))[0];
      if (!browser) return;
      if (event.key === "j") browser.step(1);
      else if (event.key === "k") browser.step(-1);
      else if (event.key === "/") {
        event.preventDefault();
        browser.search.focus();
      }
    });
  }

  // Of a large page the JSON is gzip in base64.
  async function unpack(source) {
    const bytes = Uint8Array.from(atob(source.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  setUpTheme();
  setUpSections();
  setUpColumns();
  setUpTerms();
  const browsers = [];
  for (const root of document.querySelectorAll("[data-browser]")) {
    const source = document.querySelector('[data-completions="' + root.dataset.browser + '"]');
    const start = (data) => browsers.push(new Browser(root, data));
    if (source.dataset.encoding === "gzip")
      unpack(source).then(start, () => {
        root.previousElementSibling.after(element("p", "note", "This browser cannot unpack the completions: take a newer one."));
      });
    else start(JSON.parse(source.textContent));
  }
  setUpKeys(browsers);
})();
