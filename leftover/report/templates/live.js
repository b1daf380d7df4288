// Of `leftover watch`: asks for the state of the run, and loads the page anew when it is no longer the one shown.
(function () {
  const SHOWN = STATE;
  const EVERY = 2000; // milliseconds

  async function look() {
    try {
      const answer = await fetch("/state", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== SHOWN) {
        location.reload();
        return;
      }
    } catch (gone) {
      document.querySelector(".kicker").textContent = "Leftover · no longer watched";
    }
    setTimeout(look, EVERY);
  }
  setTimeout(look, EVERY);
})();
