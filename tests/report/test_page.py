"""report.html of a whole run: what is in it, who writes it, and what Chromium makes of hostile texts."""

import base64
import gzip
import json
import re
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from leftover import cli
from leftover.commands.compare.run import Options, compare
from leftover.commands.report import report_on
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe.files import load_recipe, make_recipe
from leftover.report.completions import side_by_side
from leftover.report.page import run_view, write_page, write_report_page
from leftover.report.several import runs_caveats, runs_grid, scales, titles
from leftover.report.terms import OBJECTIVES
from leftover.runs.finished import FinishedRun
from leftover.runs.names import evaluation_artifact, read_completions
from leftover.store.manifest import Manifest
from leftover.store.sealed import digest, read_sealed, write_sealed
from tests.browser import one, texts, visit, width
from tests.conftest import scored_rows

# Each sets window.hacked where it is taken for markup; or draws wide, or turns what follows around.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script><!--",
    "<img src=x onerror='window.hacked = 1'><svg onload=window.hacked=1>",
    '" onmouseover="window.hacked = 1" x="',
    "\u202edesrever\u202c \u2067rtl\u2069 שלום \u200f",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} &lt;b&gt; $x_1$",
    "W" * 100_000,
)

MAIN = "a_lol<img src=x onerror=alert(1)>"  # no name of a new run, but folders of strangers may hold it


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> dict[str, Any]:
    """A recipe whose rows, sources, name and policy are hostile."""
    rows = scored_rows(60)
    for i, row in enumerate(rows):
        bad = HOSTILE[i % len(HOSTILE)]
        row |= {"prompt": f"{row['prompt']} {bad}", "completion": f" {bad} {row['completion']}", "source": bad[:60]}
    return tiny_recipe(
        tmp_path_factory.mktemp("page"),
        rows=rows,
        name=HOSTILE[1],
        data={"long_completions": "cut"},
        reward={"functions": [{"type": "column", "new_completions": {"type": "text", "function": "length"}}]},
        policies={MAIN: {"objective": "a_lol"}, "nll": {"objective": "nll"}},
        train={"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1},
    )


@pytest.fixture(scope="module")
def folder(content: dict[str, Any]) -> Path:
    """The finished run, with completions as hostile as the rows, and rewards that are known."""
    run(make_recipe(content, saved=True))
    found = Path(content["output_dir"])
    assert (found / "report.html").is_file(), "run writes the page"
    for number, path in enumerate(sorted((found / "evaluation").glob("*.jsonl"))):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for i, line in enumerate(lines):
            line |= {
                "text": f"answer {i} {HOSTILE[(i + number) % len(HOSTILE)]} end",
                "reward": float((i * number) % 5),
            }
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        Manifest(found).finish(evaluation_artifact(path.stem), wrote=[path, path.with_suffix(".json")])
    return found


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"}
    (folder / "report.html").unlink()
    cli.main(["report", str(folder)])
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"}
    assert before == after, "a finished run is read and not changed"
    return folder / "report.html"


def embedded(page: Path) -> dict[str, Any]:
    """What the first script of completions holds, unpacked as page.js does."""
    found = re.search(r'data-encoding="(\w+)">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[2] if found[1] == "json" else gzip.decompress(base64.b64decode(found[2])))


def without_terms(text: str) -> str:
    """The page's text without the marks around terms that explain themselves."""
    return re.sub(r'<span class="term"[^>]*>(.*?)</span>', r"\1", text)


def test_the_page_holds_all_sections_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for heading in ("Results", "Training", "The leftover", "Completions side by side", "Reproduce"):
        assert f"<h2>{heading}</h2>" in text
    shown = without_terms(text)
    assert "held-out prompts" in shown and "Reward distribution" in shown and "Advantage of the training rows" in shown
    assert not re.findall(r"""(?:src|href)=["']?(?!#)[^"' >]*//""", re.sub(r"(?s)<script.*?</script>", "", text))
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not re.search(r"<[a-z][^<>]* style=", re.sub(r"(?s)<script.*?</script>", "", text)), (
        "the policy forbids them"
    )
    assert page.stat().st_size < 3_000_000


def test_terms_of_the_page_are_explained_and_say_nothing_else(page: Path) -> None:
    text = page.read_text("utf-8")
    explained = dict(re.findall(r'data-meaning="([^"]+)">([^<]+)</span>', text)).values()
    headings = {"KL", "effective sample size", "distinct\u20112, × reference", "nll", "reference", "data"}
    assert headings <= {word.strip() for word in explained}
    assert OBJECTIVES["nll"] in text and "slightly below 0" in text


def test_the_page_holds_every_completion_as_it_is(page: Path, folder: Path) -> None:
    data = embedded(page)
    policy = data["main"]
    lines = (folder / f"evaluation/{policy}-seed-0.jsonl").read_text(encoding="utf-8").splitlines()
    written = {(line["group"], line["decoding"]): line["text"] for line in map(json.loads, lines)}
    shown = {(p["id"], d): p[d][policy][0] for p in data["prompts"] for d in data["decodings"]}
    assert shown == written and data["note"] == ""
    assert data["names"] == ["data", "reference", policy, "nll"]


def large_completions() -> dict[str, Any]:
    """2,000 prompts with completions of 60 to 100 words by five policies: ten times 2,000 with the reference's."""
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = np.array([f"{a}{b}{end}" for a in syllables for b in syllables for end in ("", "n")])
    # As often as words of a language are (Zipf), so that they are compressed about as well.
    frequent = np.cumsum(1 / np.arange(1, len(words) + 1))
    drawn = words[np.searchsorted(frequent / frequent[-1], rng.random(1_500_000))].tolist()
    names, used = ["reference", *(f"policy-{i}" for i in range(5))], iter(drawn)

    def text() -> str:
        return " ".join(islice(used, int(rng.integers(60, 101))))

    def prompt(i: int) -> dict[str, Any]:
        answers = {name: [text(), round(float(rng.normal()), 4), 90, True, [0.5, 0.25]] for name in names}
        return {"id": i, "source": "s", "prompt": f"row {i}: {text()}", "data": [text(), 1.0], "sampled": answers}

    return {
        "names": ["data", *names], "main": "policy-0", "decodings": ["sampled"], "components": ["reward/a", "judge/b"],
        "prompts": [prompt(i) for i in range(2000)], "note": "",
    }  # fmt: skip


@pytest.fixture(scope="module")
def large(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two thousand prompts, of a run that logged every one of ten thousand steps."""
    copy = tmp_path_factory.mktemp("large") / "run"
    shutil.copytree(folder, copy)
    metrics = [{"step": i, "loss": i % 7 / 7, "logratio/mean": i % 13, "importance_weight/mean": 1.0, "entropy": i % 3}
               for i in range(10_000)]  # fmt: skip
    for path in copy.glob("policies/*/seed-0/metrics.jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    finished = FinishedRun(copy)
    results = finished.results()
    assert results is not None
    view = run_view(finished, results, "run-1") | {"completions": large_completions()}
    return write_page([view], copy / "report.html")


def test_two_thousand_prompts_of_several_policies_stay_below_three_megabytes(large: Path) -> None:
    text = large.read_text(encoding="utf-8")
    assert large.stat().st_size < 3_000_000
    shown = embedded(large)
    left_out = "" if len(shown["prompts"]) == 2000 else f"{len(shown['prompts']):,} of 2,000 prompts are shown"
    assert shown["note"] and left_out in shown["note"]
    said = f'{shown["note"]} The run\'s folder <a href="evaluation/">'
    assert said.replace("'", "&#39;") in text or said in text, "what is shortened is said, and where the rest is"


def test_several_runs_make_one_page_and_a_moved_run_is_reported_where_it_is(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    found = report_on([str(folder), str(moved)], output=str(tmp_path / "both.html"))
    text = found.read_text(encoding="utf-8")
    assert 'id="run-1"' in text and 'id="run-2"' in text and text.count('type="application/json"') == 2
    assert "The runs side by side" in text and ">moved</bdi>" in text
    with pytest.raises(UserError, match="named twice"):
        report_on([str(folder), f"{folder}/"])


def test_of_several_runs_the_table_shows_what_their_recipes_differ_in(tmp_path: Path, tiny_recipe: Callable) -> None:
    contents = [tiny_recipe(tmp_path) | {"seeds": seeds} for seeds in ([0], [0, 1])]
    recipes = [make_recipe(content) for content in contents]
    scored = {"reward": {"mean": 1.0, "low": 0.9, "high": 1.1}, "win_rate": 0.75, "length": 8.0}
    found = {"main": "a_lol_seq", "primary": "sampled", "sampled": {"table": {"a_lol_seq": scored}}}
    grid = runs_grid(["one", "two"], recipes, [found, None])
    assert grid.header == ["run", "policy", "reward [95 %]", "win rate", "length", "seeds"]
    assert grid.cells[0] == ["one", "a_lol_seq", "1.000 [0.900, 1.100]", "0.75", "8.0", "[0]"]
    assert grid.cells[1] == ["two", "–", "–", "–", "–", "[0, 1]"]


def test_rewards_of_several_runs_that_are_not_comparable_are_marked(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = tiny_recipe(tmp_path)
    scaled = {"functions": [{"type": "column", "weight": 2.0}]}
    unfinished = content.get("evaluate", {}) | {"unfinished": "drop"}
    alike, other, third = (
        make_recipe(content | more)
        for more in ({"seeds": [1]}, {"reward": content["reward"] | scaled}, {"evaluate": unfinished})
    )
    recipes = [make_recipe(content), alike, other, third]
    assert scales(recipes) == ["A", "A", "B", "C"] and runs_caveats(recipes[:2]) == []
    [said] = runs_caveats(recipes)
    assert "not comparable (reward.functions, evaluate.unfinished differ)" in said
    scored = {"reward": {"mean": 1.0, "low": 0.9, "high": 1.1}, "win_rate": 0.75, "length": 8.0}
    found = [{"main": "a_lol_seq", "primary": "sampled", "sampled": {"table": {"a_lol_seq": scored}}}] * 4
    grid = runs_grid([*"abcd"], recipes, found)
    assert grid.header[:6] == ["run", "policy", "scale of reward", "reward [95 %] †", "win rate †", "length"]
    assert [line[2] for line in grid.cells] == ["A", "A", "B", "C"]
    moved = make_recipe(content | {"seed": 7})
    assert ["not on the same rows (seed differ)" in said for said in runs_caveats([recipes[0], moved])] == [True]


def test_runs_are_called_by_the_folders_that_tell_them_apart() -> None:
    assert titles(["/a/x/run", "/a/y/run"]) == ["x", "y"] and titles(["/a/x", "/b/y"]) == ["x", "y"]
    assert titles(["/a/x/1", "/a/y/1", "/b/x/1"]) == ["a/x/1", "a/y/1", "b/x/1"]


def test_a_folder_without_a_run_is_refused_and_a_run_is_not_changed_by_its_page(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"'nowhere' does not exist: name the folder of a .*run, or a recipe"):
        report_on(["nowhere"])
    with pytest.raises(UserError, match="not the folder of a run"):
        report_on([str(tmp_path)])
    with pytest.raises(UserError, match=r"--set .*is a run"):
        report_on([str(folder)], overrides=["train.max_steps=5"])


def killed_while(stage: str, folder: Path) -> None:
    """Make a finished run one that was killed in that stage, with what a killed run leaves: half a line, no results."""
    later = ["prepare", "train", "evaluate", "report"]
    later = later[later.index(stage) :]
    (folder / "results.json").unlink()
    manifest = read_sealed(folder / "manifest.json")
    if "evaluate" in later:
        del manifest["evaluation of nll-seed-0"]
        manifest[f"evaluation of {MAIN}-seed-0"]["complete"] = "train" not in later
    if "train" in later:
        del manifest["evaluation of reference"], manifest["policy nll, seed 0"]
        manifest[f"policy {MAIN}, seed 0"]["complete"] = False
        with (folder / f"policies/{MAIN}/seed-0/metrics.jsonl").open("a") as log:
            log.write('{"step": 9, "lo')
    if "prepare" in later:
        manifest = {}
        table = read_sealed(folder / "table/manifest.json")
        table["reward"]["complete"] = False
        write_sealed(folder / "table/manifest.json", table)
    write_sealed(folder / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("stage", "sections", "missing"),
    [
        ("prepare", ("Training", "Reproduce"), "evaluation of reference, policy a_lol"),
        ("train", ("Training", "The leftover", "Reproduce"), "policy nll, seed 0"),
        ("evaluate", ("Results", "Training", "The leftover", "Completions side by side"), "evaluation of nll-seed-0."),
        ("report", ("Results", "Training", "The leftover", "Completions side by side"), "missing: results."),
    ],
)
def test_of_an_unfinished_run_the_page_shows_what_there_is_and_nothing_else_is_written(
    stage: str, sections: tuple[str, ...], missing: str, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors", "report.*"))
    killed_while(stage, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    cli.main(["report", str(copy)])
    text = (copy / "report.html").read_text(encoding="utf-8")
    (copy / "report.html").unlink()
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert '<p class="sentence">Unfinished.' in text and missing in without_terms(text) and "It is continued by" in text
    for heading in ("Results", "Training", "The leftover", "Completions side by side", "Reproduce"):
        shown = heading in (*sections, "Reproduce")
        assert (f"<h2>{heading}</h2>" in text) == shown, heading


def test_an_unfinished_run_that_treats_completions_without_an_end_has_a_page(folder: Path, tmp_path: Path) -> None:
    """How it treats them is among its tables, and was taken for a decoding."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors", "report.*"))
    killed_while("report", copy)
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["evaluate"]["unfinished"] = {"penalty": 0.5}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    cli.main(["report", str(copy)])
    assert "<h2>Results</h2>" in (copy / "report.html").read_text(encoding="utf-8")


def test_results_of_another_training_are_not_taken_for_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """A run that is trained anew with other settings keeps its old results.json until its end."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    assert FinishedRun(copy).unfinished() == []
    manifest = read_sealed(copy / "manifest.json")
    manifest["policy nll, seed 0"]["key"]["settings"]["learning_rate"] = 7.0
    write_sealed(copy / "manifest.json", manifest)
    assert FinishedRun(copy).unfinished() == ["evaluation of nll-seed-0"]
    manifest["policy nll, seed 0"]["best_step"] = 77
    manifest["evaluation of nll-seed-0"]["key"]["model"] = digest(manifest["policy nll, seed 0"]["key"])
    write_sealed(copy / "manifest.json", manifest)
    assert FinishedRun(copy).unfinished() == ["results"]


def test_a_policy_called_data_stands_beside_the_datas_completions(folder: Path) -> None:
    """As in runs of earlier versions; a new one is refused."""
    lines = read_completions(folder, "nll-seed-0")
    group = lines[0]["group"]
    row = {"group": group, "source": None, "prompt": "p", "conversational": False, "completion": "of the data"}
    shown = side_by_side([row], {"reference": {0: lines}, "data": {0: lines}}, "data", ["sampled"], 0)
    assert shown["names"] == ["data", "reference", "data (policy)"] and shown["main"] == "data (policy)"
    assert shown["prompts"][0]["data"] == ["of the data", None]
    assert set(shown["prompts"][0]["sampled"]) == {"reference", "data (policy)"}


def test_a_comparison_writes_the_page_too(content: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    compare(make_recipe(content | {"output_dir": str(copy)}, saved=True), Options(methods="nll,wbc,a_lol", seeds=1))
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert ("No winner. On " in text or "Best: " in text) and set(embedded(copy / "report.html")["names"]) >= {
        "nll",
        "a_lol",
    }
    assert "(objective wbc) needs rewards" in text, "why a method is not there"
    again = write_report_page([copy], tmp_path / "again.html").read_text(encoding="utf-8")
    assert "No winner" in again or "Best: " in again, "the folder tells that its last run was a comparison"
    assert set(load_recipe(copy).policies) == {"nll", "a_lol"}


def choose(browser: Any, name: str, value: str) -> None:
    one(browser, f"[data-{name}] option[value='{value}']").click()


def gains(browser: Any) -> list[float]:
    return [float(text.replace("−", "-")) for text in texts(browser, ".option b")]


@pytest.mark.parametrize("policy", ["with its policy", "without it"])
def test_hostile_texts_run_nothing_log_nothing_and_widen_nothing(
    browser: Any, page: Path, tmp_path: Path, policy: str
) -> None:
    """Without the Content-Security-Policy escaping stands alone."""
    if policy == "without it":
        text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        assert count == 1
        page = tmp_path / "page.html"
        page.write_text(text, encoding="utf-8")
    visit(browser, page)
    for pixels in (1280, 390):
        width(browser, pixels)
        browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        for _ in range(len(HOSTILE)):
            one(browser, "body").send_keys("j")
            seen = browser.execute_script(
                "const e = document.documentElement; return [e.scrollWidth - e.clientWidth, window.hacked || 0]"
            )
            assert seen == [0, 0]
    assert browser.get_log("browser") == []
    assert not browser.find_elements(
        "css selector", "main img, main [onerror], main [onmouseover], main script:not([type])"
    )


def test_search_sort_filter_and_keys_lead_to_the_rows_asked_for(browser: Any, page: Path) -> None:
    width(browser, 1280)
    visit(browser, page)
    data = embedded(page)
    known = {p["id"]: p["sampled"][data["main"]][1] - p["sampled"]["reference"][1] for p in data["prompts"]}
    assert gains(browser) == list(known.values())
    choose(browser, "sort", "gain")
    assert gains(browser) == sorted(known.values(), reverse=True)
    choose(browser, "sort", "loss")
    assert gains(browser) == sorted(known.values())
    choose(browser, "filter", "better")
    assert gains(browser) == sorted(gain for gain in known.values() if gain > 0)
    choose(browser, "filter", "all")
    search = one(browser, "[data-search]")
    search.send_keys("ANSWER 3 ")
    [found] = [p for p in data["prompts"] if "answer 3 " in json.dumps(p["sampled"])]
    assert texts(browser, "[data-status]") == [f"1 of {len(known)} prompts"]
    assert texts(browser, ".answer.main .text")[0].startswith("answer 3 ")
    assert texts(browser, ".asked .text") == [found["prompt"]]
    search.clear()
    search.send_keys("no row says this")
    assert texts(browser, ".option") == [] and "No prompt fits" in texts(browser, "[data-list]")[0]


def test_tables_begin_with_five_columns_and_terms_explain_themselves(browser: Any, page: Path) -> None:
    width(browser, 1280)
    visit(browser, page)
    first = ["policy", "reward [95 %]", "− reference [95 %]", "win rate", "length", "KL"]
    table = one(browser, "#run-1-results [data-columns]")

    def shown() -> list[str]:
        return [head.text for head in table.find_elements("css selector", "thead th") if head.is_displayed()]

    assert shown() == first
    browser.execute_script("document.querySelector('button.columns').click()")
    assert len(shown()) > len(first) + 3
    browser.execute_script("document.querySelector('button.columns').click()")
    assert shown() == first
    assert not one(browser, ".tip").is_displayed()
    for term, meaning in (
        ("#run-1-results th", "Mean over prompts."),
        ("#run-1-results tbody th", "The answers of the held-out rows themselves."),
        (".tiles", "The model that every policy starts from"),
    ):
        browser.execute_script(f"document.querySelector('{term} [data-meaning]').focus()")
        assert one(browser, ".tip").is_displayed() and one(browser, ".tip").text.startswith(meaning)
    one(browser, "body").send_keys("\ue00c")  # Escape
    assert not one(browser, ".tip").is_displayed()


def test_the_text_of_pictures_is_shown_large_enough(browser: Any, page: Path) -> None:
    """12 pixels at least, whatever a picture is scaled to."""
    visit(browser, page)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    for pixels in (1280, 390):
        width(browser, pixels)
        found = browser.execute_script(
            """return [...document.querySelectorAll("svg.plot text")].map((text) => {
              const at = text.getScreenCTM();
              return [parseFloat(getComputedStyle(text).fontSize) * Math.hypot(at.a, at.b), text.textContent];
            })"""
        )
        assert len(found) > 50 and [text for size, text in found if size < 12] == []


@pytest.mark.parametrize("kind", ["hostile", "large"])
def test_on_paper_there_are_ten_completions_on_six_pages_at_most(
    browser: Any, page: Path, large: Path, kind: str
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    width(browser, 1280)
    visit(browser, {"hostile": page, "large": large}[kind])
    WebDriverWait(browser, 20).until(lambda it: it.find_elements("css selector", ".asked"))
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    pages = max(int(count) for count in re.findall(rb"/Type /Pages\s*/Count (\d+)", base64.b64decode(printed)))
    assert 2 <= pages <= 6
    rows = browser.find_elements("css selector", ".printed .row")
    assert len(rows) == min(10, len(texts(browser, ".option")))
    assert [len(row.find_elements("css selector", ".answers > div")) for row in rows] == [3] * len(rows)
    assert not one(browser, ".printed").is_displayed(), "on the screen"


def test_a_compressed_page_is_unpacked_searched_and_linked_into(browser: Any, large: Path) -> None:
    width(browser, 1280)
    visit(browser, large, "#run-1-row-7")
    until = time.monotonic() + 20
    while not browser.find_elements("css selector", ".asked") and time.monotonic() < until:
        time.sleep(0.05)
    assert texts(browser, ".asked .text")[0].startswith("row 7: ")
    one(browser, "[data-search]").send_keys("11:")
    assert all(" 11:" in text or "11: " in text for text in texts(browser, ".asked .text"))
    assert browser.get_log("browser") == []


def test_keys_and_links_lead_from_row_to_row(browser: Any, page: Path) -> None:
    ids = [p["id"] for p in embedded(page)["prompts"]]
    visit(browser, page)
    body = one(browser, "body")
    body.send_keys("jj")
    assert browser.current_url.endswith(f"#run-1-row-{ids[2]}")
    body.send_keys("k")
    assert browser.current_url.endswith(f"#run-1-row-{ids[1]}")
    body.send_keys("/")
    assert browser.switch_to.active_element == one(browser, "[data-search]")
    visit(browser, page, f"#run-1-row-{ids[-1]}")
    assert texts(browser, ".option[aria-selected=true]") and f"{len(ids)} of {len(ids)}" in texts(browser, ".detail")[0]


def test_differences_are_marked_word_by_word(browser: Any, page: Path) -> None:
    visit(browser, page)
    data = embedded(page)
    ours, theirs = (data["prompts"][0]["sampled"][name][0] for name in (data["main"], "reference"))
    marked = texts(browser, ".answer.main mark")
    assert marked == [word for word in ours.split() if word not in theirs.split()]
    choose(browser, "against", "")
    assert texts(browser, "mark") == []


def test_the_theme_is_chosen_and_remembered(browser: Any, page: Path) -> None:
    visit(browser, page)

    def paper() -> str:
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    button, seen = one(browser, "[data-theme-button]"), {}
    for _ in range(3):
        button.click()
        seen[button.get_attribute("aria-label")] = paper()
    assert seen["Theme: light"] != seen["Theme: dark"] and "Theme: as the system" in seen
    button.click()
    button.click()
    visit(browser, page)
    assert paper() == seen["Theme: dark"]
    one(browser, "[data-theme-button]").click()


def test_everything_can_be_reached_by_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, page)
    reached, until = set(), time.monotonic() + 20
    while time.monotonic() < until:
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.execute_script(
            "const e = document.activeElement; return e.tagName + '.' + Object.keys(e.dataset).join()"
        )
        if active in ("BODY.", "HTML."):
            break
        reached.add(active)
    assert {"BUTTON.themeButton,now", "INPUT.search", "SELECT.sort", "DIV.list", "SUMMARY."} <= reached
