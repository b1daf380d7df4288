"""A tokenizer larger than the embeddings of a model is refused wherever the two meet, before a row is read."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover import LoLConfig, LoLTrainer, PPOConfig, PPOTrainer
from leftover.commands.dry_run.rows import read as dry_read
from leftover.commands.generate.run import generate_rows
from leftover.data.tokenizer import num_tokens
from leftover.errors import UserError
from leftover.models.load import build_model
from leftover.models.vocabulary import check_prepared
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.rewards import load_reward
from leftover.rewards.pretrained import untrained_classifier
from tests.rewards import classifier_models


@pytest.fixture(scope="module", params=["pad_token", "additional_special_tokens"])
def larger(request: pytest.FixtureRequest, tiny_llama_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny Llama with one token more in its tokenizer than in its embeddings."""
    folder = tmp_path_factory.mktemp("larger") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llama_path).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_path)
    tokenizer.add_special_tokens({request.param: "[X]" if request.param == "pad_token" else ["[X]"]})
    tokenizer.save_pretrained(folder)
    return str(folder)


def refused(rows: int) -> Any:
    return pytest.raises(UserError, match=rf"tokenizer has {rows + 1} tokens.* {rows} rows of emb.*\[X\].*resize_token")


def test_a_recipe_is_refused_before_its_rows_are_read(
    larger: str, tokenizer: Any, tmp_path: Path, tiny_recipe: Callable
) -> None:
    content = tiny_recipe(tmp_path, ["no row"], model={"path": larger})
    with refused(len(tokenizer)):
        run(make_recipe(content))
    content = tiny_recipe(tmp_path, ["no row"], model={"tokenizer": larger})
    with refused(len(tokenizer)):
        run(make_recipe(content))
    with refused(len(tokenizer)):
        dry_read(make_recipe(tiny_recipe(tmp_path, model={"path": larger})))


def test_a_reference_with_fewer_embeddings_is_refused(
    larger: str, tiny_llama_path: str, tokenizer: Any, tmp_path: Path, tiny_recipe: Callable
) -> None:
    model = AutoModelForCausalLM.from_pretrained(larger)
    model.resize_token_embeddings(len(tokenizer) + 1)
    model.save_pretrained(tmp_path / "resized")
    AutoTokenizer.from_pretrained(larger).save_pretrained(tmp_path / "resized")
    reference = {"source": "path", "path": tiny_llama_path}
    content = tiny_recipe(tmp_path, ["no row"], model={"path": str(tmp_path / "resized")}) | {"reference": reference}
    with refused(len(tokenizer)):
        run(make_recipe(content))


def test_generate_is_refused(larger: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("no row")
    settings: dict[str, Any] = dict.fromkeys(["n", "max_new_tokens", "batch_size", "max_prompts"])
    settings |= dict.fromkeys(["recipe", "policy", "policy_seed", "reward"])
    with refused(len(tokenizer)):
        generate_rows(
            larger, str(tmp_path / "prompts.jsonl"), output=str(tmp_path / "o.jsonl"), greedy=True, overwrite=False,
            temperature=1.0, seed=0, unfinished="keep", overrides=[], splits=True, **settings,
        )  # fmt: skip


def test_trainers_are_refused(larger: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi.", "completion": " Yes.", "reward": 1.0}]
    for trainer, config in ((LoLTrainer, LoLConfig), (PPOTrainer, PPOConfig)):
        with refused(len(tokenizer)):
            trainer(
                larger, config(output_dir=str(tmp_path)), train_dataset=rows, reward_funcs=lambda p, c: [0.0] * len(p)
            )


def test_random_weights_fit_a_tokenizer_whose_ids_have_gaps(tokenizer: Any, tmp_path: Path) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"]["a gap before"] = len(tokenizer) + 9
    gaps = copy.deepcopy(tokenizer)
    gaps._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    assert (len(gaps), num_tokens(gaps)) == (len(tokenizer) + 1, len(tokenizer) + 10)
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = build_model(config | {"num_attention_heads": 1}, gaps, seed=0)
    assert model.get_input_embeddings().num_embeddings == num_tokens(gaps)


@pytest.mark.parametrize("made", [dict, {"vocab_size": 300}.copy])
def test_a_recipes_own_vocabulary_size_is_refused(
    made: Any, tiny_llama_path: str, tmp_path: Path, tiny_recipe: Any
) -> None:
    config = {"model_type": "llama", "vocab_size": 270, "max_position_embeddings": 128}
    model = {"config": config, "tokenizer": made() or tiny_llama_path}
    content = tiny_recipe(tmp_path) | {"model": model}
    with pytest.raises(UserError, match=r"model\.config has 270 rows .*leave vocab_size out"):
        run(make_recipe(content))


def test_rewards_and_what_they_start_from_are_refused(tmp_path: Path) -> None:
    path = classifier_models.bert(tmp_path / "bert")
    own = AutoTokenizer.from_pretrained(path)
    size = len(own)
    own.add_tokens(["[X]"])
    own.save_pretrained(path)
    with refused(size):
        load_reward({"type": "classifier", "model": path})(["Ada"], ["soon"])
    with refused(size):
        untrained_classifier(path, None, None)


def test_prepared_rows_need_a_prompt_and_ids_that_the_model_knows() -> None:
    good = {"prompt_ids": [1, 4], "completion_ids": [5, 2]}
    for form in (list, datasets.Dataset.from_list):
        check_prepared(form([good] * 3), "train_dataset", 6)
        with pytest.raises(UserError, match=r"train_dataset\[1\].*'prompt_ids' is empty.*begin it"):
            check_prepared(form([good, good | {"prompt_ids": []}]), "train_dataset", 6)
        with pytest.raises(UserError, match=r"eval_dataset\[2\].*'completion_ids' .* 6.* 6 rows"):
            check_prepared(form([good, good, good | {"completion_ids": [5, 6, 2]}]), "eval_dataset", 6)
    check_prepared(datasets.Dataset.from_list([good | {"completion_ids": []}]), "eval_dataset", 6)


def test_a_trainer_checks_rows_that_are_prepared(tiny_llama_path: str, tmp_path: Path) -> None:
    rows = [{"prompt_ids": [], "completion_ids": [5, 2], "group": 0, "reward": 1.0}]
    args = LoLConfig(output_dir=str(tmp_path), objective="nll")
    with pytest.raises(UserError, match="'prompt_ids' is empty"):
        LoLTrainer(tiny_llama_path, args, train_dataset=rows)
