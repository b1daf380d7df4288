"""`leftover judge` on a run: which completions are compared, what it shows and writes, and what it refuses."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover.cli import main
from leftover.commands.judge import pairs as pairs_module
from leftover.commands.judge.pairs import compare_sides, evaluated_completions, own_row, rows_by_prompt
from leftover.data.chat import readable
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.runs.finished import FinishedRun
from leftover.runs.names import evaluation_artifact
from leftover.store.files import write_json
from leftover.store.manifest import Manifest
from leftover.store.sealed import write_sealed
from tests.commands.judge.judge_service import JudgeService, prefers, says
from tests.commands.judge.test_human import parse
from tests.conftest import scored_rows

CANARY = "sk-canary-51c0"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> Path:
    """A run of two test sets with seeds 0 and 1 of one policy, evaluated on eight prompts."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [row | {"source": "ab"[i % 2]} for i, row in enumerate(scored_rows(100))]
    policies = {"nll": {"objective": "nll", "rows": "all"}}
    both = {"decodings": ["sampled", "greedy"]}
    recipe = make_recipe(tiny_recipe(folder, rows, seeds=[0, 1], policies=policies, evaluate=both))
    run(recipe, "evaluate")
    return Path(recipe.output_dir)


@pytest.fixture
def folder(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of that run, whose completions a test may write."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


@pytest.fixture
def service() -> Any:
    started = JudgeService()
    yield started
    started.close()


def write(folder: Path, subject: str, text: Callable[[dict], str]) -> None:
    """Give a subject other completions: `text` of each record."""
    path = folder / "evaluation" / f"{subject}.jsonl"
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    path.write_text("".join(json.dumps(r | {"text": text(r)}, ensure_ascii=False) + "\n" for r in records))
    Manifest(folder).finish(evaluation_artifact(subject), wrote=[path])


def judge(folder: Path, service: JudgeService, *options: str) -> int:
    """The exit status of the verb."""
    given = ["judge", str(folder), "--model", "stub", "--base-url", service.url, "--retries", "0", *options]
    try:
        main(given)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "judge" / "results").glob("*.json")
    return json.loads(path.read_text())


# What is compared


def test_the_default_is_the_first_policy_and_seed_against_the_datas_own_completions(folder):
    comparison = compare_sides(FinishedRun(folder), "data")
    assert comparison.name == "nll-seed-0 against data, sampled" and len(comparison.pairs) == 8
    texts = {r["text"].strip() for r in evaluated_completions(FinishedRun(folder), "nll-seed-0", "sampled")}
    assert {pair.ours for pair in comparison.pairs} == texts
    own = {(row["prompt"], row["completion"].strip()) for row in scored_rows(100)}
    assert all((pair.prompt, pair.theirs) in own for pair in comparison.pairs)
    assert {pair.source for pair in comparison.pairs} == {"a", "b"}


def test_the_reference_and_the_decoding_are_taken_by_prompt(folder):
    write(folder, "reference", lambda r: f"reference {r['decoding']} {r['group']}")
    write(folder, "nll-seed-1", lambda r: f"seed 1 {r['decoding']} {r['group']}")
    pairs = compare_sides(FinishedRun(folder), "reference", seeds=(1,), decoding="greedy").pairs
    assert len(pairs) == 8
    for pair in pairs:
        assert pair.ours.startswith("seed 1 greedy") and pair.theirs.startswith("reference greedy")
        assert pair.ours.split()[-1] == pair.theirs.split()[-1], "the completions of one prompt"


def test_another_run_is_matched_by_the_text_of_prompts(folder, tmp_path, tiny_recipe):
    # The other run has its rows in another order and without some: its groups have other numbers.
    rows = [row | {"split": "test" if i % 2 else "train"} for i, row in enumerate(reversed(scored_rows(100)))]
    rows[0]["split"] = "validation"
    (tmp_path / "other").mkdir()
    recipe = tiny_recipe(tmp_path / "other", rows)
    policies = {"sft": {"objective": "nll", "rows": "all"}}
    other = make_recipe(
        recipe | {"seeds": [7], "policies": policies, "evaluate": {"max_prompts": 60, "max_new_tokens": 4}}
    )
    run(other, "evaluate")
    prompts = {
        row["group"]: row["prompt"]
        for rows in rows_by_prompt(FinishedRun(other.output_dir).table, range(999)).values()
        for row in rows
    }
    write(Path(other.output_dir), "sft-seed-7", lambda r: f"other {prompts[r['group']]}")
    comparison = compare_sides(FinishedRun(folder), other.output_dir)
    assert comparison.theirs == "sft-seed-7 of tiny" and 0 < len(comparison.pairs) <= 8
    assert all(pair.theirs == f"other {pair.prompt}".strip() for pair in comparison.pairs)


def test_two_policies_of_one_run_are_compared_by_naming_it_twice(folder):
    comparison = compare_sides(FinishedRun(folder), str(folder), seeds=(0, 1), against_seed=0)
    assert comparison.name == "nll-seeds-0-1 against nll-seed-0 of tiny, sampled"
    assert all(pair.identical for pair in comparison.pairs if pair.seed == 0) and len(comparison.pairs) == 16
    same = compare_sides(FinishedRun(folder), str(folder), seeds=(0, 1))
    assert all(pair.identical for pair in same.pairs), "without a seed for the other: the same seed"


