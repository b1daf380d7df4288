"""The rating page in Chromium: what it shows, its keys, what it keeps, and what it gives to `--import`."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from leftover.commands.judge.human import import_ratings, write_page
from leftover.commands.judge.pairs import Comparison, Pair
from leftover.commands.judge.questions import Criterion
from tests.browser import one, visit, width
from tests.commands.judge.judge_service import make_pairs
from tests.report.test_page import HOSTILE

CRITERIA = (Criterion("good", f"Which is good? {HOSTILE[0]} {'W' * 400}"), Criterion("kind", "Which is kind?"))


def page_of(folder: Path, pairs: list[Pair], criteria: tuple[Criterion, ...] = CRITERIA) -> Path:
    page = folder / "page.html"
    write_page(folder, Comparison("policy-seed-0", "data", "sampled", tuple(pairs), 4.0, 0.25), criteria, page)
    return page


def state(browser: Any) -> str:
    return str(one(browser, "#place").text)


def press(browser: Any, keys: str) -> None:
    one(browser, "body").send_keys(keys)


def chosen(browser: Any) -> list[str]:
    return [str(b.get_attribute("id")) for b in browser.find_elements("css selector", "[aria-pressed=true]")]


@pytest.mark.parametrize("policy", ["with its policy", "without it"])
def test_hostile_texts_run_nothing_log_nothing_and_widen_nothing(browser: Any, tmp_path: Path, policy: str) -> None:
    """Without the Content-Security-Policy escaping stands alone."""
    texts = [*HOSTILE[:-1], HOSTILE[-1][:20_000], "a" * 300 + " " + "word " * 3000]
    pairs = [Pair(f"id{i}", text, text + " mine", "yours " + text, i, "", 0) for i, text in enumerate(texts)]
    page = page_of(tmp_path, pairs, CRITERIA[:1])
    if policy == "without it":
        text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        assert count == 1
        page.write_text(text, encoding="utf-8")
    visit(browser, page)
    for pixels, arrow in ((1280, "\ue014"), (390, "\ue012")):
        width(browser, pixels)
        for _ in pairs:
            found = browser.execute_script(
                "const e = document.documentElement; return [e.scrollWidth - e.clientWidth, window.hacked || 0]"
            )
            assert found == [0, 0]
            press(browser, arrow)
    assert browser.get_log("browser") == []
    assert not browser.find_elements("css selector", "main img, main [onerror], main script, main [onmouseover]")


def test_keys_rate_and_go_on_and_a_reload_keeps_the_answers(browser: Any, tmp_path: Path) -> None:
    width(browser, 1280)
    page = page_of(tmp_path, make_pairs(("a", "b"), ("c", "d")))
    visit(browser, page)
    assert state(browser) == "Question 1 of 4, 0 answered"
    press(browser, "1")
    assert state(browser) == "Question 2 of 4, 1 answered" and chosen(browser) == []
    press(browser, "9x")
    assert state(browser) == "Question 2 of 4, 1 answered"
    press(browser, "23")
    assert state(browser) == "Question 4 of 4, 3 answered"
    press(browser, "\ue012\ue012\ue012")
    assert chosen(browser) == ["rate1"]
    one(browser, "#rater").send_keys("Ada 123")
    assert state(browser) == "Question 1 of 4, 3 answered", "a name is no rating"
    browser.refresh()  # a visit by another page may come before what was stored is there
    assert state(browser) == "Question 4 of 4, 3 answered", "it goes on where an answer is missing"
    assert one(browser, "#rater").get_property("value") == "Ada 123"
    press(browser, "\ue012")
    assert chosen(browser) == ["rate3"]
    assert browser.get_log("browser") == []


def test_what_the_page_exports_is_imported(browser: Any, tmp_path: Path) -> None:
    width(browser, 390)
    page = page_of(tmp_path, make_pairs(*[(f"mine {i}", f"yours {i}") for i in range(3)]))
    visit(browser, page)
    one(browser, "#export").click()
    assert "Give your name first" in one(browser, "#status").text
    one(browser, "#rater").send_keys("Bo / B")
    for _ in range(6):
        ours = "rate1" if one(browser, "#first").text.startswith("mine") else "rate3"
        one(browser, f"#{ours}").click()
    assert "All questions are answered" in one(browser, "#status").text
    one(browser, "#export").click()
    for _ in range(100):
        if found := list(browser.downloads.glob("ratings-*-Bo-B.json")):
            break
        time.sleep(0.05)
    results, _ = import_ratings(tmp_path, [Path(shutil.move(found[0], tmp_path / "ratings.json"))])
    assert results["raters"] == ["Bo / B"]
    for name in ("good", "kind"):
        assert results["criteria"][name]["win"]["mean"] == 1 and results["criteria"][name]["ratings"] == 3
    assert browser.get_log("browser") == []
