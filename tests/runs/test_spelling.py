"""A recipe said in other words has the keys of the first: nothing is computed again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from leftover import cli
from leftover.commands.fit_reward import fit_reward
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe.files import QUICK, dump_recipe, load_recipe, make_recipe
from leftover.runs.claim import check_quick
from leftover.runs.run import Run
from leftover.runs.spelling import same_meaning
from leftover.training.run import policy_key
from tests.rewards.reward_rows import planted_rows, write

BOTH = ("sampled", "greedy")
CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
FIRST = """
name: tiny
output_dir: run
model: {config: %s, tokenizer: {vocab_size: 300}}
data: {path: rows.jsonl, max_prompt_tokens: 60, max_completion_tokens: 60}
reward:
  functions:
    - {type: python, function: "leftover.demo.grammar:score_answers", name: es}
    - {type: linear, name: fitted, weight: 2, fit: {path: labelled.jsonl}}
reference: {train: {max_steps: 2, learning_rate: 3e-3, per_device_train_batch_size: 8}}
value: {num_prompts: 16, candidates: [constant, ridge]}
policies:
  a_lol_seq: {objective: a_lol_seq}
  nll: {objective: nll, learning_rate: 1e-4}
train: {max_steps: 2, learning_rate: 1e-3, per_device_train_batch_size: 4}
evaluate: {max_prompts: 4, max_selection_prompts: 4, max_new_tokens: 8, judges: [{type: text, function: length}]}
"""
# Other numbers, defaults written out, lists of one, other paths, aliases of YAML, other orders of keys.
SECOND = """
evaluate:
  temperature: 1
  judges: [{name: length, function: length, type: text}]
  max_new_tokens: 8
  max_selection_prompts: 4
  max_prompts: 4
  batch_size: 64
train:
  per_device_train_batch_size: &four 4
  learning_rate: 0.001
  weight_decay: 0
  max_grad_norm: 1
  lr_scheduler_type: constant
  lr_scheduler_kwargs: {}
  rows: auto
  eval_steps: 2.0e-1
  save_strategy: steps
  max_completion_length: 8
  logging_steps: 3
  max_steps: 2.0
policies:
  a_lol_seq: {objective_settings: {clip: 0.9}, rows: leftover, draw: priority}
  nll: {learning_rate: 0.0001, objective: nll, draw: uniform, objective_settings: {}}
value: {candidates: [ridge], num_prompts: 16, targets: reference_samples, folds: 5, bounds: null}
reference:
  source: fit
  train: {per_device_train_batch_size: 8, learning_rate: 30.0e-4, max_steps: 2, num_train_epochs: 3.0,
          lr_scheduler_type: linear, objective: nll}
reward:
  transform: none
  missing: drop
  functions:
    - {name: es, weight: 1, normalise: none, function: "leftover.demo.grammar:score_answers", type: python}
    - {fit: {path: [./labelled.jsonl], format: jsonl}, type: linear, weight: 2.0, features: completion, name: fitted}
data: {max_completion_tokens: 60, max_prompt_tokens: 60, format: jsonl, path: [./rows.jsonl], part: [0, 1],
       columns: {prompt: prompt}, hub_split: [train], labels: {}}
model:
  tokenizer: {vocab_size: 300}
  config: %s
  dtype: float32
  template_options: {}
