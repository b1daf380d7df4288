"""The recipes of the repository: each is read, its settings are taken, its rewards exist, its plan is printed."""

import re
from pathlib import Path
from typing import Any

import pytest

from leftover import cli
from leftover.commands.dry_run.checks import _portable
from leftover.commands.dry_run.sources import on_the_hub
from leftover.data.formats import data_files
from leftover.data.tokenizer import PLAIN_CHAT_TEMPLATE
from leftover.recipe.files import load_recipe, load_yaml, make_recipe, quick_overrides
from leftover.recipe.lol_config import LoLConfig, objective_settings
from leftover.recipe.sections import Recipe
from leftover.rewards import load_reward

ALL = sorted(Path("recipes").glob("*.yaml"))
PAPER = ["comet", "faithdial", "faithdial_wow", "hha", "reddit_neg", "reddit_pos", "wow"]
# Rows a step, epochs, evaluations a run: the released runs' (arXiv 2305.14718; github.com/abaheti95/LoL-RL).
RELEASED = dict.fromkeys(PAPER, (16, 3, 6)) | {"hha": (16, 1, 10), "comet": (16, 1, 16)}


def recipe_of(name: str) -> Recipe:
    return load_recipe(f"recipes/{name}.yaml")


# Its preference methods need pairs, which one task of four has, or rollouts.
OF_THE_PAPER = {"nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl"}


def test_every_task_of_the_paper_has_a_recipe() -> None:
    assert {path.stem for path in ALL} >= set(PAPER)


@pytest.mark.parametrize("name", [path.stem for path in ALL if path.stem not in PAPER])
def test_other_recipes_are_read(name: str) -> None:
    assert recipe_of(name).name == name


@pytest.mark.parametrize("name", [path.stem for path in ALL])
def test_no_recipe_trains_on_rows_that_never_end(name: str) -> None:
    assert recipe_of(name).data.long_completions == "drop"


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_compares_the_papers_objectives_under_the_released_settings(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    assert (recipe.name, recipe.output_dir) == (name, f"runs/{name}")
    assert recipe.main_policy == "a_lol_seq"
    assert {fields["objective"] for fields in recipe.policies.values()} == OF_THE_PAPER
    rows_per_step, epochs, evaluations = RELEASED[name]
    for fields in recipe.policies.values():
        args = LoLConfig(output_dir=str(tmp_path), **_portable(recipe.train | fields))
        objective_settings(args)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == rows_per_step
        assert args.num_train_epochs == epochs and args.max_steps <= 0  # steps follow the share of selected rows
        assert args.learning_rate == (2e-4 if name == "hha" else 2e-5)
        assert args.eval_decoding == "greedy"
        every = (recipe.train | fields).get("eval_steps", 0.1)
        assert round(1 / every) == evaluations and recipe.train.get("save_steps", 0.1) == every
    LoLConfig(output_dir=str(tmp_path), **_portable(recipe.reference.train))
    assert recipe.data.max_completion_tokens == (30 if name == "comet" else 128)
    assert recipe.data.max_prompt_tokens == (640 if name == "hha" else 512)


def test_the_assistant_is_llama_under_qlora() -> None:
    model = recipe_of("hha").model
    assert model.lora is not None
    assert (model.path, model.quantization) == ("huggyllama/llama-7b", "nf4")
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (64, 16, 0.05)


@pytest.mark.parametrize("name", PAPER)
def test_rewards_exist_and_cannot_be_negative(name: str) -> None:
    """wbc, r_gold and r_lol need rewards from 0; the value is clipped to the sum of the components' bounds."""
    recipe = recipe_of(name)
    functions = [{k: v for k, v in spec.items() if k not in ("name", "weight")} for spec in recipe.reward.functions]
    for spec in functions + [{k: v for k, v in s.items() if k != "name"} for s in recipe.evaluate.judges]:
        reward = load_reward(spec)
        assert spec["type"] == "text" or reward.activation != "none"
    assert recipe.value.bounds == (0, len(functions))


@pytest.mark.parametrize("name", PAPER)
def test_the_dry_run_is_printed_before_anything_is_downloaded(
    name: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("leftover.commands.dry_run.memory.try_to_trace", lambda *args: None)  # what takes time
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:  # the costs are told all the same
        cli.main(["run", f"recipes/{name}.yaml", "--dry-run", "--device", "a100", "--set", f"output_dir={folder}"])
    said, refusal = capsys.readouterr()
    assert stopped.value.code == 2 and "data.path" in refusal
    assert "published sizes" in said and "a_lol_ref_free" in said
    assert "Of unknown size" not in said  # every reward of ours is in the table of sizes
    assert not folder.exists()


@pytest.mark.parametrize("name", ["hh_small", "stories_small"])
def test_the_dry_run_of_rows_that_are_here_counts_them(name: str, capsys: Any, monkeypatch: Any) -> None:
    recipe = recipe_of(name)
    if not all(Path(path).exists() or on_the_hub(path) for path in data_files(recipe.data)):
        pytest.skip("the rows are not here")
    monkeypatch.setattr("leftover.commands.dry_run.memory.try_to_trace", lambda *args: None)
    monkeypatch.setattr("leftover.commands.dry_run.estimate.measured_pace", lambda *args, **options: None)
    monkeypatch.setenv("COLUMNS", "200")
    cli.main(["prepare", f"recipes/{name}.yaml", "--dry-run", "--set", "data.max_rows=300"])
    said = capsys.readouterr().out
    assert re.search(r"train +│ +\d+ │", said) and "unknown until downloaded" not in said


# What the recipes write in Jinja and in regular expressions.


def test_the_assistants_template_writes_turns_as_the_released_runs_do(tokenizer: Any) -> None:
    template = recipe_of("hha").model.chat_template
    assert template is not None and template != PLAIN_CHAT_TEMPLATE
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why? "},
    ]
    write = {"chat_template": template, "tokenize": False}
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **write)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    assert asked == f"{bos}### Human: Hello ### Assistant: Hi ### Human: Why? ### Assistant:"
    told = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "So."}], **write)
    assert told == f"{asked} So.{eos}"


