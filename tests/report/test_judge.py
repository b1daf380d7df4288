"""What `leftover judge` stored, in report.html and report.md."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leftover import cli
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.report.judge import judge_view
from leftover.report.write import render
from leftover.store.files import write_json
from leftover.store.manifest import Manifest
from tests.commands.judge.judge_service import JudgeService, prefers
from tests.conftest import scored_rows

HOSTILE = "<script>window.hacked = 1</script>|`x`"


def judge_section(folder: Path, manifest: Manifest) -> str:
    """The section of report.md; empty where nothing was judged."""
    view = judge_view(folder, manifest)
    return render("judge.md.j2", {"judge": view}) if view else ""


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def outcome(win: float, tie: float, loss: float, **more: Any) -> dict[str, Any]:
    shares = {"win": interval(win), "tie": interval(tie), "loss": interval(loss), "win_rate": interval(win + tie / 2)}
    return {"prompts": 8, "by_source": {}, **shares, **more}


def stored(folder: Path, name: str, **found: Any) -> None:
    shared = {"comparison": name, "words": {"ours": 3.0, "theirs": 4.5}, "unended": 0.0}
    write_json(folder / "judge" / "results" / f"{name[:4]}.json", shared | found)


@pytest.fixture
def judged(tmp_path: Path) -> Any:
    """A run with one verdict of a model and one of people."""
    asked = {"first_preferred": interval(0.6), "orders_agree": 0.75, "unanswered": 0, "without_verdict": 1}
    asked |= {"pairs_without_outcome": 1, "identical_pairs": 0}
    helpful = outcome(0.5, 0.25, 0.25, **asked, text="t")
    helpful["by_source"] = {"": outcome(1.0, 0.0, 0.0), HOSTILE: {"prompts": 0}}
    tokens = {"answers": 16, "prompt_tokens": 1234, "completion_tokens": 56, "answers_without_count": 2, "cost": 0.0123}
    stored(
        tmp_path, "mine", criteria={"helpful": helpful}, judge={"model": HOSTILE, "url": "http://inside"}, tokens=tokens
    )
    kappa = [{"raters": ["ada", "bo"], "kappa": 0.4, "equal": 0.7, "items": 10}]
    kappa.append({"raters": ["ada", "judge"], "kappa": None, "equal": 1.0, "items": 1})
    rated = outcome(0.4, 0.2, 0.4, ratings=20, krippendorff_alpha=0.55, cohen_kappa=kappa)
    stored(tmp_path, "people", criteria={"helpful": rated}, raters=["ada", "bo"])
    return SimpleNamespace(folder=tmp_path, manifest=Manifest(tmp_path))


def test_a_run_that_was_not_judged_has_no_section(tmp_path: Path) -> None:
    given = SimpleNamespace(folder=tmp_path, manifest=Manifest(tmp_path))
    assert judge_view(given.folder, given.manifest) is None and judge_section(given.folder, given.manifest) == ""


def test_verdicts_bias_cost_and_agreement_are_told(judged: Any) -> None:
    view = judge_view(judged.folder, judged.manifest)
    assert view is not None
    model, people = view["comparisons"]
    assert model["judge"] == HOSTILE and people["judge"] == "2 people" and view["outdated"] == []
    assert model["table"].cells[0] == [
        "helpful", "all", "8", "0.50 [0.40, 0.60]", "0.25 [0.15, 0.35]", "0.25 [0.15, 0.35]", "0.62 [0.53, 0.72]",
    ]  # fmt: skip
    assert model["table"].cells[1][1] == "none" and model["table"].cells[2][1:4] == [HOSTILE, "0", "–"]
    said = " ".join(model["notes"])
    assert "preferred in 0.60 [0.50, 0.70]" in said and "orders agree on 75%" in said
    assert "1 answers without a verdict; 1 pairs skipped" in said and "0 " not in said.split("1 answers")[1][:20]
    assert "1,234 tokens of questions, 56 of answers, cost 0.0123" in said and "2 answers came without a count" in said
    said = " ".join(people["notes"])
    assert "20 ratings; Krippendorff's alpha 0.55" in said
    assert "ada and bo agree on 70% of 10, Cohen's kappa 0.40" in said and "Cohen's kappa n/a" in said
    assert len(view["charts"]) == 2 and "won 50%, tied 25%, lost 25%" in view["charts"][0].description


def test_the_markdown_holds_the_tables_and_no_markup_of_a_name(judged: Any) -> None:
    text = judge_section(judged.folder, judged.manifest)
    assert "## The judge" in text and "| helpful | all | 8 | 0.50 [0.40, 0.60] |" in text
    assert "<script>" not in text.replace("\\<script\\>", "") and "http://inside" not in text
    assert {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")} == {8}


def test_verdicts_on_completions_that_were_made_anew_are_left_out_and_named(judged: Any) -> None:
    artifact = "evaluation of a-seed-0"
    judged.manifest.begin(artifact, {"model": 1})
    stored(
        judged.folder,
        "mine",
        criteria={},
        judge={"model": "m"},
        evaluations={"a-seed-0": judged.manifest.digest(artifact)},
    )
    view = judge_view(judged.folder, judged.manifest)
    assert view is not None and [c["title"] for c in view["comparisons"]] == ["mine", "people"]
    judged.manifest.begin(artifact, {"model": 2})
    view = judge_view(judged.folder, judged.manifest)
    assert view is not None and [c["title"] for c in view["comparisons"]] == ["people"] and view["outdated"] == ["mine"]
    assert "regenerated" in judge_section(judged.folder, judged.manifest) and "mine" in judge_section(
        judged.folder, judged.manifest
    )


def test_report_picks_up_what_was_judged(tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    policies = {"nll": {"objective": "nll", "rows": "all"}}
    recipe = tiny_recipe(tmp_path, scored_rows(60), policies=policies)
    run(make_recipe(recipe))
    folder = Path(recipe["output_dir"])
    page = folder / "report.html"
    assert "<h2>The judge</h2>" not in page.read_text(encoding="utf-8")
    service = JudgeService()
    try:
        service.then = prefers("a")
        cli.main(["judge", str(folder), "--model", "stub <b>", "--base-url", service.url, "--criteria", "helpful"])
    finally:
        service.close()
    cli.main(["report", str(folder)])
    text = page.read_text(encoding="utf-8")
    assert "<h2>The judge</h2>" in text and 'href="#run-1-judge"' in text and "stub &lt;b&gt;" in text
    assert text.index("<h2>Results</h2>") < text.index("<h2>The judge</h2>") < text.index("<h2>Training</h2>")
    assert "nll-seed-0 against data, sampled" in text and "shown first is preferred" in text
    changed = json.loads(json.dumps(recipe)) | {"evaluate": recipe["evaluate"] | {"max_new_tokens": 9}}
    run(make_recipe(changed))
    text = page.read_text(encoding="utf-8")
    assert "have been regenerated since" in text and "shown first is preferred" not in text
    assert "## The judge" in (folder / "report.md").read_text(encoding="utf-8")