seeds: [0]
output_dir: ./run
name: tiny
"""


def recipes(folder: Path) -> tuple[str, str]:
    """The first recipe and the second, written beside their data."""
    write(folder / "labelled.jsonl", planted_rows("label"))
    (folder / "score.py").write_text(
        "def score(prompts, completions):\n    return [c.count('e') for c in completions]\n"
    )
    written_out = dict(reversed(CONFIG.items())) | {"hidden_act": "silu", "attention_bias": False}
    for name, text, config in (("first", FIRST, CONFIG), ("second", SECOND, written_out)):
        (folder / f"{name}.yaml").write_text(text % json.dumps(config))
    return "first.yaml", "second.yaml"


def test_a_recipe_in_other_words_reuses_everything(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_recipe(tmp_path)  # writes rows.jsonl
    first, second = recipes(tmp_path)
    results = run(load_recipe(first))
    stored = {name: (tmp_path / "run" / name).read_text() for name in ("manifest.json", "table/manifest.json")}
    caplog.set_level(logging.INFO, "leftover")
    caplog.clear()
    again = run(load_recipe(second))
    said = [record.getMessage() for record in caplog.records if record.name == "leftover.store.manifest"]
    assert len(said) == 16 and all(": kept from before" in line for line in said), said
    assert {name: (tmp_path / "run" / name).read_text() for name in stored} == stored, "stored keys stay as they are"
    assert json.dumps(again, sort_keys=True) == json.dumps(results, sort_keys=True)


CHANGES: dict[str, dict[str, Any]] = {
    "another number": {"learning_rate": 2e-3},
    "a default that is none": {"weight_decay": 0.1},
    "another limit": {"max_completion_length": 9},
    "other rows": {"rows": "all"},
    "another draw": {"draw": "uniform"},
    "another setting of the objective": {"objective_settings": {"clip": 0.5}},
    "another objective": {"objective": "a_lol"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_says_something_else_has_another_key(change: str) -> None:
    fields: dict[str, Any] = {"max_steps": 2}
    recipe = make_recipe({"name": "t", "output_dir": "r", "model": {"path": "m"}, "data": {"path": "d.jsonl"}})
    keys = [
        {"from": {}, "settings": settings, "lora": None, "rows": "all", "selection": 4, "seed": 0}
        for settings in (fields, fields | CHANGES[change])
    ]
    assert same_meaning(recipe, keys[0]) != same_meaning(recipe, keys[1])


def test_an_evaluation_that_holds_more_decodings_than_are_asked_for_is_the_same() -> None:
    content = {"name": "t", "output_dir": "r", "model": {"path": "m"}, "data": {"path": "d.jsonl"}}
    asked = {names: make_recipe(content | {"evaluate": {"decodings": list(names)}}) for names in (("sampled",), BOTH)}
    key = {"from": {}, "settings": {"max_prompts": 8}, "model": "x", "judges": None, "seed": 0}
    earlier, sampled = key, key | {"decodings": ["sampled"]}  # which wrote both
    assert same_meaning(asked["sampled",], earlier) == same_meaning(asked["sampled",], sampled)
    assert same_meaning(asked[BOTH], earlier) == same_meaning(asked[BOTH], key | {"decodings": sorted(BOTH)})
    assert same_meaning(asked[BOTH], sampled) != same_meaning(asked[BOTH], earlier)


def test_numbers_of_prompts_are_open_and_earlier_defaults_as_good() -> None:
    content: dict[str, Any] = {"name": "t", "output_dir": "r", "data": {"path": "d.jsonl"}}
    pretrained = make_recipe(content | {"model": {"path": "m"}})
    random = make_recipe(content | {"model": {"config": CONFIG, "tokenizer": "t"}})
    numbers = [(r.test_prompts, r.selection_prompts, r.value_settings.num_prompts) for r in (pretrained, random)]
    assert numbers == [(200, 64, 500), (500, 200, 2000)]
    key = {"from": {}, "settings": {}, "lora": None, "rows": "all", "seed": 0}
    keys = [same_meaning(pretrained, key | {"selection": number}) for number in (64, 200, 10)]
    assert keys[0] == keys[1] != keys[2]


def test_what_the_result_table_shows_first_is_written() -> None:
    content = {"name": "t", "output_dir": "r", "model": {"path": "m"}, "data": {"path": "d.jsonl"}}
    assert make_recipe(content | {"evaluate": {"primary": "greedy"}}).decodings == ("greedy",)
    assert make_recipe(content | {"evaluate": {"primary": "greedy", "decodings": list(BOTH)}}).decodings == BOTH[::-1]
    with pytest.raises(UserError, match="decodings leaves out"):
        make_recipe(content | {"evaluate": {"primary": "greedy", "decodings": ["sampled"]}})


def test_quick_sets_keys_that_a_later_override_may_change() -> None:
    content = {"name": "t", "output_dir": "r", "model": {"path": "m"}, "data": {"path": "d.jsonl"}}
    quick = make_recipe(content, overrides=[*QUICK, "evaluate.max_prompts=8"])
    assert (quick.test_prompts, quick.selection_prompts, quick.decodings) == (8, 64, ("sampled",))
    assert quick.train["eval_steps"] == quick.train["save_steps"] and quick.reference.train == {}


def test_a_first_look_does_not_replace_a_full_run(tmp_path: Path, tiny_run: Callable) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny_run(tmp_path)))
    for command in (["run"], ["compare", "--methods", "nll"]):
        result = CliRunner().invoke(cli.cli, [command[0], str(tmp_path / "recipe.yaml"), *command[1:], "--quick"])
        assert isinstance(result.exception, UserError)
        assert f"--set output_dir={tmp_path / 'run'}-quick" in str(result.exception)
    for looked_at in (tmp_path / "run", tmp_path / "other"):  # a first look again, and one of its own
        quick = load_recipe(tmp_path / "recipe.yaml", [*QUICK, f"output_dir={looked_at}"])
        (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(quick))
        check_quick(quick)


@pytest.mark.parametrize(
    ("spelling", "same"),
    [
        ({"path": ["./a/../rows.jsonl"]}, True),
        ({"path": "rows.jsonl", "format": "jsonl"}, True),
        ({"path": str(Path("rows.jsonl").resolve()), "max_rows": None}, True),
        ({"path": "rows.jsonl", "format": "reddit"}, False),
        ({"path": "rows.jsonl", "max_rows": 7}, False),
        ({"path": ["rows.jsonl", "rows.jsonl"]}, False),
    ],
)
def test_rows_have_one_key_for_all_spellings(spelling: dict[str, Any], same: bool) -> None:
    recipe = make_recipe({"name": "t", "output_dir": "r", "model": {"path": "m"}, "data": {"path": "d.jsonl"}})
    first = {"files": {"rows.jsonl": "abc"}, "settings": {"path": "rows.jsonl"}}
    path = spelling["path"] if isinstance(spelling["path"], str) else spelling["path"][0]
    second = {"files": {path: "abc"}, "settings": spelling}
    assert (same_meaning(recipe, first) == same_meaning(recipe, second)) == same
    second["files"] = {path: "abd"}
    assert same_meaning(recipe, first) != same_meaning(recipe, second), "other content"


def test_settings_of_ppo_have_one_key(tiny_recipe: Callable, tmp_path: Path) -> None:
    def key(own: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
        made = Run(make_recipe(tiny_recipe(tmp_path, policies={"ppo": {"objective": "ppo"} | own})))
        for block in ("tokens", "split"):
            made.table.manifest.entries[block] = {"key": {}, "complete": True}
        return made, policy_key(made, "ppo", 0)

    (made, first), (_, same), (_, other) = key({}), key({"kl_coef": 5e-2, "gamma": 1}), key({"kl_coef": 0.06})
    assert first != same and same_meaning(made.recipe, first) == same_meaning(made.recipe, same)
    assert same_meaning(made.recipe, first) != same_meaning(made.recipe, other)


def test_a_reward_that_is_fitted_outside_a_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", planted_rows("label"))
    _, facts = fit_reward("rows.jsonl", "critic")
    Path("critic.yaml").write_text(yaml.safe_dump({"held_out": 0.2, "fit": {"path": ["./rows.jsonl"], "part": [0, 1]}}))
    written = Path("critic/reward.json").stat().st_mtime_ns
    assert fit_reward("critic.yaml", "critic/")[1] == facts
    assert Path("critic/reward.json").stat().st_mtime_ns == written