def test_a_larger_number_of_prompts_keeps_those_of_a_smaller_one(folder):
    few, more = (compare_sides(FinishedRun(folder), "data", max_prompts=n).pairs for n in (3, 5))
    assert len(few) == 3 and len(more) == 5 and set(few) < set(more)


def test_the_data_is_the_chosen_row_of_a_prompt_or_else_the_first():
    assert own_row([{"n": 1, "is_chosen": False}, {"n": 2, "is_chosen": True}])["n"] == 2
    assert own_row([{"n": 1, "is_chosen": None}, {"n": 2, "is_chosen": None}])["n"] == 1


def test_conversations_are_shown_turn_by_turn():
    prompt = json.dumps([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    row = {"prompt": prompt, "conversational": True, "tools": '[{"name": "f"}]'}
    assert readable(row, "\n\n", tools=True) == 'tools: [{"name": "f"}]\n\nsystem: Be kind.\n\nuser: Hi'


@pytest.mark.parametrize("completion", ["Hello", "42", "[1]"])
def test_the_datas_completion_of_a_conversation_is_its_text(folder, completion, monkeypatch):
    """Completions are kept as text, also where the prompt is a list of messages, and may read as JSON."""
    rows = pairs_module.rows_by_prompt

    def conversations(table, groups):
        chat = {"prompt": '[{"role": "user", "content": "Hi"}]', "conversational": True, "completion": completion}
        return {group: [row | chat for row in of] for group, of in rows(table, groups).items()}

    monkeypatch.setattr(pairs_module, "rows_by_prompt", conversations)
    pairs = compare_sides(FinishedRun(folder), "data").pairs
    assert pairs and {(pair.prompt, pair.theirs) for pair in pairs} == {("user: Hi", completion)}


# The verb


def test_a_judge_is_asked_and_its_verdicts_become_shares_by_test_set(folder, service, capsys):
    # Ours is good on the prompts of set a, and on those of set b theirs is.
    write(folder, "nll-seed-0", lambda r: f"{'good' if r['source'] == 'a' else 'bad'} {r['group']}")
    write(folder, "reference", lambda r: f"{'good' if r['source'] == 'b' else 'bad'} {r['group']}")
    assert judge(folder, service, "--against", "reference", "--prices", "2", "10") == 0
    found, shown = results_of(folder), capsys.readouterr().out
    for name in ("helpful", "safe"):
        criterion = found["criteria"][name]
        sets = criterion["by_source"]
        assert sets["a"]["win"]["mean"] == 1 and sets["b"]["loss"]["mean"] == 1
        assert criterion["win_rate"]["mean"] == sets["a"]["prompts"] / 8
        assert criterion["first_preferred"]["mean"] == 0.5 and criterion["orders_agree"] == 1
    # 8 prompts, two criteria, two orders; each 100 tokens and 10.
    assert found["tokens"]["prompt_tokens"] == 3200 and found["tokens"]["completion_tokens"] == 320
    assert found["tokens"]["cost"] == pytest.approx(3200 * 2e-6 + 320 * 1e-5)
    assert found["judge"]["served_as"] == ["stub-1"] and found["words"] == {"ours": 2, "theirs": 2}
    assert "3,200 tokens of questions, 320 of answers, cost 0.0096" in shown
    assert "nll-seed-0 against reference, sampled" in shown and "win rate" in shown
    assert judge(folder, service, "--against", "reference") == 0
    assert len(service.requests) == 32, "the same command asks nothing again"
    assert "By this command, 0 answers" in capsys.readouterr().out


def test_seeds_share_their_prompts_and_have_win_rates_of_their_own(folder, service):
    write(folder, "nll-seed-0", lambda r: f"good {r['group']}")
    write(folder, "nll-seed-1", lambda r: f"bad {r['group']}")
    write(folder, "reference", lambda r: f"plain {r['group']}")
    options = ("--against", "reference", "--seed", "0", "--seed", "1", "--criteria", "safe")
    assert judge(folder, service, *options) == 0
    found = results_of(folder)["criteria"]["safe"]
    assert found["prompts"] == 8 and found["pairs"] == 16
    # Seed 0 wins every prompt and seed 1 ties: each prompt is half a win and half a tie.
    assert found["win_rate_by_seed"] == {"0": 1, "1": 0.5}
    assert (found["win"]["mean"], found["tie"]["mean"], found["win_rate"]["mean"]) == (0.5, 0.5, 0.75)


def test_a_dry_run_asks_and_writes_nothing(folder, service, capsys):
    write(folder, "nll-seed-0", lambda r: f"good {r['group']}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert judge(folder, service, "--dry-run", "--prices", "1", "1", "--token-env", "NOT_SET") == 0
    shown = capsys.readouterr().out
    assert "8 prompts, 8 pairs (0 identical" in shown and "32 to ask" in shown
    assert "by the policy's tokenizer" in shown and "Cost: about" in shown
    assert not service.requests and before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert judge(folder, service, "--criteria", "safe") == 0
    capsys.readouterr()
    assert judge(folder, service, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        "16 to ask" in shown
        and "16 questions already answered" in shown
        and "as counted for the answers so far" in shown
    )
    assert "of answers: about 160" in shown


def test_questions_without_an_answer_exit_with_2_after_the_results(folder, service, capsys):
    write(folder, "nll-seed-0", lambda r: f"good {r['group']}")
    least = min(pair.prompt for pair in compare_sides(FinishedRun(folder), "data").pairs)

    def picky(request: dict) -> tuple:
        return (400, {}, {"error": "too long"}) if request["prompt"] == least else prefers("good")(request)

    service.then = picky
    assert judge(folder, service, "--criteria", "safe") == 2
    found, shown = results_of(folder)["criteria"]["safe"], capsys.readouterr()
    assert (found["unanswered"], found["pairs_without_outcome"], found["prompts"]) == (2, 1, 7)
    assert "2 questions without an answer; 1 pairs skipped" in shown.out
    assert "2 questions got no answer" in shown.err and "status 400" in shown.err


def test_the_key_is_sent_and_stands_in_no_file_log_or_output(folder, service, capsys, caplog):
    caplog.set_level(logging.DEBUG)

    def echo(request: dict) -> tuple:
        return says(f"{request['headers']['Authorization']}\nVerdict: A", model=CANARY)

    service.then = echo
    assert judge(folder, service, "--token-env", "JUDGE_KEY") == 0
    service.then = lambda request: (401, {}, {"error": f"no {CANARY}"})
    assert judge(folder, service, "--token-env", "JUDGE_KEY", "--decoding", "greedy") == 2
    assert {r["headers"]["Authorization"] for r in service.requests} == {f"Bearer {CANARY}"}
    shown = capsys.readouterr()
    assert "status 401" in shown.err
    texts = [shown.out, shown.err, caplog.text]
    texts += [path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if CANARY in text]


def test_people_rate_a_page_and_their_ratings_are_imported(folder, capsys, tmp_path):
    write(folder, "nll-seed-0", lambda r: f"good {r['group']}")
    page = tmp_path / "pages" / "out.html"
    main(["judge", str(folder), "--human", str(page), "--criteria", "safe", "--max-prompts", "6"])
    data = json.loads(parse(page.read_text()).scripts["application/json"])
    assert "6 questions" in capsys.readouterr().out and len(data["items"]) == 6
    files = []
    for rater in ("ada", "bo"):
        ratings = {i["id"]: 1 if i["first"].startswith("good") else 3 for i in data["items"]}
        if rater == "bo":
            ratings["1"] = 2
        files += ["--import", str(tmp_path / f"{rater}.json")]
        write_json(Path(files[-1]), {"page": data["page"], "rater": rater, "ratings": ratings})
    main(["judge", str(folder), *files])
    found = results_of(folder)["criteria"]["safe"]
    assert found["win_rate"]["mean"] == pytest.approx((5 + 0.75) / 6) and found["ratings"] == 12
    assert "Krippendorff's alpha" in capsys.readouterr().out


# What is refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--policy", "nil"), "no policy 'nil' in .* .it has: nll"),
        (("--seed", "5"), r"'nll-seed-5' of .* is not evaluated \(evaluated: .*nll-seed-0.*\): run `leftover evaluate"),
        (("--against", "nowhere"), "'nowhere' is not the folder of a run"),
        (("--against-seed", "1"), "go with --against RUN, not with data"),
        (("--request", "temperature"), "--request takes key=value"),
        (("--request", "messages=1"), "--request messages: this field cannot be set"),
        (("--criteria", "polite"), "--criteria polite: neither helpful nor safe"),
        (("--token-env", "NOT_SET"), "the environment variable NOT_SET"),
        (("--human", "x.html", "--import", "y.json"), "give one of them"),
        (("--import", "nowhere.json"), "no file at 'nowhere.json'"),
    ],
)
def test_what_cannot_be_judged_exits_with_2_and_says_why(options, expected, folder, service, capsys):
    assert judge(folder, service, *options) == 2
    assert re.search(expected, " ".join(capsys.readouterr().err.split()))
    assert not service.requests


def test_without_a_judge_or_a_page_the_model_is_asked_for(folder, capsys):
    with pytest.raises(SystemExit):
        main(["judge", str(folder)])
    assert "--model is missing" in capsys.readouterr().err


def test_an_evaluation_of_other_rows_is_not_judged(folder):
    manifest = Manifest(folder / "table")
    manifest.entries["tokens"]["key"]["changed"] = True
    write_sealed(manifest.path, manifest.entries)
    with pytest.raises(UserError, match="have changed since 'nll-seed-0' was evaluated: run `leftover evaluate"):
        compare_sides(FinishedRun(folder), "data")


def test_a_missing_file_of_completions_is_said(folder):
    (folder / "evaluation" / "nll-seed-0.jsonl").unlink()
    with pytest.raises(UserError, match=r"nll-seed-0.jsonl is missing"):
        compare_sides(FinishedRun(folder), "data")
