"""A run whose completions vLLM writes: everywhere the same engine, told in the keys only where it was asked for."""

import json
from typing import Any

import pytest
import yaml

from leftover.errors import UserError
from leftover.evaluation.run import Evaluation
from leftover.models.engines import choice
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.runs.run import Run
from tests.models.engines import stand_in
from tests.models.engines.stand_in import LLM

# As they were before there was a choice of engines.
SETTINGS = ["base_perplexity", "batch_size", "max_new_tokens", "max_prompts", "temperature"]


@pytest.fixture
def made(monkeypatch: Any) -> list[LLM]:
    stand_in.install(monkeypatch)
    return LLM.made


def test_a_whole_run_has_its_completions_from_one_vllm(made, tiny_recipe, tmp_path):
    content = tiny_recipe(
        tmp_path,
        evaluate={"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.2}},
        reference={"source": "as_is", "train": {}},
        train={"max_steps": 2, "eval_steps": 0.5},
    )
    run(make_recipe(content))
    (llm,) = made
    asked = llm.names().count("generate")
    assert asked == 5, "samples of the reference, two checkpoints, the tests of reference and policy"
    assert llm.asleep and llm.calls[0][1]["gpu_memory_utilization"] == 0.2
    entries = json.loads((tmp_path / "run" / "manifest.json").read_text())
    engines = {name: entry.get("engine") for name, entry in entries.items() if name.startswith("evaluation")}
    assert set(engines.values()) == {"vllm"} and len(engines) == 2
    assert json.loads((tmp_path / "run" / "prepare.json").read_text())["value"]["engine"] == "vllm"
    run(make_recipe(content))
    assert len(made) == 1 and llm.names().count("generate") == asked, "what is finished is not written again"


def test_keys_tell_the_engine_only_if_vllm_was_asked_for(made, tiny_run, tmp_path):
    content = tiny_run(tmp_path)

    def keys(**settings: Any) -> dict[str, Any]:
        asked = make_recipe(content | {"evaluate": content["evaluate"] | settings})
        return Evaluation(Run(asked)).key("reference")

    plain = keys()
    assert "engine" not in plain and sorted(plain["settings"]) == SETTINGS
    assert keys(engine="transformers") == keys(engine="auto", max_batch_tokens=100) == plain
    assert keys(vllm={"address": "http://host:1"}) == plain
    assert keys(engine="vllm") == plain | {"engine": "vllm"}


def test_a_finished_run_is_still_finished_where_vllm_is_at_hand(made, tiny_run, tmp_path):
    run(make_recipe(tiny_run(tmp_path)))
    assert not made


def test_a_recipe_that_asks_for_what_is_missing_is_refused_before_anything_is_written(tiny_recipe, tmp_path):
    if not choice.missing_for_vllm(make_recipe(tiny_recipe(tmp_path)).engine):
        pytest.skip("this machine has vLLM and a GPU")
    with pytest.raises(UserError, match=r"evaluate.engine: vllm needs"):
        open_run(make_recipe(tiny_recipe(tmp_path, evaluate={"engine": "vllm"})))
    assert not (tmp_path / "run").exists()


def test_the_settings_are_keys_of_evaluate(tiny_recipe, tmp_path):
    content = tiny_recipe(tmp_path, evaluate={"engine": "vllm", "vllm": {"adress": "http://host:1"}})
    with pytest.raises(UserError, match=r"evaluate.vllm.adress.*address"):
        make_recipe(content)
    for where, key in (("eval_engine", "evaluate.engine"), ("eval_max_batch_tokens", "evaluate.max_batch_tokens")):
        with pytest.raises(UserError, match=f"set {key}"):
            make_recipe(tiny_recipe(tmp_path, train={where: 1}))
    address = "http://host:8000"
    asked = make_recipe(tiny_recipe(tmp_path, evaluate={"vllm": {"address": address}, "max_batch_tokens": 77}))
    assert asked.engine.vllm.address == address and asked.generation["max_batch_tokens"] == 77
    assert yaml.safe_dump(asked.training_defaults["eval_vllm"])
