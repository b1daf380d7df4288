"""The fine-tuned reward: its losses, its checkpoint, its scores before and after loading, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leftover.errors import UserError
from leftover.rewards import load_reward
from leftover.rewards.classifier import ClassifierReward
from leftover.rewards.examples import data_section, family_share, hold_out, read_examples
from leftover.rewards.pretrained import untrained_classifier
from leftover.rewards.reward_trainer import RewardTrainer, reward_loss
from tests.rewards.reward_rows import planted_rows, write

CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 96,
}
TRAIN = {"num_train_epochs": 6, "learning_rate": 3e-3, "per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer of whole words, with [CLS] and [SEP] as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word for row in planted_rows("label", 200) for word in row["completion"].split()}
    known = {word: i for i, word in enumerate([*special, "What", "is", "in", "room", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, known[name]) for name in ("[CLS]", "[SEP]")],
    )
    folder = tmp_path_factory.mktemp("words")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)


def fitted(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    path = write(folder.parent / f"{folder.name}.jsonl", rows)
    spec = {"type": "fine_tuned", "fit": {"path": path}, "train": TRAIN}
    reward = load_reward(spec | ({} if "model" in settings else {"config": CONFIG}) | settings)
    return reward, reward.fit(folder)


def asked(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    return [row["prompt"] for row in rows], [row["completion"] for row in rows]


def test_each_loss_is_its_formula():
    scores, labels = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    # -log sigmoid(0) = log 2; -log(1 - sigmoid(2)) = log(1 + e^2).
    assert reward_loss("label", scores, labels).item() == pytest.approx((np.log(2) + np.log1p(np.exp(2))) / 2)
    assert reward_loss("score", scores, labels).item() == pytest.approx((1 + 4) / 2)
    # Chosen 1 and 0, rejected 0 and 3: -log sigmoid(1) and -log sigmoid(-3).
    pairs = torch.tensor([1.0, 0.0, 0.0, 3.0], requires_grad=True)
    loss = reward_loss("pairs", pairs, torch.zeros(2))
    assert loss.item() == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 2)
    loss.backward()
    # The gradient in a chosen score is -sigmoid(rejected - chosen) / 2, in the rejected one its opposite.
    slopes = [-1 / (1 + np.exp(1)) / 2, -1 / (1 + np.exp(-3)) / 2]
    assert pairs.grad is not None
    assert pairs.grad.tolist() == pytest.approx([*slopes, *(-slope for slope in slopes)])


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("label", "held_out_auc"), ("score", "held_out_spearman"), ("pairs", "held_out_pair_accuracy")],
)
def test_a_planted_signal_is_found_and_scores_are_the_same_after_loading(kind, metric, tmp_path, word_tokenizer):
    rows = planted_rows(kind, 120)
    reward, facts = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer)
    assert facts["target"] == kind and facts[metric]["low"] > 0.7
    scores = reward(*asked(rows))
    loaded = load_reward({"type": "fine_tuned", "path": str(tmp_path / "reward")})
    identity = loaded.identity()
    assert loaded(*asked(rows)) == scores and loaded.identity() == identity
    if kind == "label":
        assert 0 < min(scores) < 0.5 < max(scores) < 1
    if kind == "score":
        assert 18 < min(scores) < 24 < max(scores) < 34, "predictions are on the scale of the scores"
    files = [file for file in (tmp_path / "reward").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".jsonl", ".safetensors"}


def test_no_signal_is_found_in_shuffled_labels(tmp_path, word_tokenizer):
    rows = planted_rows("label", 120, shuffled=True)
    train = TRAIN | {"num_train_epochs": 2}
    _, facts = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train)
    assert facts["held_out_auc"]["low"] < 0.5 < facts["held_out_auc"]["high"]


def test_the_checkpoint_kept_is_the_one_of_lowest_loss_on_families_that_did_not_train(tmp_path, word_tokenizer):
    train = TRAIN | {"num_train_epochs": 20, "learning_rate": 2e-2, "per_device_train_batch_size": 8}
    rows = planted_rows("label", 60)
    for row in rows[::7]:
        row["reward"] = 1 - row["reward"]  # mistaken labels: what is learnt of them makes others worse
    _, facts = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train, output="logit")
    lines = [json.loads(line) for line in (tmp_path / "reward" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert facts["best_step"] == min(losses, key=lambda step: losses[step]) < facts["steps"]
    assert facts["steps"] < 20 * facts["best_step"], "stopped early"
    data = data_section({"path": str(tmp_path / "reward.jsonl")})
    examples, _ = read_examples(data, tmp_path / "rejected", "auto")
    taught = examples.take(~hold_out(examples, 0.2, 0))
    choosing = taught.take(family_share(taught.families, 0.1, 0, "choosing"))
    assert facts["rows_choosing"] == len(choosing)
    assert min(losses) == -(-(len(taught) - len(choosing)) // 8), "steps of an epoch: those rows do not train"
    reward = load_reward({"type": "fine_tuned", "path": str(tmp_path / "reward")})
    logits = torch.tensor(reward(choosing.prompts, choosing.completions))
    loss = reward_loss("label", logits, torch.from_numpy(choosing.scores).float()).item()
    assert loss == pytest.approx(facts["choosing_loss"], abs=1e-5)


def test_a_killed_fit_continues_and_ends_as_one_that_was_not(tmp_path, word_tokenizer, monkeypatch):
    steps = 0
    original = RewardTrainer.training_step

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 12:  # of 6 a epoch: after the first checkpoint
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    rows, settings = planted_rows("label", 60), {"tokenizer": word_tokenizer, "train": TRAIN | {"num_train_epochs": 3}}
    whole, facts = fitted(tmp_path / "whole", rows, **settings)
    monkeypatch.setattr(RewardTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", rows, **settings)
    continued, again = fitted(tmp_path / "killed", rows, **settings)
    assert steps == 12 + facts["steps"] - 6, "the first six were not taken again"
    assert again == facts
    assert continued(*asked(rows)) == whole(*asked(rows))


def test_completions_alone_are_scored_whatever_the_prompt(tmp_path, word_tokenizer):
    train = TRAIN | {"num_train_epochs": 1}
    rows = planted_rows("label", 40)
    alone, _ = fitted(tmp_path / "one", rows, tokenizer=word_tokenizer, features="completion", train=train)
    assert alone(["What"], ["splendid lamp"]) == alone(["in room"], ["splendid lamp"])
    pair, _ = fitted(tmp_path / "two", rows, tokenizer=word_tokenizer, train=train)
    assert pair(["What"], ["splendid lamp"]) != pair(["in room"], ["splendid lamp"])
    chat = [{"role": "user", "content": "What is"}]
    assert pair([chat], ["splendid lamp"]) == pair(["What is"], ["splendid lamp"])


@pytest.mark.parametrize("features", ["pair", "completion"])
def test_a_decoder_whose_tokenizer_parts_no_texts_is_fitted_and_scores(features, tmp_path, tiny_gpt2_path):
    rows = planted_rows("label", 60)
    train = TRAIN | {"num_train_epochs": 1}
    reward, _ = fitted(tmp_path / "reward", rows, model=tiny_gpt2_path, features=features, train=train)
    again = load_reward({"type": "fine_tuned", "path": str(tmp_path / "reward")})
    scores = reward(*asked(rows))
    assert again(*asked(rows)) == scores and len(set(scores)) > 1
    moved = reward(["What is else"] * len(rows), asked(rows)[1])
    assert (moved == scores) == (features == "completion"), "the prompt counts where it is shown"


def test_it_starts_from_any_classifier_and_is_one_for_the_classifier_reward(tmp_path, word_tokenizer):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    config = BertConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}, vocab_size=32, num_labels=3)
    start = AutoModelForSequenceClassification.from_config(config)
    start.save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(word_tokenizer).save_pretrained(tmp_path / "start")
    rows = planted_rows("label", 40)
    train = TRAIN | {"max_steps": 1, "learning_rate": 0.0}
    reward, _ = fitted(tmp_path / "reward", rows, model=str(tmp_path / "start"), train=train)
    plain = ClassifierReward(model=str(tmp_path / "reward" / "model"))
    assert reward(*asked(rows)) == pytest.approx(plain(*asked(rows)), abs=1e-6)
    learnt = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward" / "model")
    assert learnt.config.num_labels == 1
    assert (learnt.config.attention_probs_dropout_prob, learnt.config.hidden_dropout_prob) == (0, 0.1)
    assert torch.equal(learnt.bert.embeddings.word_embeddings.weight, start.bert.embeddings.word_embeddings.weight)


def test_dropout_of_attention_that_is_asked_for_stays(word_tokenizer):
    asked_for = CONFIG | {"attention_probs_dropout_prob": 0.2}
    configs = [untrained_classifier(None, config, word_tokenizer)[1].config for config in (asked_for, CONFIG)]
    assert [config.attention_probs_dropout_prob for config in configs] == [0.2, 0]


def test_texts_beyond_the_positions_are_cut(tmp_path, word_tokenizer):
    train = TRAIN | {"max_steps": 1}
    rows = [row | {"prompt": row["prompt"] * 40} for row in planted_rows("label", 40)]
    reward, _ = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train, max_length=500)
    assert json.loads((tmp_path / "reward" / "scoring.json").read_text())["max_length"] == 96
    assert len(reward(*asked(rows[:2]))) == 2


@pytest.mark.parametrize("features", ["pair", "completion"])
@pytest.mark.parametrize("words", [5, 90], ids=["short completions", "long completions"])
def test_it_is_trained_on_what_it_reads_when_it_scores(features, words, tmp_path, word_tokenizer):
    # Prompts and completions beyond the length: training kept the beginning of both, scoring the end of the prompt.
    rng = np.random.default_rng(0)
    rows = planted_rows("label", 40)
    known = [word for row in rows for word in row["completion"].split()]
    rows = [
        row | {"prompt": " ".join(rng.choice(known, 60)), "completion": " ".join(rng.choice(known, words))}
        for row in rows
    ]
    train = TRAIN | {"max_steps": 1}
    reward, _ = fitted(
        tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train, max_length=48, features=features
    )
    examples, _ = read_examples(reward.data, None, "auto")
    plan = reward.plan(tmp_path / "reward", examples, *reward.start())
    read = {tuple(text["input_ids"]) for text in reward._classifier.encode(*asked(rows))}
    assert {tuple(texts[0]["input_ids"]) for texts, *_ in (*plan.train, *plan.choosing)} == read
    assert max(map(len, read)) == (48 if words == 90 or features == "pair" else 7)


def test_the_identity_changes_with_the_model_and_the_training(tmp_path, word_tokenizer):
    path = write(tmp_path / "rows.jsonl", planted_rows("label"))
    spec: dict[str, Any] = {"type": "fine_tuned", "fit": {"path": path}, "config": CONFIG, "tokenizer": word_tokenizer}
    first = load_reward(spec).identity()
    assert load_reward(spec).identity() == first
    for other in ({"train": {"learning_rate": 1e-3}}, {"config": CONFIG | {"hidden_size": 64}}, {"max_length": 9}):
        assert load_reward(spec | other).identity() != first


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "exactly one of model .* and config"),
        ({"model": "a", "config": CONFIG}, "exactly one of model .* and config"),
        ({"config": CONFIG}, "config needs `model_type`, and `tokenizer` beside it"),
        ({"config": {"hidden_size": 3}, "tokenizer": "t"}, "config needs `model_type`"),
        ({"model": "a", "features": "both"}, "features: Input should be 'pair' or 'completion'"),
        ({"model": "a", "max_length": 0}, "max_length: Input should be greater than or equal to 1"),
        (
            {"model": "a", "train": {"learning_rat": 1}},
            "train: unknown key 'learning_rat'; did you mean 'learning_rate'",
        ),
        (
            {"model": "a", "train": {"output_dir": "x"}},
            "train: 'output_dir' cannot be set: the run's own folder is used",
        ),
        ({"model": "a", "train": {"load_best_model_at_end": False}}, "cannot be set: the reward needs its own value"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        load_reward({"type": "fine_tuned", "fit": "rows", **settings})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "nowhere"}, "no sequence classifier to start from"),
        ({"config": {"model_type": "bart_"}, "tokenizer": None}, "no sequence classifier to start from"),
        ({"config": CONFIG, "tokenizer": None, "train": {"eval_strategy": "never"}}, "transformers refuses `train`"),
    ],
)
def test_a_model_or_training_that_transformers_refuses_is_named(settings, expected, tmp_path, word_tokenizer):
    if "tokenizer" in settings:
        settings = settings | {"tokenizer": word_tokenizer}
    with pytest.raises(UserError, match=f"fine_tuned reward: {expected}"):
        fitted(tmp_path / "reward", planted_rows("label", 40), **settings)


def test_a_reward_is_fitted_in_bf16_without_a_gpu(tmp_path, word_tokenizer, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    rows, train = planted_rows("label", 40), TRAIN | {"bf16": True}
    _, facts = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train)
    assert facts["rows"] == len(rows)


def test_a_diverging_fit_stops_and_names_step_and_rows(word_tokenizer, tmp_path):
    path = write(tmp_path / "rows.jsonl", planted_rows("score", 120))
    train = TRAIN | {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_nan_inf_filter": True}
    reward = load_reward(
        {"type": "fine_tuned", "fit": {"path": path}, "config": CONFIG, "tokenizer": word_tokenizer, "train": train}
    )
    with pytest.raises(UserError, match=r"stopped at step \d+ .*rows.jsonl:\d+.*learning_rate \(1e\+30\)"):
        reward.fit(tmp_path / "fitted")
    assert not (tmp_path / "fitted/reward.json").exists()


def test_each_epoch_has_an_order_of_its_own_in_which_rows_of_similar_length_meet(tmp_path, word_tokenizer, monkeypatch):
    rows = planted_rows("label", 200)
    for i, row in enumerate(rows):  # from one word to forty
        row["completion"] = " ".join(row["completion"].split() * 8)[: 6 + i]
    widths: list[tuple[int, int]] = []  # padded tokens and tokens of a step
    original = RewardTrainer.compute_loss

    def seen(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            widths.append((inputs["input_ids"].numel(), int(inputs["attention_mask"].sum())))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "compute_loss", seen)
    train = TRAIN | {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    _, facts = fitted(tmp_path / "reward", rows, tokenizer=word_tokenizer, train=train)
    padded, tokens = np.array(widths).sum(0)
    assert tokens < padded < 1.2 * tokens
    epochs = np.array(widths)[:, 1].reshape(2, facts["steps"] // 2)
    assert epochs[0].tolist() != epochs[1].tolist()
