"""`leftover generate`: rows that the next run reads as they are, the same wherever the command was stopped."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover.cli import main
from leftover.commands.generate import run as sampling
from leftover.commands.generate.rows import Sample, completion_text
from leftover.commands.generate.rows_file import RowsFile
from leftover.demo.grammar import score_answers
from leftover.errors import UserError
from leftover.pipeline import prepare, run
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.conftest import scored_rows, write_rows
from tests.data import adapters

PYTHON = {"type": "python", "function": "leftover.demo.grammar:score_answers", "name": "quality"}

LENGTH = {"type": "text", "function": "length"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: str) -> Path:
    """The folder of a run whose policy has learnt the grammar well enough to end its completions."""
    folder = tmp_path_factory.mktemp("trained")
    steps = {"max_steps": 120, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    recipe = {
        "name": "trained",
        "output_dir": str(folder / "run"),
        "model": {"path": tiny_llama_path},
        "data": {
            "path": write_rows(folder / "rows.jsonl", scored_rows(60)),
            "max_prompt_tokens": 48,
            "max_completion_tokens": 40,
        },
        "reward": {"functions": [PYTHON], "transform": "quantile"},
        "reference": {"train": steps | {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}},
        "value": {"num_prompts": 8, "candidates": ["constant"]},
        "policies": {"nll": {"objective": "nll"}, "second": {"objective": "nll", "learning_rate": 1e-2}},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
        "evaluate": {"max_prompts": 4, "max_selection_prompts": 2, "max_new_tokens": 8},
    }
    run(make_recipe(recipe), until="train")
    return folder / "run"


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    """Twenty unique prompts, the first one twice, and no completions."""
    prompts = [{"prompt": row["prompt"]} for row in scored_rows(20)]
    return write_rows(tmp_path / "prompts.jsonl", [*prompts, prompts[0]])


@pytest.fixture
def reward_file(tmp_path: Path) -> str:
    path = tmp_path / "reward.yaml"
    path.write_text(yaml.safe_dump([PYTHON, LENGTH | {"weight": 0.5}]))
    return str(path)


def generate(output: Path, *arguments: Any) -> list[dict[str, Any]]:
    limit = [] if "--max-new-tokens" in arguments else ["--max-new-tokens", "40"]
    main(["generate", *map(str, arguments), *limit, "--output", str(output)])
    return read(output)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(capsys: Any, output: Path, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        generate(output, *arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in message, message
    return message


# The rows.


def test_rows_of_a_run_are_read_by_prepare_and_train_the_next_policy(trained: Path, tmp_path: Path) -> None:
    """The round trip: with the sampler as the reference, prepare finds the very log-probabilities of the sampling."""
    rows = generate(tmp_path / "rows.jsonl", trained, "--n", 4)
    policy = str(trained / "policies/nll/seed-0")
    recipe = {
        "name": "next",
        "output_dir": str(tmp_path / "next"),
        "model": {"path": policy},
        "data": {"path": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 48, "max_completion_tokens": 40},
        "reference": {"source": "as_is"},
        "value": {"targets": "group_loo"},
        "train": {"max_steps": 1, "per_device_train_batch_size": 4},
        "evaluate": {"max_selection_prompts": 6, "max_new_tokens": 8},
    }
    this = open_run(make_recipe(recipe))
    run(make_recipe(recipe), until="train")
    assert (tmp_path / "next/policies/a_lol_seq/seed-0/model.safetensors").is_file()
    rejected = read(this.rejects.path) if this.rejects.path.is_file() else []
    assert not rejected, "what it wrote fits the limits of the recipe it came from"
    table = this.table.open("rows", "split", "tokens", "reference", "reward")
    assert len(table) == len(rows)
    matching = 0
    for row, kept in zip(rows, table, strict=True):
        assert kept["reward"] == row["reward"] and kept["prompt"] == row["prompt"]
        assert kept["split"] == row["split"]
        if row["tokens_match"]:
            matching += 1
            assert len(kept["completion_ids"]) == row["num_tokens"]
            np.testing.assert_allclose(kept["reference_logprobs"], row["sampler_logprobs"], atol=1e-4)
            assert row["sampler_logprob"] == pytest.approx(sum(row["sampler_logprobs"]), abs=1e-4)
    assert matching > 0.5 * len(rows)
    same_prompt: dict[int, set] = {}
    for row, kept in zip(rows, table, strict=True):
        same_prompt.setdefault(row["prompt_index"], set()).add((kept["group"], kept["split"]))
    assert all(len(found) == 1 for found in same_prompt.values())


def test_prompts_and_a_reward_are_enough_to_start(
    trained: Path, prompts_file: str, reward_file: str, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "leftover")
    model = trained / "policies/nll/seed-0"
    rows = generate(tmp_path / "rows.jsonl", model, prompts_file, "--n", 3, "--reward", reward_file)
    scores = score_answers([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert [row["reward/quality"] for row in rows] == scores
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/quality"] + 0.5 * row["reward/length"])
        assert row["ended"] and "</s>" not in row["completion"] and "family" not in row and "split" not in row
        assert len(row["sampler_logprobs"]) == row["num_tokens"]
    by_prompt: dict[int, set] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_index"], set()).add(row["prompt"])
    assert len(by_prompt) <= 20 and all(len(texts) == 1 for texts in by_prompt.values())
    dropped = 60 - len(rows)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{len(rows)} rows of 20 prompts" in said
    counted = [int(m.split()[1]) for m in said.splitlines() if "completions dropped" in m]
    assert sum(counted) == dropped
    mismatches = sum(not row["tokens_match"] for row in rows)
    assert mismatches == 0 or f"{mismatches} rows (tokens_match: false)" in said
    assert f"mean reward {np.mean([row['reward'] for row in rows]):.4f}" in said


def test_columns_are_named_as_the_recipe_names_them_and_pass_through(trained: Path, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    messages = [{"role": "user", "content": scored_rows(1)[0]["prompt"]}]
    rows = [
        {"q": messages, "tools": tools, "story": 7, "split": "train", "truth": 3, "reward": "unreadable"},
        {"q": messages, "tools": None, "story": 8, "split": "test", "truth": None},
    ]
    options = ["data.columns.prompt=q", "data.columns.family=story", "data.columns.answer=truth"]
    options += ["data.columns.reward=score", "model.chat_template=plain"]
    found = generate(
        tmp_path / "rows.jsonl",
        trained / "policies/nll/seed-0",
        write_rows(tmp_path / "p.jsonl", rows),
        *[part for option in options for part in ("--set", option)],
        *("--n", 2, "--unfinished", "keep", "--max-new-tokens", 8),
        *("--reward", write_yaml(tmp_path, {"functions": [LENGTH], "transform": {"scale": 2.0}})),
    )
    first = [row for row in found if row["prompt_index"] == 0]
    assert len(first) == 2 and len(found) == 4, "the same prompt with other tools is another prompt"
    for row in first:
        assert row["q"] == messages and row["tools"] == tools and row["story"] == "7" and row["truth"] == "3"
        assert row["split"] == "train" and isinstance(row["completion"], str) and "reward" not in row
        assert row["score"] == 2 * row["reward/length"]
    assert "tools" not in found[-1] and "truth" not in found[-1] and found[-1]["split"] == "test"


def test_texts_are_asked_in_chat_and_written_as_messages(trained: Path, tmp_path: Path) -> None:
    asked = scored_rows(1)[0]["prompt"]
    found = generate(
        tmp_path / "rows.jsonl",
        trained / "policies/nll/seed-0",
        write_rows(tmp_path / "p.jsonl", [{"prompt": asked}]),
        *("--set", "data.prompts=chat", "--set", "model.chat_template=plain"),
        *("--n", 1, "--unfinished", "keep", "--max-new-tokens", 8),
    )
    assert [row["prompt"] for row in found] == [[{"role": "user", "content": asked}]]


def test_a_template_over_columns_gives_way_to_a_plain_name(trained: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "p.jsonl", [{"q": scored_rows(1)[0]["prompt"]}])
    found = generate(
        tmp_path / "rows.jsonl",
        trained / "policies/nll/seed-0",
        rows,
        *("--set", "data.columns.prompt=Ask {q}", "--n", 1, "--unfinished", "keep", "--max-new-tokens", 8),
    )
    assert found[0]["prompt"] == "Ask " + scored_rows(1)[0]["prompt"]


def test_rows_are_read_under_the_templates_that_made_them(trained: Path, tmp_path: Path) -> None:
    """As they are, whatever the templates' columns are called; another template is filled with them."""
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": scored_rows(1)[0]["prompt"], "a": 3}])
    columns = {"prompt": "Ask {prompt}", "completion": " {reply}", "answer": "{a}."}
    options = [part for name, of in columns.items() for part in ("--set", f'data.columns.{name}="{of}"')]
    options += ["--n", "2", "--unfinished", "keep", "--max-new-tokens", "8"]
    found = generate(tmp_path / "rows.jsonl", trained / "policies/nll/seed-0", rows, *options)
    again = adapters.read(str(tmp_path / "rows.jsonl"), columns=columns)
    assert [(row["prompt"], row["completion"]) for row in again] == [(r["prompt"], r["completion"]) for r in found]
    assert {row["prompt"] for row in again} == {"Ask " + scored_rows(1)[0]["prompt"]} and again[0]["answer"] == "3."
    assert (
        adapters.read(str(tmp_path / "rows.jsonl"), columns={"prompt": "{prompt}!"})[0]["prompt"]
        == found[0]["prompt"] + "!"
    )


