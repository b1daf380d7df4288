"""KTO's own column: true and false as the reward, where it is nothing else."""

import json

import numpy as np
import pytest
import torch

from leftover import LoLConfig, LoLTrainer
from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, CompletionBatch
from leftover.objectives.offline import KTOSettings, desirable
from leftover.pipeline import run
from leftover.prepare.in_memory import checked_rows
from leftover.recipe.files import make_recipe
from leftover.runs.run import Run
from leftover.training.run import policy_rows
from tests.conftest import scored_rows
from tests.data.adapters import faults, read

RECORDED = {"functions": [{"type": "column"}]}
ROWS = [{"prompt": f"p{i}", "completion": " c", "label": i % 2 == 0} for i in range(4)]


def labelled(num=40, **changed):
    rows = [{k: v for k, v in row.items() if k != "reward"} for row in scored_rows(num)]
    return [row | {"label": i % 3 == 0} | changed for i, row in enumerate(rows)]


@pytest.mark.parametrize("form", [bool, int, float, str, lambda v: str(v).lower(), lambda v: str(int(v))])
def test_true_and_false_in_every_spelling(form, rows_file):
    rows = read(rows_file([row | {"label": form(row["label"])} for row in ROWS]))
    assert [row["recorded_reward"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert [row["label"] for row in rows] == [True, False, True, False]


def test_csv_parquet_and_conversations(tmp_path, rows_file):
    import pandas

    frame = pandas.DataFrame(ROWS)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "c"}]
    chat = [
        {"prompt": messages[:1], "completion": messages[1:], "label": True},
        {"messages": messages, "label": False},
    ]
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        assert [row["recorded_reward"] for row in read(str(path))] == [1.0, 0.0, 1.0, 0.0]
    assert [row["recorded_reward"] for row in read(rows_file(chat))] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({3: {"label": 2}}, {}),
        ({3: {"label": "positive"}}, {}),
        ({3: {"reward": 0.5}}, {}),
        ({0: {"reward": None}}, {}),
        ({}, {"columns": {"reward": "score"}}),
        ({}, {"columns": {"source": "label"}}),
        ({}, {"labels": {"a": 1}}),
    ],
)
def test_a_label_that_is_something_else_is_no_reward(change, settings, rows_file):
    rows = [row | change.get(i, {}) for i, row in enumerate(ROWS)]
    found = read(rows_file(rows), **settings)
    assert [row["label"] for row in found] == [None] * 4
    assert found[1]["recorded_reward"] is None


def test_rows_without_a_label_have_no_score_and_pairs_keep_theirs(rows_file):
    found = read(rows_file([ROWS[0], ROWS[1] | {"label": None}]))
    assert [row["recorded_reward"] for row in found] == [1.0, None]
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "label": True}
    assert [row["recorded_reward"] for row in read(rows_file([pair]))] == [1.0, 0.0]


def test_kto_takes_what_is_true_as_desirable_whatever_v_is():
    ones = torch.ones(4)
    # R = 1, 0, 1, 0 and V = 2, -1, ... put the unlabelled rule the other way round.
    batch = CompletionBatch(
        ones[:, None], ones[:, None], ones[:, None].bool(), torch.tensor([1.0, 0, 1, 0]), torch.tensor([2.0, -1, 0, 1]),
        torch.tensor([-1.0, 1, 1, -1]), torch.arange(4),
        {"label": torch.tensor([1.0, 0.0, float("nan"), float("nan")])},
    )  # fmt: skip
    assert desirable(batch, KTOSettings()).tolist() == [True, False, True, False]
    assert desirable(batch, KTOSettings(threshold=-1.0)).tolist() == [True] * 4
    assert "label" in OBJECTIVES["kto"].optional


def test_a_recipe_of_kto_trains_on_labels(tmp_path, tiny_recipe):
    policies = {"kto": {"objective": "kto"}, "nll": {"objective": "nll"}}
    recipe = make_recipe(tiny_recipe(tmp_path, rows=labelled(60), reward=RECORDED, policies=policies))
    run(recipe, until="prepare")
    rows = policy_rows(recipe, Run(recipe).table, "kto")
    assert rows["label"][:] == [reward == 1 for reward in rows["reward"][:]] and 0 < np.mean(rows["reward"]) < 1
    assert "label" not in policy_rows(recipe, Run(recipe).table, "nll").column_names
    # Where a function scores the rows, theirs is the reward.
    other = make_recipe(tiny_recipe(tmp_path, rows=labelled(60), policies=policies, output_dir=str(tmp_path / "other")))
    run(other, until="prepare")
    assert "label" not in policy_rows(other, Run(other).table, "kto").column_names


def test_a_trainer_reads_labels_unless_functions_score(tmp_path, tiny_llama_path):
    def trainer(objective, **given):
        config = LoLConfig(output_dir=str(tmp_path), objective=objective, max_steps=1)
        return LoLTrainer(tiny_llama_path, config, train_dataset=labelled(), **given).train_dataset

    rows = trainer("kto")
    assert rows["label"][:] == rows["reward"][:] and set(rows["label"]) == {0.0, 1.0}
    assert set(trainer("wbc")["reward"]) == {0.0, 1.0}
    assert set(trainer("wbc", reward_funcs=lambda prompts, completions: [0.25] * len(prompts))["reward"]) == {0.25}
    assert set(trainer("kto", reward_funcs=lambda prompts, completions: [0.25] * len(prompts))["reward"]) == {0.0, 1.0}
    with pytest.raises(UserError, match="needs scores"):
        config = LoLConfig(output_dir=str(tmp_path), objective="wbc", max_steps=1)
        LoLTrainer(tiny_llama_path, config, train_dataset=labelled(label=3))
    with pytest.raises(UserError, match=r"no row has one in the column 'score'.* columns=\{'reward'"):
        config = LoLConfig(output_dir=str(tmp_path), objective="kto", max_steps=1, columns={"reward": "score"})
        LoLTrainer(tiny_llama_path, config, train_dataset=labelled())


def test_labels_of_lists_are_told_apart_like_those_of_files():
    assert [row["recorded_reward"] for row in checked_rows(ROWS)] == [1.0, 0.0, 1.0, 0.0]
    assert [row["recorded_reward"] for row in checked_rows(ROWS, labels=False)] == [None] * 4
    assert json.loads(json.dumps(ROWS)) == ROWS, "the rows stay as they are"


def test_scores_of_generated_rows_are_no_classes(rows_file):
    generated = {"prompt": "p", "completion": "c", "sampler_logprobs": [-1.0]}
    labels = {"up": 1, "down": 0, "1.0": 5}
    rows = read(rows_file([generated | {"reward": 0.37}, generated | {"reward": 1.0}]), labels=labels)
    assert [row["recorded_reward"] for row in rows] == [0.37, 1.0]
    path = rows_file([{"prompt": "p", "completion": "c", "reward": 0.37}])
    assert faults(path, labels=labels) == ["'reward' is 0.37, not one of data.labels: up, down, 1.0"]
