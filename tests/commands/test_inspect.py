"""How good is the data: duplicates, neighbours, calibration, sources; and the command that tells it of a file."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from leftover import cli
from leftover.commands.inspect import inspect
from leftover.data.records import unfilled
from leftover.demo import grammar
from leftover.errors import UserError
from leftover.report.analysis.advice import advice
from leftover.report.analysis.analysis import (
    analyse,
    calibration,
    find_duplicates,
    leftover_by_source,
    weight_of_heaviest,
    wilson_interval,
)
from leftover.report.analysis.neighbours import neighbour_disagreement
from leftover.report.analysis.rows import ScoredRows, value_of_words
from leftover.report.page import write_inspection
from tests.browser import one, texts, visit
from tests.conftest import scored_rows


def test_duplicates_are_told_from_contradictions_and_from_completions_used_for_many_prompts() -> None:
    prompts = ["a", "A ", "a", "b", "c", "d"]
    completions = ["Yes", "yes", "no", "yes", "no", "maybe"]
    found = find_duplicates(prompts, completions, np.array([1.0, 3.0, 0.0, 2.0, np.nan, 1.0]))
    # Rows 0 and 1 are one pair, scored 1 and 3; "yes" stands under a, a, b and "no" under a, c.
    assert (found["contradictions"], found["contradicting_rows"], found["repeats"]) == (1, 2, 0)
    assert found["faulty"].tolist() == [True, True, False, False, False, False]
    assert found["widest"] == [{"row": 0, "count": 2, "low": 1.0, "high": 3.0}]
    assert found["shared_completions"] == 5
    assert found["most_shared"] == [{"row": 0, "count": 3, "prompts": 2}, {"row": 2, "count": 2, "prompts": 2}]


def test_rows_without_a_reward_contradict_nothing() -> None:
    found = find_duplicates(["a", "a"], ["x", "x"], np.array([np.nan, 1.0]))
    assert (found["repeats"], found["contradictions"], found["contradicting_rows"], found["widest"]) == (1, 0, 0, [])
    assert found["faulty"].tolist() == [False, True], "a repeat is to be dropped"


def test_a_row_scored_unlike_the_rows_that_read_like_it_stands_out() -> None:
    kind, rude = "thank you kindly for writing to us", "go away and never come back"
    completions = [f"{kind} {i}" for i in range(6)] + [f"{rude} {i}" for i in range(6)]
    rewards = np.array([1.0] * 6 + [-1.0] * 6)
    rewards[2] = -1.0
    found = neighbour_disagreement(["hello there"] * 12, completions, rewards, num_neighbours=3)
    gap = np.abs(rewards[found["rows"]] - found["expected"])
    assert found["rows"][np.argmax(gap)] == 2 and gap.max() == pytest.approx(2)
    assert all(neighbour < 6 for row in found["neighbours"][:6] for neighbour in row)
    assert not any(row in neighbours for row, neighbours in zip(found["rows"], found["neighbours"], strict=True))


def test_neighbours_weigh_by_their_similarity() -> None:
    # One prompt for all (cosine 1). Completion 0 and 1 are equal, 2 shares no word: similarities 1 and 1/2.
    found = neighbour_disagreement(["hi"] * 3, ["red fox", "red fox", "blue"], np.array([0.0, 3.0, 6.0]))
    assert found["similarity"][0] == pytest.approx(0.75)
    assert found["expected"][0] == pytest.approx((1 * 3 + 0.5 * 6) / 1.5)


def test_rows_like_no_other_are_not_compared_and_few_of_many_are_drawn() -> None:
    lonely = neighbour_disagreement(["ab", "cd"], ["ef", "gh"], np.array([0.0, 1.0]))
    assert len(lonely["rows"]) == 0 and lonely["num_compared"] == 2
    assert len(neighbour_disagreement(["a"], ["b"], np.array([1.0]))["rows"]) == 0
    assert len(neighbour_disagreement(["", "!"], ["", "?"], np.array([1.0, 2.0]))["rows"]) == 0
    drawn = neighbour_disagreement(["same words"] * 50, ["here"] * 50, np.arange(50.0), max_rows=10)
    assert drawn["num_compared"] == len(drawn["rows"]) == 10
    assert set(drawn["neighbours"].ravel()) <= set(drawn["rows"])
    rewards = np.where(np.arange(50) % 2, np.arange(50.0), np.nan)
    odd = neighbour_disagreement(["same words"] * 50, ["here"] * 50, rewards, among=np.arange(1, 50, 2))
    assert odd["num_compared"] == 25 and set(odd["rows"] % 2) == set((odd["neighbours"] % 2).ravel()) == {1}


def test_calibration_puts_rows_of_like_value_together() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0, np.nan])
    found = calibration(values, np.array([1.0, 2.0, 1.0, 1.0, 9.0]), num_bins=2)
    # Bins: V 0 with rewards 1, 2 (mean 3/2, standard error 1/2), V 1 with 1, 1. Gaps 3/2 and 0, halves of the rows.
    assert found["bins"] == [
        {"count": 2, "value": 0.0, "reward": 1.5, "error": pytest.approx(0.5)},
        {"count": 2, "value": 1.0, "reward": 1.0, "error": 0.0},
    ]
    assert found["calibration_error"] == pytest.approx(0.75)
    assert found["mean_gap"] == pytest.approx(0.75)
    assert (found["slope"], found["intercept"]) == (pytest.approx(-0.5), pytest.approx(1.5))


def test_every_row_is_in_one_bin_and_a_constant_value_has_one() -> None:
    rng = np.random.default_rng(0)
    found = calibration(rng.integers(0, 4, 1000).astype(float), rng.normal(size=1000))
    assert sum(b["count"] for b in found["bins"]) == 1000
    assert [b["value"] for b in found["bins"]] == sorted(b["value"] for b in found["bins"])
    constant = calibration(np.full(5, 2.0), np.arange(5.0))
    assert len(constant["bins"]) == 1 and constant["slope"] is None
    assert calibration(np.array([np.nan]), np.array([1.0]))["bins"] == []


def test_the_leftover_share_of_every_source() -> None:
    sources = ["a", "a", "b", "b", None, "b"]
    advantages = np.array([1.0, -1.0, 3.0, np.nan, -1.0, 0.0])
    table = leftover_by_source(sources, np.arange(6.0), advantages)
    assert [(r["source"], r["rows"], r["leftover"], r["weight"]) for r in table] == [
        ("a", 2, 1, 0.1),
        ("b", 2, 1, 0.9),
        ("None", 1, 0, 0.0),
    ]
    assert leftover_by_source(["a", "a"], np.ones(2), np.ones(2)) == []
    many = leftover_by_source([str(i) for i in range(30)], np.ones(30), np.ones(30), max_sources=5)
    assert len(many) == 5 and sum(r["rows"] for r in many) == 30


def test_the_interval_of_a_share() -> None:
    # Wilson: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n); at p = 0 it is [0, z2 / (n + z2)].
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10) == (pytest.approx(0, abs=1e-12), pytest.approx(z2 / (10 + z2)))
    low, high = wilson_interval(5, 10)
    assert (low + high) / 2 == pytest.approx(0.5)


def test_the_weight_of_the_heaviest_tenth() -> None:
    assert weight_of_heaviest(np.array([11.0] + [1.0] * 9)) == pytest.approx(11 / 20)
    assert weight_of_heaviest(np.empty(0)) is None


def test_the_value_of_words_never_sees_its_own_prompt() -> None:
    prompts = [f"{'good' if i % 2 else 'bad'} question number {i % 60}" for i in range(120)]
    group = np.arange(120) % 60
    reward = np.array([float(i % 2) for i in range(120)]) + np.random.default_rng(0).normal(0, 0.1, 120)
    value, about = value_of_words(prompts, group, group, reward)
    assert about["kind"] == "ridge" and about["r2"] > 0.5
    changed = reward.copy()
    changed[group == 7] += 100  # rows of one prompt
    again, _ = value_of_words(prompts, group, group, changed)
    assert again[group == 7] == pytest.approx(value[group == 7]), "their own rewards do not move their value"
    with pytest.raises(UserError, match="same prompt"):
        value_of_words(prompts[:2], np.zeros(2), np.zeros(2), np.ones(2))


def test_the_words_of_some_prompts_serve_all_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).permutation(np.arange(400) % 200)  # the rows of a prompt stand anywhere
    prompts = [f"{'good' if n % 2 else 'bad'} question number {n}" for n in numbers]
    reward = numbers % 2 + np.random.default_rng(0).normal(0, 0.1, 400)
    monkeypatch.setattr("leftover.report.analysis.rows._FITTED", 60)
    monkeypatch.setattr("leftover.report.analysis.rows._CHUNK", 7)
    value, about = value_of_words(prompts, 1000 - numbers, numbers, reward)
    assert about["kind"] == "ridge" and about["r2"] > 0.5
    assert np.abs(value - numbers % 2).mean() < 0.2, "every row has the value of its own prompt"


def rows(reward: list[float], value: list[float]) -> ScoredRows:
    texts = [f"text {i}" for i in range(len(reward))]
    none: list[str | None] = [None] * len(reward)
    stored = Dataset.from_dict({"prompt": texts, "completion": texts})
    return ScoredRows(texts, texts, none, texts, np.array(reward), np.array(value), {}, stored, np.arange(len(reward)))


def test_the_analysis_counts_what_it_leaves_out_and_orders_both_ends() -> None:
    found = analyse(rows([3.0, 1.0, 0.0, np.nan, 5.0], [1.0, 1.0, 2.0, 0.0, 4.0]))
    assert (found["rows"], found["leftover"], found["without_advantage"]) == (4, 2, 1)
    assert [row["prompt"] for row in found["heaviest"]] == ["text 0", "text 4"]
    assert [row["prompt"] for row in found["dropped"]] == ["text 2", "text 1"], "A = 0 is not left over"
    assert found["effective_sample_size"] == pytest.approx(25 / 17)  # advantages 2 and 1: weights 4 and 1


def test_a_constant_value_has_no_slope_and_the_page_says_why(tmp_path: Path) -> None:
    # Of five folds each has the mean of the others: reward falls by 4 where the value rises by 1, and says nothing.
    fold = np.arange(100) % 5
    reward = fold + np.random.default_rng(0).normal(0, 0.1, 100)
    means = np.array([reward[fold != i].mean() for i in range(5)])
    assert calibration(means[fold], reward)["slope"] == pytest.approx(-4)
    found = rows(list(reward), list(means[fold]))
    found.about_value = {"kind": "constant", "targets": "recorded", "r2": 0.0, "kinds_by_fold": ["constant"] * 6}
    analysis = analyse(found)
    assert analysis["calibration"]["slope"] is None and len(analysis["calibration"]["bins"]) == 5
    page = write_inspection("rows", found, analysis, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "its bins and a slope are left out" in page and "has the slope" not in page
    assert "Reward against value" not in page and "Advantage of the training rows" in re.sub("<[^>]+>", "", page)
    assert "no value estimate beat the constant" in page.lower()
    # Where other folds took ridge, the slope is theirs.
    found.value = np.where(fold < 2, means[fold], reward / 2)
    found.about_value |= {"kind": "mixed", "kinds_by_fold": ["constant"] * 2 + ["ridge"] * 4}
    found.about_value |= {"constants": means[:2].tolist(), "rows_by_kind": {"constant": 40, "ridge": 60}}
    analysis = analyse(found)
    assert analysis["calibration"]["slope"] == pytest.approx(2)
    page = write_inspection("rows", found, analysis, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "ridge in 3 of 5 folds (60 rows)" in page and "whose value is no constant" in page


def test_advantages_of_rounding_are_not_left_over() -> None:
    assert analyse(rows([0.3, 0.3, 0.1 + 0.2], [0.3 - 5.6e-17, 0.3 + 5.6e-17, 0.3]))["leftover"] == 0


def test_inspect_tells_of_a_data_file_alone(tmp_path: Path, rows_file: Callable, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = scored_rows(40)
    unscored = {"prompt": "Unscored", "completion": "row", "reward": None}
    path = rows_file([*given, given[0], unscored])
    cli.main(["inspect", path])
    said = " ".join(capsys.readouterr().out.split())
    assert "of 41 scored rows" in said and "with one score: 1." in said and " 1 row has no score" in said
    page = (tmp_path / "rows.jsonl.inspect.html").read_text(encoding="utf-8")
    assert "Rows that disagree with their <span" in page and given[0]["completion"].strip() in page


def test_inspect_scores_rows_by_the_functions_it_is_given(tmp_path: Path, rows_file: Callable) -> None:
    bare = [{k: v for k, v in row.items() if k != "reward"} for row in scored_rows(20)]
    path, output = rows_file(bare), str(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"no column 'reward' with a score.*--reward"):
        inspect(path, output=output)
    (tmp_path / "reward.yaml").write_text("- {type: python, function: 'leftover.demo.grammar:score_answers'}\n")
    found = inspect(path, reward=str(tmp_path / "reward.yaml"), output=output)
    expected = sorted(row["reward"] for row in scored_rows(20))
    assert sorted(found.analysis["reward"]) == pytest.approx(expected) and found.page == Path(output)


def test_inspect_adds_recorded_scores_to_those_of_functions_and_leaves_out_rows_without_one(
    tmp_path: Path, rows_file: Callable, monkeypatch: Any
) -> None:
    rows = scored_rows(40)

    def length(text: str) -> int | None:
        return None if len(text) % 3 == 0 else len(text)

    monkeypatch.setattr(grammar, "score_answers", lambda asked, said: list(map(length, said)))
    functions = [{"type": "column", "weight": 2.0}]
    functions.append({"type": "python", "function": "leftover.demo.grammar:score_answers"})
    (tmp_path / "reward.yaml").write_text(json.dumps(functions))
    found = inspect(rows_file(rows), reward=str(tmp_path / "reward.yaml"), output=str(tmp_path / "a.html")).analysis
    expected = [2 * row["reward"] + n for row in rows if (n := length(row["completion"])) is not None]
    assert sorted(found["reward"]) == pytest.approx(sorted(expected)) and 0 < len(expected) < 40
    assert found["without_advantage"] == 40 - len(expected)


def test_inspect_scores_rows_a_part_at_a_time(tmp_path: Path, rows_file: Callable, monkeypatch: Any) -> None:
    monkeypatch.setattr("leftover.commands.scored.SHARD_ROWS", 16)
    sizes = list[int]()
    scores = grammar.score_answers
    monkeypatch.setattr(grammar, "score_answers", lambda asked, said: sizes.append(len(said)) or scores(asked, said))
    bare = [{k: v for k, v in row.items() if k != "reward"} for row in scored_rows(40)]
    (tmp_path / "reward.yaml").write_text("- {type: python, function: 'leftover.demo.grammar:score_answers'}\n")
    analysis = inspect(rows_file(bare), reward=str(tmp_path / "reward.yaml"), output=str(tmp_path / "a.html")).analysis
    expected = sorted(row["reward"] for row in scored_rows(40))
    assert sorted(analysis["reward"]) == pytest.approx(expected) and sizes == [16, 16, 8]


def test_inspect_takes_a_recipe_before_any_training(tmp_path: Path, tiny_recipe: Callable) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny_recipe(tmp_path)))
    found = inspect(str(tmp_path / "recipe.yaml"), export=tmp_path / "rows.jsonl")
    analysis, page = found.analysis, found.page
    num_rows = len((tmp_path / "rows.jsonl").read_text().splitlines())
    told = rf"the {num_rows} training rows of (\d+) rows \(not at (\d+) of validation, (\d+) of test\)"
    whole, validation, test = map(int, re.fullmatch(told, analysis["looked_at"]).groups())  # type: ignore[union-attr]
    assert whole == num_rows + validation + test and f"Looked at {analysis['looked_at']}." in " ".join(
        str(found).split()
    )
    assert f"Of {analysis['looked_at']}:" in page.read_text(encoding="utf-8")
    assert page == tmp_path / "run/inspect.html" and page.is_file()
    assert not (tmp_path / "run/reference").exists(), "no model was trained"
    assert 0 < analysis["leftover"] < analysis["rows"] and analysis["about_value"]["targets"] == "recorded"


def test_inspect_names_the_rows_that_it_leaves_out(tmp_path: Path, rows_file: Callable, caplog: Any) -> None:
    path, output = rows_file([*scored_rows(20), {"prompt": "Why?", "completion": "", "reward": 1}]), tmp_path / "a.html"
    with pytest.raises(UserError, match="'completion' is empty"):
        inspect(path, output=str(output))
    with caplog.at_level("INFO", "leftover"):
        inspect(path, output=str(output), overrides=["data.on_bad_row=skip"])
    assert "21 read, 1 rejected" in caplog.text and "a.rejected_rows.jsonl" in caplog.text
    [rejected] = (tmp_path / "a.rejected_rows.jsonl").read_text().splitlines()
    assert "'completion' is empty" in rejected


def test_inspect_reads_labels_of_true_and_false(tmp_path: Path, rows_file: Callable) -> None:
    rows = [{k: v for k, v in row.items() if k != "reward"} for row in scored_rows(20)]
    found = inspect(rows_file([row | {"label": i % 2 == 0} for i, row in enumerate(rows)]), output=str(tmp_path / "a"))
    assert found.analysis["rows"] == 20


def repeating_rows() -> list[dict[str, Any]]:
    """Rows of which the first is repeated twice with its reward, and the second with other rewards."""
    rows = scored_rows(30)
    again = [rows[0], rows[0] | {"completion": rows[0]["completion"].upper()}]
    contradicting = [rows[1] | {"reward": reward} for reward in (7.0, 7.0, 8.0)]
    return [*rows, *again, *contradicting, {"prompt": "=SUM(A1)", "completion": "-1+2", "reward": None}]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_row_is_exported_with_what_is_known_of_it(
    ending: str, tmp_path: Path, rows_file: Callable, monkeypatch: Any
) -> None:
    monkeypatch.setattr("leftover.report.analysis.table.SHARD_ROWS", 7)
    path, export = rows_file(repeating_rows()), tmp_path / f"every.{ending}"
    analysis = inspect(path, output=str(tmp_path / "a.html"), export=export).analysis
    if ending == "csv":
        found: list[dict[str, Any]] = list(csv.DictReader(export.open(encoding="utf-8", newline="")))
        found = [{name: None if cell == "" else cell for name, cell in row.items()} for row in found]
        numbers = ("reward", "value", "advantage")
        found = [
            row | {n: row[n] and float(row[n]) for n in numbers} | {"kept": row["kept"] == "True"} for row in found
        ]
        assert (found[35]["prompt"], found[35]["completion"]) == ("'=SUM(A1)", "'-1+2")
    else:
        lines = export.read_text(encoding="utf-8").splitlines() if ending == "jsonl" else []
        found = [json.loads(line) for line in lines] or pq.read_table(export).to_pylist()
        assert (found[35]["prompt"], found[35]["completion"]) == ("=SUM(A1)", "-1+2")
    assert [row["where"] for row in found] == [f"{path}:{i + 1}" for i in range(36)]
    assert [row["advantage"] for row in found[:35]] == pytest.approx(list(analysis["advantage"]), rel=1e-5)
    assert all(len(f"{abs(row['advantage']):f}".strip("0").rstrip(".")) <= 9 for row in found[:35]), "no 0.0600000001"
    assert [row["kept"] for row in found] == [a > 0 for a in analysis["advantage"]] + [False]
    repeats = {i: row["repeats"] for i, row in enumerate(found) if row["repeats"]}
    assert repeats == {30: f"{path}:1", 31: f"{path}:1"}, "rows that contradict one another are no repeats"
    twins = analysis["duplicates"]
    assert len(repeats) == twins["repeats"]
    contradicts = {i: row["contradicts"] for i, row in enumerate(found) if row["contradicts"]}
    assert contradicts == {
        1: f"{path}:33; {path}:35", 32: f"{path}:2; {path}:35", 33: f"{path}:2; {path}:35", 34: f"{path}:2; {path}:33"
    }  # fmt: skip
    assert len(contradicts) == twins["contradicting_rows"] == 4 and twins["contradictions"] == 1
    assert found[35]["reward"] is None and found[35]["advantage"] is None


def test_a_row_with_many_rewards_names_some_of_them(tmp_path: Path, rows_file: Callable) -> None:
    path = rows_file([*scored_rows(5), *({"prompt": "Q", "completion": " A", "reward": float(i)} for i in range(20))])
    inspect(path, output=str(tmp_path / "a.html"), export=tmp_path / "a.jsonl")
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    shown = [f"{path}:{i}" for i in range(6, 12)]
    assert found[5]["contradicts"] == "; ".join([*shown[1:], "and 14 more"])
    assert found[24]["contradicts"] == "; ".join([*shown[:5], "and 14 more"])


def test_an_export_has_the_texts_that_chat_asks_as_messages(tmp_path: Path, rows_file: Callable[..., str]) -> None:
    rows, export = scored_rows(20), tmp_path / "a.jsonl"
    options = ["data.prompts=chat", 'data.columns.prompt="Q: {prompt}"']
    inspect(rows_file(rows), overrides=options, output=tmp_path / "a.html", export=export)
    found = [json.loads(line)["prompt"] for line in export.read_text(encoding="utf-8").splitlines()]
    assert found == [row["prompt"] for row in rows]


def test_an_export_of_another_kind_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    for name, said in (("a.txt", "ends in .txt"), ("a", "has no ending")):
        with pytest.raises(UserError, match=rf"--export .*{said}: name a file that ends in .csv or .jsonl or .parquet"):
            inspect("no such file", export=tmp_path / name)


def test_an_inspection_ends_in_what_to_do(tmp_path: Path, rows_file: Callable, capsys: Any) -> None:
    page = tmp_path / "a.html"
    cli.main(["inspect", rows_file(repeating_rows()), "--output", str(page)])
    said = capsys.readouterr().out
    [todo] = re.findall(
        r"Fix 1 contradiction \(4 rows\), drop 2 repeats, score 1 row without a score; \d+% of the scored rows would "
        r"not train, \d of those to fix or drop among them\.",
        " ".join(said.split()),
    )
    assert todo in " ".join(page.read_text(encoding="utf-8").split()) and "--export rows.csv" in said
    kept = round(float(re.search(r"\((\d+)%\) are above", " ".join(said.split()))[1]))  # type: ignore[index]
    assert abs(100 - kept - int(re.search(r"(\d+)% of", todo)[1])) <= 1  # type: ignore[index]


def test_what_to_do_about_rows_without_a_fault() -> None:
    assert advice(analyse(rows([1.0, 0.0], [0.5, 0.5]))) == [
        "No row contradicts or repeats another; 50% of the scored rows would not train."
    ]
    nothing = rows([1.0, 0.0], [2.0, 2.0])
    nothing.about_value = {"kind": "constant"}
    assert advice(analyse(nothing)) == [
        "No row contradicts or repeats another; no row would train.",
        "No value estimate beat the constant on held-out prompts: there a row is compared with the mean of all, not "
        "with its prompt.",
    ]


def test_the_page_holds_every_row_to_sort_and_filter(tmp_path: Path, rows_file: Callable, browser: Any) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    many = [{"prompt": f"Asked {i}th", "completion": " </script><b>x", "reward": float(i % 7)} for i in range(600)]
    path = rows_file([*repeating_rows(), *many])
    found = inspect(path, output=str(tmp_path / "a.html"))
    visit(browser, found.page)

    def becomes(shown: Callable[[], bool]) -> None:
        WebDriverWait(browser, 20).until(lambda _: shown())

    becomes(lambda: one(browser, "[data-status]").text == "636 of 636 rows")
    assert 10 < len(browser.find_elements("css selector", "[data-body] tr[data-row]")) < 60, "only those in view"

    def places() -> list[str]:
        script = "return [...document.querySelectorAll('[data-body] tr[data-row] th')].map((e) => e.textContent)"
        return [where.rpartition(":")[2] for where in browser.execute_script(script)]

    def press(selector: str) -> None:
        browser.execute_script("arguments[0].click()", one(browser, selector))

    def choose(control: str, value: str) -> None:
        Select(one(browser, f"[data-{control}]")).select_by_value(value)

    assert places()[:3] == ["1", "2", "3"]
    choose("fault", "contradicts")
    becomes(lambda: places() == ["2", "33", "34", "35"])
    choose("fault", "repeats")
    becomes(lambda: places() == ["31", "32"])
    choose("fault", "")
    choose("train", "yes")
    kept = f"{found.analysis['leftover']} of 636 rows"
    becomes(lambda: one(browser, "[data-status]").text == kept)
    choose("train", "")
    press("[data-head] th:nth-child(2) button")
    becomes(lambda: places()[:2] == ["35", "33"])  # the highest reward first
    press("[data-head] th:nth-child(2) button")
    browser.execute_script("const v = document.querySelector('[data-view]'); v.scrollTop = v.scrollHeight")
    becomes(lambda: places()[-1] == "36")  # without a reward: last either way
    one(browser, "[data-search]").send_keys("asked 599th")
    becomes(lambda: places() == ["636"])
    press("[data-body] tr[data-row] td")
    becomes(lambda: texts(browser, "[data-detail] p") == ["Asked 599th", " </script><b>x"])
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_a_page_says_which_rows_it_has_no_room_for(tmp_path: Path, rows_file: Callable, monkeypatch: Any) -> None:
    monkeypatch.setattr("leftover.report.page._MAX_ROWS", 10)
    page = inspect(rows_file(scored_rows(12)), output=str(tmp_path / "a.html")).page.read_text(encoding="utf-8")
    assert "These are the first 10 of 12 rows. --export writes all of them" in page


def test_exports_have_the_texts_of_the_users_own_columns(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = tiny_recipe(tmp_path)
    content["data"]["columns"] = {"prompt": "Q: {{x}} {prompt}\n", "completion": " {completion}"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    inspect(str(tmp_path / "recipe.yaml"), export=tmp_path / "rows.jsonl")
    lines = Path(content["data"]["path"]).read_text(encoding="utf-8").splitlines()
    given = {(row["prompt"], row["completion"]) for row in map(json.loads, lines)}
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert found and {(row["prompt"], row["completion"]) for row in found} <= given


@pytest.mark.parametrize(
    ("template", "text", "cell"),
    [
        (" {answer}", " yes", "yes"),
        ("{{x}}{q}{{y}}\n", "{x}why{y}\n", "why"),
        ("answer", " yes", " yes"),
        ("{a} {b}", "x y", "x y"),
    ],
)
def test_a_template_is_taken_off_again(template: str, text: str, cell: str) -> None:
    assert unfilled(template, text) == cell
