"""Rounds: what each trains on and starts from, what is computed again and what not, and what the whole shows."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import leftover
import leftover.rounds.run as rounds_run
from leftover import pipeline
from leftover.cli import main
from leftover.errors import UserError
from leftover.models.generate import generate
from leftover.prepare.readers import test_rows as rows_of_test
from leftover.prepare.readers import unique_prompts
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.runs.finished import FinishedRun
from leftover.store.files import read_json
from leftover.store.sealed import read_sealed
from leftover.store.table import equals
from tests.conftest import scored_rows
from tests.forked import forked

pytestmark = pytest.mark.timeout(900)  # each holds several runs

ROUNDS = {"number": 2, "completions_per_prompt": 2, "unfinished": "keep"}
FITTED = [
    {
        "type": "python",
        "function": "leftover.demo.grammar:score_answers",
        "name": "quality",
        "normalise": "standardise",
    },
    {"type": "text", "function": "tfidf_diversity", "name": "diversity"},
]


# One policy, little to read and to write.
QUICK: dict[str, Any] = {
    "policies": {"a_lol_seq": {"objective": "a_lol_seq"}},
    "reference": {"train": {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 3e-3}},
}


def crossing_rows() -> list[dict[str, Any]]:
    """Rows with splits of their own; the last prompts of the training rows are in the test split too, and not first."""
    rows = [
        row | {"split": "test" if i % 5 == 0 else "validation" if i % 5 == 1 else "train"}
        for i, row in enumerate(scored_rows(60))
    ]
    again = [row | {"split": "test"} for row in rows if row["split"] == "train"][::-9]
    return rows + again


def content(recipe: Callable, folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of two rounds with both controls, a control of the first round alone and a fitted reward.

    Its reference has learnt the grammar well enough to end its completions.
    """
    folder.mkdir(exist_ok=True)
    learnt = {"max_steps": 100, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    once = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    settings = {
        "data": {"max_completion_tokens": 40},
        "reward": {"functions": FITTED},
        "reference": {"train": learnt | once},
        "policies": {
            "a_lol_seq": {"objective": "a_lol_seq"},
            "nll": {"objective": "nll"},
            "ppo": {"objective": "ppo", "ppo_epochs": 1, "max_steps": 5},
        },
        "train": {"eval_steps": 0.5, "save_steps": 0.5},
        "rounds": ROUNDS | {"controls": ["best_of_n", "ppo"]},
        "value": {"num_prompts": 10, "candidates": ["constant"]},
        "evaluate": {"max_new_tokens": 40},
    }
    made = recipe(folder, rows=crossing_rows(), **(settings | changes))
    if "ppo" not in made["rounds"].get("controls", []):
        made["policies"] = {name: of for name, of in made["policies"].items() if name != "ppo" or "policies" in changes}
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> tuple[Path, dict[str, Any]]:
    """The folder of two rounds, and what `leftover.run` returned."""
    folder = tmp_path_factory.mktemp("rounds")
    results = leftover.run(make_recipe(content(tiny_recipe, folder)))
    return folder / "run", results


def test_a_round_trains_on_old_rows_and_on_samples_from_the_policy_before(done: tuple[Path, dict]) -> None:
    folder, _ = done
    first, second = FinishedRun(folder / "rounds/1"), FinishedRun(folder)
    assert second.folder == folder / "rounds/2"
    before, after = first.table.open("rows", "split", "tokens"), second.table.open("rows", "split", "tokens")
    samples = lines(folder / "rounds/1/samples-a_lol_seq.jsonl")
    trains = equals(before, "split", "train")
    prompts = set(np.array(before["prompt"])[trains])
    facts = read_json(folder / "rounds/1/manifest.json")["samples of a_lol_seq"]
    assert facts["completions"] == 2 * len(prompts) and facts["rows"] == len(samples)
    assert {row["prompt"] for row in samples} == prompts
    # Else V of the next round were fitted to the very completions that it is taken from.
    assert read_json(folder / "rounds/1/samples-a_lol_seq.jsonl.state.json")["key"]["decoding"]["seed"] != 0
    assert len(after) == int(equals(before, "kept", True).sum()) + len(samples)
    assert list(after["completion"])[-len(samples) :] == [row["completion"] for row in samples]
    for split in ("validation", "test"):  # untouched
        kept = [equals(table, "split", split) & equals(table, "kept", True) for table in (before, after)]
        texts = [
            sorted((row["prompt"], row["completion"]) for row in table.select(np.flatnonzero(rows)))
            for table, rows in zip((before, after), kept, strict=True)
        ]
        assert texts[0] == texts[1]
    asked = [[row["prompt"] for row in unique_prompts(rows_of_test(run.recipe, run.table))] for run in (first, second)]
    assert asked[0] == asked[1] and len(asked[0]) == first.recipe.evaluate.max_prompts < len(set(texts[0]))
    assert second.recipe.policies == {"a_lol_seq": {"objective": "a_lol_seq"}}
    assert second.recipe.reference.path == str(folder / "rounds/1/policies/a_lol_seq/seed-0")
    assert second.recipe.reference.origin == str(folder / "rounds/1/reference")
    states = [read_json(run.folder / "reward_state.json") for run in (first, second)]
    assert states[0] == states[1]  # one scale


def test_the_samplers_log_probabilities_are_the_next_references(done: tuple[Path, dict]) -> None:
    folder, results = done
    table = FinishedRun(folder).table.open("rows", "reference", "tokens")
    samples = lines(folder / "rounds/1/samples-a_lol_seq.jsonl")
    gaps = []
    for row, sample in zip(table.select(range(len(table) - len(samples), len(table))), samples, strict=True):
        if sample["tokens_match"]:
            np.testing.assert_allclose(row["reference_logprobs"], sample["sampler_logprobs"], atol=1e-4)
            gaps.append(sum(row["reference_logprobs"]) - sample["sampler_logprob"])
    assert len(gaps) > 10  # the others are read as other tokens
    assert results["off_policy"] == {2: {1: pytest.approx(np.mean(gaps))}}


def test_rows_of_results_by_hand(done: tuple[Path, dict]) -> None:
    folder, results = done
    rows = {(row["policy"], row.get("round")): row for row in results["rows"]}
    assert list(rows) == [
        ("reference", None), ("a_lol_seq", 1), ("a_lol_seq", 2), ("nll", 1), ("best_of_n", 1), ("best_of_n", 2),
        ("ppo", 1),
    ]  # fmt: skip
    record = [r for r in lines(folder / "rounds/2/evaluation/a_lol_seq-seed-0.jsonl") if r["decoding"] == "sampled"]
    start = [r for r in lines(folder / "rounds/1/evaluation/reference.jsonl") if r["decoding"] == "sampled"]
    row = rows["a_lol_seq", 2]
    assert row["reward"]["mean"] == pytest.approx(np.mean([r["reward"] for r in record]))
    by_hand = np.mean([r["reward"] for r in record]) - np.mean([r["reward"] for r in start])
    assert row["difference_from_reference"]["mean"] == pytest.approx(by_hand)
    assert row["kl"]["mean"] == pytest.approx(np.mean([r["logprob"] - r["reference_logprob"] for r in record]))
    assert row["kl_to_origin"]["mean"] == pytest.approx(np.mean([r["logprob"] - r["origin_logprob"] for r in record]))
    first = rows["a_lol_seq", 1]
    assert first["kl_to_origin"] == first["kl"]
    # Tokens: the samples, and what V was fitted on in either round.
    sampled = read_json(folder / "rounds/1/manifest.json")["samples of a_lol_seq"]
    written = lines(folder / "rounds/1/samples-a_lol_seq.jsonl")
    in_file, left_out = sum(row["num_tokens"] for row in written), sampled["completions"] - len(written)
    assert in_file + left_out <= sampled["tokens"] <= in_file + 40 * left_out  # those without a row count too
    value = [read_json(folder / f"rounds/{k}/prepare.json")["value"]["sampled_tokens"] for k in (1, 2)]
    assert (first["generated_tokens"], row["generated_tokens"]) == (value[0], sum(value) + sampled["tokens"])
    assert rows["best_of_n", 1]["generated_tokens"] == rows["nll", 1]["generated_tokens"] == 0
    # PPO: as many completions as the first policy's, in whole steps of 16; its own settings but for the budget.
    settings = FinishedRun(folder / "rounds/1").recipe.policies["ppo"]
    asked = sampled["completions"] + 2 * 10
    assert settings == {"objective": "ppo", "ppo_epochs": 1, "total_episodes": asked}
    ppo = read_json(folder / "rounds/1/manifest.json")["policy ppo, seed 0"]
    assert ppo["rollouts"] == -(-asked // 16) * 16 and rows["ppo", 1]["generated_tokens"] == ppo["rollout_tokens"]
    other = lines(folder / "rounds/2-best_of_n/evaluation/best_of_n-seed-0.jsonl")
    gap = np.mean([r["reward"] for r in record]) - np.mean([r["reward"] for r in other if r["decoding"] == "sampled"])
    assert results["main_against"]["best_of_n"]["difference"]["mean"] == pytest.approx(gap)


def test_the_origin_is_the_first_reference(done: tuple[Path, dict]) -> None:
    """Its log-probabilities of what the last policy wrote, by the model's own loss."""
    folder, _ = done
    places = [folder / name for name in ("rounds/2/policies/a_lol_seq/seed-0", "rounds/1/reference")]
    policy, reference = (AutoModelForCausalLM.from_pretrained(place) for place in places)
    tokenizer = AutoTokenizer.from_pretrained(places[0])
    table = FinishedRun(folder).table.open("split", "tokens")
    prompts = dict(zip(table["group"], table["prompt_ids"], strict=True))
    records = [r for r in lines(folder / "rounds/2/evaluation/a_lol_seq-seed-0.jsonl") if r["decoding"] == "sampled"]
    asked = [prompts[record["group"]] for record in records]
    written, texts, *_ = generate(policy, tokenizer, asked, max_new_tokens=40, sample=True, seed=0)
    assert texts == [record["text"] for record in records]
    for record, completion in zip(records, written, strict=True):
        prompt = prompts[record["group"]]
        ids = torch.tensor([[*prompt, *completion]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        with torch.inference_mode():
            loss = reference(input_ids=ids, labels=labels).loss
        assert -float(loss) * len(completion) == pytest.approx(record["origin_logprob"], abs=1e-3)


def test_best_of_n_trains_on_one_row_a_prompt(done: tuple[Path, dict]) -> None:
    folder, _ = done
    facts = read_json(folder / "rounds/2-best_of_n/manifest.json")["policy best_of_n, seed 0"]
    assert facts["selected_rows"] == len({r["prompt"] for r in lines(folder / "rounds/1/samples-best_of_n.jsonl")})


def test_report_card_and_commands_show_the_rounds(
    done: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, results = done
    assert read_json(folder / "rounds.json")["rows"] == json.loads(json.dumps(results["rows"]))
    markdown, page = ((folder / name).read_text("utf-8") for name in ("report.md", "report.html"))
    card = (folder / "rounds/2/policies/a_lol_seq/seed-0/README.md").read_text("utf-8")
    for text in (markdown, card):
        assert "## Rounds" in text and "best_of_n, round 2" in text and "(rounds.png)" in text
        assert str(folder) not in card
    assert (folder / "rounds.png").is_file() and (folder / "rounds/2/policies/a_lol_seq/seed-0/rounds.png").is_file()
    assert 'id="run-1-rounds"' in page and "Reward against distance" in page
    main(["report", str(folder), "--output", str(tmp_path / "page.html")])
    assert 'id="run-1-rounds"' in (tmp_path / "page.html").read_text("utf-8")
    main(["export", str(folder), "--output", str(tmp_path / "export")])
    assert "## Rounds" in (tmp_path / "export/README.md").read_text("utf-8")
    main(["inspect", str(folder), "--output", str(tmp_path / "inspect.html")])
    main(["generate", str(folder), "--n", "1", "--max-prompts", "8", "--unfinished", "keep",
          "--output", str(tmp_path / "more.jsonl")])  # fmt: skip
    assert len(lines(tmp_path / "more.jsonl")) > 4  # some may be empty
    with pytest.raises(SystemExit):
        main(["prepare", str(folder)])
    assert "rounds=null" in capsys.readouterr().err


def test_a_third_round_computes_only_itself_and_latest_only_what_depends_on_it(
    tmp_path: Path, tiny_recipe: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    made = content(tiny_recipe, tmp_path, rounds=ROUNDS | {"number": 3}, evaluate={"max_new_tokens": 8}, **QUICK)
    leftover.run(make_recipe(made | {"rounds": ROUNDS}))
    caplog.set_level(logging.DEBUG, "leftover")
    caplog.clear()
    results = leftover.run(make_recipe(made))
    said = [r.getMessage() for r in caplog.records]
    starts = [i for i, text in enumerate(said) if re.match(r"round \d of 3", text)]
    assert len(starts) == 3
    done = [getattr(r, "artifact", "") if getattr(r, "state", "") == "done" else "" for r in caplog.records]
    done_in = [list(filter(None, done[a:b])) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert done_in[0] == [] and done_in[1] == ["samples of a_lol_seq"] and "reference" not in str(done_in[2][:1])
    assert any("policy a_lol_seq" in text for text in done_in[2])
    assert [row.get("round") for row in results["rows"] if row["policy"] == "a_lol_seq"] == [1, 2, 3]
    assert set(results["off_policy"]) == {2, 3} and set(results["off_policy"][3]) == {1, 2}
    third = FinishedRun(tmp_path / "run").table
    assert len(third.open("rows")) == sum(
        len(lines(tmp_path / f"run/rounds/{place}"))
        for place in ("1/rows.jsonl", "1/samples-a_lol_seq.jsonl", "2/samples-a_lol_seq.jsonl")
    )
    caplog.clear()
    leftover.run(make_recipe(made | {"rounds": ROUNDS | {"keep": "latest"}}))
    said = [r.getMessage() for r in caplog.records]
    assert "Policy a_lol_seq, seed 0: kept from before" in said  # of the first round
    second = FinishedRun(tmp_path / "run").table.open("rows", "split")
    held_out = lines(tmp_path / "run/rounds/1/held_out.jsonl")
    samples = lines(tmp_path / "run/rounds/1/samples-a_lol_seq.jsonl")
    assert list(second["completion"]) == [row["completion"] for row in (*held_out, *samples)]


def in_a_child(recipe: dict[str, Any], at: str | None, said: Path) -> int | None:
    """Run in a process of its own, which kills itself at its first evaluation, chunk of samples or table of results."""

    def work() -> None:
        def die(*args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if at == "sampling":
            from leftover.commands.generate.rows_file import RowsFile

            append = RowsFile.append

            def append_and_die(self: Any, *args: Any) -> None:
                append(self, *args)
                with self.path.open("a") as file:
                    file.write('{"prompt": "half a')
                    file.flush()
                die()

            RowsFile.append = append_and_die  # type: ignore[method-assign]
        elif at == "training":
            from leftover.training.policy_trainer import PolicyTrainer

            PolicyTrainer.evaluate = die  # type: ignore[method-assign,assignment]
        elif at == "results":
            rounds_run.gather = die  # type: ignore[assignment]
        leftover.run(make_recipe(recipe))

    process = forked(work, said)
    process.join(timeout=280)
    assert process.exitcode is not None, process.kill()
    return process.exitcode


def test_killed_in_training_in_sampling_and_before_the_results_it_ends_as_undisturbed(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leftover.commands.generate.run._CHUNK_BATCHES", 1)
    made = {
        name: content(tiny_recipe, tmp_path / name, rounds=ROUNDS, evaluate={"batch_size": 16}, **QUICK)
        for name in ("killed", "undisturbed")
    }
    said = tmp_path / "said.txt"
    for at in ("training", "sampling", "results"):
        assert in_a_child(made["killed"], at, said) == -signal.SIGKILL
        assert not (tmp_path / "killed/run/rounds.json").exists()
    assert [in_a_child(recipe, None, said) for recipe in made.values()] == [0, 0], said.read_text()
    rows = {name: read_sealed(tmp_path / name / "run/rounds.json") for name in made}
    for row in (row for results in rows.values() for row in results["rows"]):
        row.pop("seconds", None)
    assert rows["killed"] == rows["undisturbed"]
    policies = [(tmp_path / name / "run/rounds/2/policies/a_lol_seq/seed-0/model.safetensors") for name in made]
    assert policies[0].read_bytes() == policies[1].read_bytes()


def test_an_adapter_is_trained_further(tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str) -> None:
    """Its weights are those of the policy before at step 0, and it stays an adapter of the same base."""
    changes: dict[str, Any] = {"model": {"lora": {"r": 2}}, "reference": {"source": "as_is", "train": {}}}
    changes |= {"train": {"eval_steps": 0.5, "save_steps": 0.5, "logging_steps": 1}, "evaluate": {"max_new_tokens": 8}}
    results = leftover.run(make_recipe(content(tiny_recipe, tmp_path, rounds=ROUNDS, **changes)))
    for number in (1, 2):
        saved = read_json(tmp_path / f"run/rounds/{number}/policies/a_lol_seq/seed-0/adapter_config.json")
        assert saved["base_model_name_or_path"] == tiny_llama_path and saved["r"] == 2
    steps = lines(tmp_path / "run/rounds/2/policies/a_lol_seq/seed-0/metrics.jsonl")
    assert next(line["logratio/initial_max"] for line in steps if "logratio/initial_max" in line) < 1e-3
    [last] = [row for row in results["rows"] if (row["policy"], row.get("round")) == ("a_lol_seq", 2)]
    assert last["kl_to_origin"]["mean"] != last["kl"]["mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, "seeds"),
        ({"reward": {"functions": [{"type": "column"}]}}, "new_completions"),
        ({"policies": {"ppo": {"objective": "ppo"}, "nll": {"objective": "nll"}}}, "writes its own"),
        ({"policies": {"best_of_n": {"objective": "nll", "rows": "best"}}}, "first policy itself"),
        ({"rounds": ROUNDS | {"number": 1, "controls": ["ppo"]}}, "2 or more"),
        ({"rounds": ROUNDS | {"controls": ["dpo"]}}, "best_of_n"),
        ({"rounds": ROUNDS | {"keep": "last"}}, "latest"),
        ({"train": {"push_to_hub": True, "hub_model_id": "me/{policy}"}}, "push_to_hub"),
    ],
)
def test_what_cannot_go_in_rounds_is_refused_at_once(
    changes: dict[str, Any], message: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    with pytest.raises(UserError, match=message):
        leftover.run(make_recipe(content(tiny_recipe, tmp_path, **changes)))
    assert not (tmp_path / "run").exists()


def test_a_folder_holds_rounds_or_one_run(tmp_path: Path, tiny_recipe: Callable) -> None:
    made = content(tiny_recipe, tmp_path)
    with pytest.raises(UserError, match="rounds=null"):
        open_run(make_recipe(made))
    pipeline.run(make_recipe(made | {"rounds": None}), "prepare")
    with pytest.raises(UserError, match="without rounds"):
        leftover.run(make_recipe(made))
    (tmp_path / "run").rename(tmp_path / "first")
    (tmp_path / "run/rounds").mkdir(parents=True)
    (tmp_path / "first").rename(tmp_path / "run/rounds/1")
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump({"name": "tiny"}))
    with pytest.raises(UserError, match="with rounds"):
        open_run(make_recipe(made | {"rounds": None}))


def test_the_dry_run_counts_what_the_rounds_do(
    done: tuple[Path, dict], tmp_path: Path, tiny_recipe: Callable, capsys: pytest.CaptureFixture
) -> None:
    made = content(tiny_recipe, tmp_path)
    path = tmp_path / "recipe.yaml"
    del made["rounds"]["number"]
    path.write_text(yaml.safe_dump(made))
    main(["run", str(path), "--rounds", "3", "--dry-run"])
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    sampled = read_json(done[0] / "rounds/1/manifest.json")["samples of a_lol_seq"]["completions"]
    training = FinishedRun(done[0] / "rounds/1").prepared["split"]["train"]  # those that are too long among them
    for name, factor in (("round 2", 1), ("round 3", 2), ("round 3, best_of_n", 2)):
        [line] = [line for line in said.splitlines() if re.search(rf"{name} +│", line)]
        assert [cell.strip() for cell in line.split("│")[2:4]] == [str(sampled), str(training + factor * sampled)]
    assert "together" in said and "unknown" not in said.split("Rounds")[-1]