def write_yaml(folder: Path, content: Any) -> str:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_unfinished_completions_are_dropped_or_kept_as_asked(trained: Path, tmp_path: Path, caplog: Any) -> None:
    """Kept, and cut at the same length, they are the sampled tokens without an end."""
    caplog.set_level(logging.INFO, "leftover")
    limit = ["--max-new-tokens", 12, "--n", 2]
    dropped = generate(tmp_path / "dropped.jsonl", trained, *limit)
    assert all(row["ended"] for row in dropped)
    number = 120 - len(dropped)
    assert f"{number} completions dropped" in caplog.text
    kept = generate(tmp_path / "kept.jsonl", trained, *limit, "--unfinished", "keep")
    unfinished = [row for row in kept if not row["ended"]]
    assert len(kept) == 120 and len(unfinished) == number > 0
    assert all(row["num_tokens"] == 12 for row in unfinished)
    matching = [row for row in unfinished if row["tokens_match"]]
    assert matching
    tokenizer = AutoTokenizer.from_pretrained(trained / "policies/nll/seed-0")
    for row in matching:
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert len(whole) - len(tokenizer(row["prompt"])["input_ids"]) == 12


def test_completions_without_text_are_dropped_and_counted(
    trained: Path, prompts_file: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """`prepare` refuses them, so that one would stop the next run."""

    def silent(source: Any, model: Any, decoding: Any, prompts: Any, prompt_ids: Any, seed: int) -> list[Sample]:
        return [Sample(*prompts[i], prompt_ids[i], [2], " \n", True) for i in range(len(prompts))]

    monkeypatch.setattr(sampling, "draw", silent)
    assert "20 are empty" in refused(capsys, tmp_path / "rows.jsonl", trained / "policies/nll/seed-0", prompts_file)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_of_the_sampler_at_its_temperature(
    temperature: float, trained: Path, prompts_file: str, tmp_path: Path
) -> None:
    path = trained / "policies/nll/seed-0"
    rows = generate(tmp_path / "rows.jsonl", path, prompts_file, "--n", 2, "--temperature", temperature)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    row = next(row for row in rows if row["tokens_match"])
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logprobs = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
    expected = [float(logprobs[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
    np.testing.assert_allclose(row["sampler_logprobs"], expected, atol=1e-4)
    assert row["sampler_logprob"] == pytest.approx(sum(expected), abs=1e-3)


def test_greedy_gives_one_completion_a_prompt_with_log_probabilities_of_the_model(
    trained: Path, prompts_file: str, tmp_path: Path, capsys: Any
) -> None:
    path = trained / "policies/nll/seed-0"
    rows = generate(tmp_path / "rows.jsonl", path, prompts_file, "--greedy", "--temperature", 0.3)
    assert len({row["prompt"] for row in rows}) == len(rows)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    row = next(row for row in rows if row["tokens_match"])
    with torch.no_grad():
        first = model(torch.tensor([tokenizer(row["prompt"])["input_ids"]])).logits[0, -1].log_softmax(-1).max()
    assert row["sampler_logprobs"][0] == pytest.approx(float(first), abs=1e-4)
    assert "leave --n out" in refused(capsys, tmp_path / "other.jsonl", path, prompts_file, "--greedy", "--n", 2)


def test_a_completion_is_decoded_with_its_prompt_so_that_a_leading_space_stays() -> None:
    """Tokenizers of the SentencePiece kind drop it from a text that stands alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, "▁a": 2, "▁cat": 3, "s": 4}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="</s>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>")
    assert tokenizer.decode([3, 4]) == "cats"
    assert completion_text(tokenizer, [2], [3, 4]) == " cats"


# Rewards and prompts of a recipe.


def test_a_runs_rewards_score_with_what_they_learnt_from_its_rows(
    trained: Path, prompts_file: str, tmp_path: Path, capsys: Any
) -> None:
    rows = generate(tmp_path / "rows.jsonl", trained, prompts_file, "--n", 2)
    state = json.loads((trained / "reward_state.json").read_text())["total"]
    grid = np.asarray(state["grid"])
    for row in rows:
        score = row["reward/quality"]
        rank = (np.searchsorted(grid, score, "left") + np.searchsorted(grid, score, "right")) / 2 / len(grid)
        assert row["reward"] == pytest.approx(rank)
    spec = write_yaml(tmp_path, {"functions": [PYTHON], "transform": "quantile"})
    policy = trained / "policies/nll/seed-0"
    message = refused(capsys, tmp_path / "other.jsonl", policy, prompts_file, "--reward", spec)
    assert "quantile: " in message and "--recipe" in message


class MeanLength:
    """A reward that learns: how much longer a completion is than the training rows' are."""

    reads_rows = True
    fits = 0

    def fit(self, folder: Path, rows: Any) -> dict[str, Any]:
        MeanLength.fits += 1
        lengths = [len(c) for c, s in zip(rows["completion"], rows["split"], strict=True) if s == "train"]
        (folder / "mean.json").write_text(json.dumps(np.mean(lengths)))
        return {}

    def load(self, folder: Path) -> None:
        self.mean = json.loads((folder / "mean.json").read_text())

    def identity(self) -> dict[str, Any]:
        return {"type": "mean_length"}

    def __call__(self, prompts: Any, completions: Any) -> list[float]:
        return [len(completion) - self.mean for completion in completions]


def test_a_reward_that_learns_from_rows_is_taken_from_the_run(
    trained: Path, prompts_file: str, tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any, capsys: Any
) -> None:
    from leftover.rewards.base import REWARDS

    monkeypatch.setitem(REWARDS, "mean_length", "tests.commands.generate.test_generate:MeanLength")
    recipe = write_yaml(tmp_path, tiny_recipe(tmp_path, reward={"functions": [{"type": "mean_length"}]}))
    model = trained / "policies/nll/seed-0"
    for output in ("a.jsonl", "b.jsonl"):
        rows = generate(tmp_path / output, model, prompts_file, "--recipe", recipe, "--n", 1)
    learnt = json.loads((tmp_path / "run/rewards/reward-mean_length/mean.json").read_text())
    assert all(row["reward"] == pytest.approx(len(row["completion"]) - learnt) for row in rows)
    assert MeanLength.fits == 1
    spec = write_yaml(tmp_path, [{"type": "mean_length"}])
    message = refused(capsys, tmp_path / "c.jsonl", model, prompts_file, "--reward", spec)
    assert "mean_length: " in message and "--recipe" in message


def test_a_reward_that_the_recipes_run_has_not_fitted_yet_is_fitted_first(
    trained: Path, tmp_path: Path, tiny_recipe: Callable, prompts_file: str
) -> None:
    content = tiny_recipe(tmp_path, reward={"functions": [PYTHON], "transform": "minmax"})
    recipe = write_yaml(tmp_path, content)
    model = trained / "policies/nll/seed-0"
    rows = generate(tmp_path / "out.jsonl", model, prompts_file, "--recipe", recipe, "--n", 2)
    scores = [row["reward"] for row in scored_rows(60)]
    this = open_run(make_recipe(content))
    splits = this.table.open("split")["split"][:]
    training = [score for score, split in zip(scores, splits, strict=True) if split == "train"]
    for row in rows:
        scaled = (row["reward/quality"] - min(training)) / (max(training) - min(training))
        assert row["reward"] == pytest.approx(np.clip(scaled, 0, 1))


def test_recorded_scores_give_new_completions_none(
    trained: Path, prompts_file: str, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "leftover")
    rows = generate(tmp_path / "rows.jsonl", trained / "policies/nll/seed-0", prompts_file, "--n", 1)
    assert rows and not any(name.startswith("reward") for row in rows for name in row)
    assert "no row has a reward" in caplog.text


def test_a_recipes_prompts_keep_their_side(trained: Path, tmp_path: Path) -> None:
    table = open_run(make_recipe(yaml.safe_load((trained / "recipe.yaml").read_text()))).table.open("rows", "split")
    sides = dict(zip(table["prompt"][:], table["split"][:], strict=True))
    rows = generate(tmp_path / "rows.jsonl", trained, "--n", 1, "--unfinished", "keep")
    assert len(rows) > 50 and set(sides.values()) == {row["split"] for row in rows}
    assert all(sides[row["prompt"]] == row["split"] for row in rows)
    rows = generate(tmp_path / "free.jsonl", trained, "--n", 1, "--unfinished", "keep", "--no-splits")
    assert len(rows) > 50 and not any("split" in row for row in rows)


def test_the_policy_and_its_seed_are_chosen_as_in_export(
    trained: Path, prompts_file: str, tmp_path: Path, capsys: Any
) -> None:
    options = [prompts_file, "--n", 1, "--greedy", "--unfinished", "keep"]
    main_policy = generate(tmp_path / "a.jsonl", trained, *options)
    by_folder = generate(tmp_path / "b.jsonl", trained / "policies/nll/seed-0", *options, "--recipe", trained)
    second = generate(tmp_path / "c.jsonl", trained, *options, "--policy", "second")
    assert main_policy == by_folder and [r["sampler_logprob"] for r in second] != [
        r["sampler_logprob"] for r in main_policy
    ]
    message = refused(capsys, tmp_path / "d.jsonl", trained, *options, "--policy-seed", 3)
    assert "no trained policy 'nll' with seed 3" in message and "policies/second/seed-0" in message
    plain = trained / "policies/nll/seed-0"
    assert "no run's folder" in refused(capsys, tmp_path / "d.jsonl", plain, prompts_file, "--policy", "nll")


def test_an_adapters_folder_samples_from_the_adapted_model(trained: Path, prompts_file: str, tmp_path: Path) -> None:
    """Also one without a tokenizer, which its base has."""
    from peft import LoraConfig, get_peft_model

    base = trained / "policies/nll/seed-0"
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in base.glob("token*"):
        shutil.copy(file, tmp_path / "merged")
    options = [prompts_file, "--n", 2, "--unfinished", "keep", "--max-new-tokens", 8]
    rows = generate(tmp_path / "adapter.jsonl", tmp_path / "adapter", *options)
    expected = generate(tmp_path / "merged.jsonl", tmp_path / "merged", *options)
    assert [row["completion"] for row in rows] == [row["completion"] for row in expected]


# Interruption and reuse.

CHUNKED = ["--n", 2, "--batch-size", 2, "--max-new-tokens", 20]  # four prompts a chunk


def test_a_killed_command_continues_and_the_rows_are_the_same(
    trained: Path, prompts_file: str, tmp_path: Path, monkeypatch: Any
) -> None:
    model = trained / "policies/nll/seed-0"
    generate(tmp_path / "whole.jsonl", model, prompts_file, *CHUNKED)
    drawn: list[int] = []
    draw = sampling.draw

    def dies(*args: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(args[3]))
        return draw(*args)

    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sampling, "draw", dies)
    with pytest.raises(SystemExit):
        generate(output, model, prompts_file, *CHUNKED)
    assert drawn == [4, 4]
    with output.open("a") as file:
        file.write('{"prompt": "half a li')

    def goes_on(*args: Any) -> Any:
        drawn.append(len(args[3]))
        return draw(*args)

    monkeypatch.setattr(sampling, "draw", goes_on)
    generate(output, model, prompts_file, *CHUNKED)
    assert drawn == [4] * 5, "nothing is made twice"
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    states = [json.loads((tmp_path / f"{name}.jsonl.state.json").read_text()) for name in ("rows", "whole")]
    assert states[0] == states[1] and states[0]["complete"]


def test_a_finished_file_is_left_alone_and_other_settings_are_refused(
    trained: Path, prompts_file: str, tmp_path: Path, monkeypatch: Any, capsys: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "leftover")
    model, output = trained / "policies/nll/seed-0", tmp_path / "rows.jsonl"
    rows = generate(output, model, prompts_file, *CHUNKED)
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "draw", None)
        assert generate(output, model, prompts_file, *CHUNKED) == rows
    assert "is finished" in caplog.text
    message = refused(capsys, output, model, prompts_file, *CHUNKED, "--seed", 5)
    assert "decoding.seed: 0 -> 5" in message and "--overwrite" in message
    other = trained / "policies/second/seed-0"
    assert "(model" in refused(capsys, output, other, prompts_file, *CHUNKED)
    assert read(output) == rows
    assert generate(output, model, prompts_file, *CHUNKED, "--seed", 5, "--overwrite") != rows


def test_a_file_of_somebody_elses_is_not_written_to(
    trained: Path, prompts_file: str, tmp_path: Path, capsys: Any
) -> None:
    model = trained / "policies/nll/seed-0"
    output = tmp_path / "mine.jsonl"
    output.write_text("mine\n")
    assert "was not written by this command" in refused(capsys, output, model, prompts_file)
    assert output.read_text() == "mine\n"
    assert "name a file that ends in .jsonl" in refused(capsys, tmp_path / "rows.csv", model, prompts_file)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "halved": lambda content: content[: len(content) // 2],
    "with a letter changed": lambda content: content.replace(b"e", b"E", 1),
    "with a line more": lambda content: content + b"{}\n",
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A finished file of rows; its key is {"seed": 0}."""
    file = RowsFile(tmp_path / "rows.jsonl", {"seed": 0}, overwrite=False)
    for number in range(3):
        file.append([{"completion": f"the {number}"}], {"rows": 1})
    file.finish()
    return file.path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_finished_file_that_was_damaged_since_is_refused(damage: Callable[[bytes], bytes], written: Path) -> None:
    whole = written.read_bytes()
    assert RowsFile(written, {"seed": 0}, overwrite=False).complete
    written.write_bytes(damage(whole))
    with pytest.raises(UserError, match=r"rows\.jsonl is .+ written.*: name another --output, or .* --overwrite"):
        RowsFile(written, {"seed": 0}, overwrite=False)
    assert not RowsFile(written, {"seed": 0}, overwrite=True).complete


@pytest.mark.parametrize("damage", list(DAMAGES.values())[:3], ids=list(DAMAGES)[:3])
def test_an_unfinished_file_that_was_damaged_since_is_not_continued(
    damage: Callable[[bytes], bytes], written: Path
) -> None:
    file = RowsFile(written, {"seed": 0}, overwrite=True)
    file.append([{"completion": "the first"}], {"rows": 1})
    whole = written.read_bytes()
    written.write_bytes(whole + b"half a row of a killed command")
    assert RowsFile(written, {"seed": 0}, overwrite=False).chunks == 1 and written.read_bytes() == whole
    written.write_bytes(damage(whole))
    with pytest.raises(UserError, match="--overwrite"):
        RowsFile(written, {"seed": 0}, overwrite=False)


def test_a_state_of_an_earlier_version_is_believed(written: Path) -> None:
    path = written.with_name("rows.jsonl.state.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: of for name, of in state.items() if name not in ("checksum", "sha256")}))
    assert RowsFile(written, {"seed": 0}, overwrite=False).complete
    written.write_text("")
    with pytest.raises(UserError, match="is shorter than it was"):
        RowsFile(written, {"seed": 0}, overwrite=False)


@pytest.mark.parametrize("state", ["[]", "{}", "3", '{"chunks": 1}', '{"a":' * 50_000, "", "changed"])
def test_a_damaged_state_is_named(state: str, written: Path) -> None:
    path = written.with_name("rows.jsonl.state.json")
    path.write_text(path.read_text().replace('"chunks": 3', '"chunks": 2') if state == "changed" else state)
    with pytest.raises(UserError, match=r"^\S+rows\.jsonl\.state\.json.+--overwrite$"):
        RowsFile(written, {"seed": 0}, overwrite=False)
    assert not RowsFile(written, {"seed": 0}, overwrite=True).complete


def test_fewer_prompts_are_a_seeded_choice(trained: Path, prompts_file: str, tmp_path: Path) -> None:
    model = trained / "policies/nll/seed-0"
    chosen = []
    for number, seed in ((5, 0), (8, 0), (5, 1)):
        output = tmp_path / f"{number}-{seed}.jsonl"
        options = ["--n", 1, "--max-new-tokens", 4, "--unfinished", "keep", "--seed", seed, "--max-prompts", number]
        chosen.append([row["prompt_index"] for row in generate(output, model, prompts_file, *options)])
    assert chosen[0] == sorted(chosen[0]) and len(chosen[0]) == 5
    assert set(chosen[0]) < set(chosen[1]) and chosen[0] != chosen[2]


# Sampling and its log-probabilities are of one distribution.


def test_samples_come_from_the_models_own_distribution_whatever_its_folder_asks_for(
    trained: Path, prompts_file: str, tmp_path: Path
) -> None:
    folder = tmp_path / "penalised"
    shutil.copytree(trained / "policies/nll/seed-0", folder)
    path = folder / "generation_config.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | {"repetition_penalty": 5.0, "min_p": 0.9, "do_sample": True}))
    plain = generate(tmp_path / "a.jsonl", trained / "policies/nll/seed-0", prompts_file, "--n", 2)
    penalised = generate(tmp_path / "b.jsonl", folder, prompts_file, "--n", 2)
    assert [row["completion"] for row in penalised] == [row["completion"] for row in plain]


# Bad input.


def test_missing_inputs_are_named_with_the_remedy(
    trained: Path, prompts_file: str, tmp_path: Path, capsys: Any, rows_file: Callable
) -> None:
    model, output = trained / "policies/nll/seed-0", tmp_path / "out.jsonl"
    message = refused(capsys, output, model)
    assert "PROMPTS" in message and "--recipe" in message
    assert "no data file at 'none.jsonl'" in refused(capsys, output, model, "none.jsonl")
    assert "no tokenizer at" in refused(capsys, output, tmp_path / "nowhere", prompts_file)
    assert "unknown key 'data.colums'" in refused(capsys, output, model, prompts_file, "--set", "data.colums=1")
    message = refused(capsys, output, model, prompts_file, "--max-new-tokens", 120)
    assert "128 positions" in message and "lower --max-new-tokens" in message
    message = refused(capsys, output, model, rows_file([{"question": "a"}]))
    assert "no column 'prompt' (found: question)" in message
    spec = write_yaml(tmp_path, [{"type": "nonsense"}])
    assert "unknown reward type 'nonsense'" in refused(capsys, output, model, prompts_file, "--reward", spec)
    assert "no YAML file at 'none.yaml'" in refused(capsys, output, model, prompts_file, "--reward", "none.yaml")
    message = refused(capsys, output, trained, "--set", f"data.path={prompts_file}")
    assert "give the file as PROMPTS" in message
    assert not output.exists() or output.read_text() == ""
    # A command that failed before its first chunk is in nobody's way.
    assert generate(output, model, prompts_file, "--max-new-tokens", 8, "--unfinished", "keep")


def test_faulty_prompts_can_be_put_aside(trained: Path, tmp_path: Path, rows_file: Callable) -> None:
    path = rows_file([{"prompt": "How are you?"}, {"prompt": ""}, "{"])
    output = tmp_path / "out.jsonl"
    options = ["--n", 1, "--max-new-tokens", 4, "--unfinished", "keep", "--set", "data.on_bad_row=skip"]
    rows = generate(output, trained / "policies/nll/seed-0", path, *options)
    assert [row["prompt"] for row in rows] == ["How are you?"]
    rejected = read(tmp_path / "out.jsonl.rejected.jsonl")
    assert [record["reason"].split(":")[0] for record in rejected] == ["'prompt' is empty", "malformed JSON"]


@pytest.mark.parametrize("chat", [False, True])
def test_unfinished_rows_fit_the_limits_they_were_sampled_under(chat: bool, trained: Path, tmp_path: Path) -> None:
    """No end is added to them, so that the limit counts the tokens that were sampled."""
    model, prompts = trained / "policies/nll/seed-0", [row["prompt"] for row in scored_rows(20)]
    given = [{"prompt": [{"role": "user", "content": text}] if chat else text} for text in prompts]
    limits = ["--set", "data.max_completion_tokens=6", "--set", "model.chat_template=plain", "--max-new-tokens", 6]
    rows = generate(
        tmp_path / "rows.jsonl",
        model,
        write_rows(tmp_path / "p.jsonl", given),
        *limits,
        "--n",
        2,
        "--unfinished",
        "keep",
    )
    assert len(rows) > 35 and sum(row["ended"] for row in rows) < 20
    recipe = {
        "name": "next",
        "output_dir": str(tmp_path / "next"),
        "model": {"path": str(model), "chat_template": "plain"},
        "data": {"path": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 48, "max_completion_tokens": 6},
        "reward": {"functions": [LENGTH]},
    }
    this = open_run(make_recipe(recipe))
    prepare(this, "tokens")
    table = this.table.open("rows", "tokens")
    assert all(table["kept"][:])
    end = AutoTokenizer.from_pretrained(model).eos_token_id
    for row, ids in zip(rows, table["completion_ids"][:], strict=True):
        assert (ids[-1] == end) is row["ended"]
        assert len(ids) == row["num_tokens"] if row["tokens_match"] else len(ids) <= 6


def test_a_recipe_told_of_more_tokens_than_it_takes(trained: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "leftover")
    options = ["--n", 1, "--max-prompts", 4, "--max-new-tokens", 8, "--unfinished", "keep"]
    rows = generate(tmp_path / "rows.jsonl", trained, *options, "--set", "data.max_completion_tokens=5")
    assert any(row["num_tokens"] > 5 for row in rows) and "raise it to 8" in caplog.text


def test_completions_of_which_none_makes_a_row_leave_no_file(trained: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "rows.jsonl"
    for _ in range(2):
        message = refused(capsys, output, trained, "--n", 1, "--max-new-tokens", 2, "--max-prompts", 4)
        assert "--unfinished keep" in message and "--max-new-tokens" in message
        assert not list(tmp_path.glob("rows.jsonl*"))


def test_many_completions_dropped_unfinished_are_told_of_before_the_next_value(
    trained: Path, tmp_path: Path, caplog: Any
) -> None:
    options = ["--n", 2, "--max-new-tokens", 20]
    generate(tmp_path / "rows.jsonl", trained, *options)
    assert "shorter than what the model writes" in caplog.text
    caplog.clear()
    generate(tmp_path / "kept.jsonl", trained, *options, "--unfinished", "keep")
    assert "shorter" not in caplog.text
