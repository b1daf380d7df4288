"""The recipes that come with the library, and what a dry run says of them without network or run folder."""

import socket
from pathlib import Path

import pytest

from leftover.cli import main
from leftover.config import load_recipe
from leftover.rewards import SumReward
from leftover.training_config import LoLConfig

RECIPES = sorted(Path(__file__).parents[1].joinpath("recipes").glob("*.yaml"))
PAPER = {"hha", "comet", "reddit_pos", "reddit_neg", "wow", "faithdial", "faithdial_wow"}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_papers_seven_recipes_are_there():
    assert {path.stem for path in RECIPES} >= PAPER


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_its_rewards_and_judges_can_be_made(path, no_network):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and Path(recipe.output_dir).name == path.stem
    SumReward(recipe.reward.functions, recipe.reward.transform, recipe.reward.missing)
    if recipe.evaluate.judges:
        SumReward(recipe.evaluate.judges)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem in PAPER], ids=lambda path: path.stem)
def test_a_paper_recipe_has_every_variant_of_the_method_with_the_subject_first(path, tmp_path):
    recipe = load_recipe(path)
    variants = {"a_lol_seq", "a_lol", "a_lol_ref_free", "a_lol_kl", "r_lol", "r_gold", "wbc", "nll"}
    assert recipe.main_policy == "a_lol_seq"
    assert {fields["objective"] for fields in recipe.policies.values()} >= variants
    for fields in recipe.policies.values():
        settings = {k: v for k, v in (recipe.train | fields).items() if k not in ("bf16", "optim")}  # of a GPU
        LoLConfig(output_dir=str(tmp_path), **settings)


def dry(recipe: str, capsys, *more: str) -> str:
    main(["run", recipe, "--dry-run", *more])
    return capsys.readouterr().out


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem in PAPER], ids=lambda path: path.stem)
def test_a_dry_run_of_a_paper_recipe_names_what_is_not_here_and_writes_nothing(
    path, no_network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = dry(str(path), capsys)
    assert "Needed" in said and "a_lol_seq" in said and "Memory" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_counts_rows_splits_and_steps_that_are_here(tiny_recipe, tmp_path, capsys, no_network):
    import json

    content = tiny_recipe(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    rows = len((tmp_path / "rows.jsonl").read_text().splitlines())
    said = " ".join(dry(str(file), capsys).replace("│", " ").split())
    assert not (tmp_path / "run").exists()
    assert f"with a recorded score {rows}" in said
    assert "a_lol_seq leftover" in said


def test_a_dry_run_of_random_weights_with_a_tokenizer_of_their_own_has_its_vocabulary(tiny_recipe, tmp_path, capsys):
    import json

    content = tiny_recipe(tmp_path)
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    content["model"] = {"config": config | {"num_attention_heads": 2}, "tokenizer": {"vocab_size": 300}}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    said = " ".join(dry(str(file), capsys).replace("│", " ").split())
    assert "vocabulary 1, 32, 300" in said
