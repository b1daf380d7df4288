// Of `leftover watch`: asks where the run is, and loads the page anew when there is something new to show.
(function () {
  const SHOWN = STATE;
  const EVERY = 2000; // milliseconds

  async function ask(path) {
    const answer = await fetch(path, { cache: "no-store" });
    return answer.ok ? answer.text() : null;
  }

  async function look() {
    try {
      const state = await ask("/state");
      if (state !== null && state !== SHOWN) {
        location.reload();
        return;
      }
      const doing = await ask("/doing");
      if (doing !== null) document.querySelector("#doing").textContent = doing;
    } catch (gone) {
      document.querySelector(".kicker").textContent = "Leftover · no longer watched";
      return;
    }
    setTimeout(look, EVERY);
  }
  setTimeout(look, EVERY);
})();