def pattern_in(name: str) -> re.Pattern[str]:
    """The prompt_pattern of a recipe, which is read as YAML even where its sections are not known."""
    content = load_yaml(Path(f"recipes/{name}.yaml").read_text(encoding="utf-8"))
    patterns = [spec["prompt_pattern"] for spec in content["reward"]["functions"] if "prompt_pattern" in spec]
    assert len(patterns) == 1
    return re.compile(patterns[0])


def test_plausibility_is_asked_of_the_head() -> None:
    found = pattern_in("comet").search("<head> PersonX runs </head> <relation> xWant </relation> [GEN]")
    assert found is not None and found.group(1) == "PersonX runs"


@pytest.mark.parametrize("name", ["wow", "faithdial", "faithdial_wow"])
def test_engagement_is_asked_of_the_turns_without_the_knowledge(name: str) -> None:
    end = "<|endoftext|>"
    found = pattern_in(name).search(f"Knowledge: Tea is old.{end}Hello{end}Hi{end}Any\ntea? {end}")
    assert found is not None and found.group(1) == f"Hello{end}Hi{end}Any\ntea?"


@pytest.mark.parametrize("own", [["train.eval_steps=0.5"], ["train.eval_steps=10"], ["train.eval_strategy=epoch"], []])
def test_a_quick_run_saves_where_the_user_has_it_evaluate(own: list[str], tmp_path: Path) -> None:
    content = {"name": "t", "output_dir": "runs/t", "model": {"path": "m"}, "data": {"path": "rows.jsonl"}}
    settings = make_recipe(content, overrides=[*quick_overrides(own), *own]).train
    assert settings["save_steps"] == settings["eval_steps"] and settings["save_strategy"] == settings["eval_strategy"]
    LoLConfig(output_dir=str(tmp_path), load_best_model_at_end=True, **settings)  # which transformers would refuse
