"""What `evaluate` of a trainer in Python measures of pairs, scores and prompts, and how it chooses the checkpoint."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from leftover import LoLConfig, LoLTrainer, PPOConfig, PPOTrainer
from leftover.errors import UserError
from leftover.evaluation.policy import metric_names, pair_metrics
from leftover.models.reference import reference_pass
from leftover.recipe.eval_metrics import higher_is_better, produced_metric
from leftover.recipe.files import make_recipe
from leftover.training.settings import reference_args, training_args
from tests.conftest import scored_rows

PAIRS = [{"prompt": f"Order {i} is late.", "chosen": " We are sorry.", "rejected": f" Go{i}."} for i in range(6)]
SAME = [{"prompt": "Hi.", "chosen": " Hello.", "rejected": " Hello."}]
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def trainer(path: str, folder: Path, rows: Any, held_out: Any = None, **more: Any) -> LoLTrainer:
    """`more` is for the configuration or for the trainer."""
    settings = {name: more.pop(name) for name in more.keys() & LoLConfig.__dataclass_fields__.keys()}
    defaults: dict[str, Any] = {
        "max_steps": 2, "max_completion_length": 64, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return LoLTrainer(path, LoLConfig(output_dir=str(folder), **(defaults | settings)), rows, held_out, **more)


def score(prompts: list, completions: list) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_pair_metrics_are_means_of_implicit_rewards() -> None:
    """Probabilities 1/2 and 1/8 under the policy, 1/4 and 1/8 under the reference; then 1/8, 1/2 and 1/8, 1/8."""
    ln2 = math.log(2)
    first = ({"logp": -ln2, "reference_logprobs": [-ln2, -ln2]}, {"logp": -3 * ln2, "reference_logprobs": [-3 * ln2]})
    other = ({"logp": -3 * ln2, "reference_logprobs": [-3 * ln2]}, {"logp": -ln2, "reference_logprobs": [-3 * ln2]})
    assert pair_metrics([first, other], 0.5) == pytest.approx({
        "logps/chosen": -2 * ln2, "logps/rejected": -2 * ln2,
        "rewards/chosen": (0.5 * ln2 + 0) / 2, "rewards/rejected": (0 + 0.5 * 2 * ln2) / 2,
        "rewards/margins": (0.5 * ln2 - 0.5 * 2 * ln2) / 2, "rewards/accuracies": 0.5,
    })  # fmt: skip
    tie = ({"logp": -1.0, "reference_logprobs": [-1.0]},) * 2
    assert pair_metrics([tie], 1.0)["rewards/accuracies"] == 0.0, "as TRL counts it"
    assert pair_metrics([({"logp": -1.0}, {"logp": -2.0})], 1.0) == {"logps/chosen": -1.0, "logps/rejected": -2.0}


@pytest.mark.parametrize("objective", ["dpo", "kto", "nll"])
def test_evaluate_on_pairs_without_a_reward_function(
    objective: str, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    made = trainer(tiny_llama_path, tmp_path, PAIRS, PAIRS[:2] + SAME + PAIRS[2:], objective=objective)
    made.train()
    found = made.evaluate()
    rows = made.eval_dataset.to_list()
    assert len(rows) == 2 * len(PAIRS)
    logps = np.array([lp.sum() for lp in reference_pass(made.model, tokenizer, rows)[0]]).reshape(-1, 2)
    start = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    before = np.array([lp.sum() for lp in reference_pass(start, tokenizer, rows)[0]]).reshape(-1, 2)
    margins = (1.0 if objective == "nll" else 0.1) * ((logps - before)[:, 0] - (logps - before)[:, 1])
    assert found["eval_rewards/margins"] == pytest.approx(margins.mean(), abs=1e-5)
    assert found["eval_rewards/accuracies"] == found["eval_logratio/pair_accuracy"] == (margins > 0).mean()
    assert found["eval_logps/chosen"] == pytest.approx(logps[:, 0].mean(), abs=1e-5)
    assert found["eval_nll"] > 0 and -1 <= found["eval_logratio/rank_correlation"] <= 1


def test_rows_that_evaluate_gets_are_compared_with_the_reference_while_it_is_known(
    tiny_llama_path: str, tmp_path: Path, caplog: Any
) -> None:
    made = trainer(tiny_llama_path, tmp_path, scored_rows(16), objective="nll")
    assert made.evaluate(PAIRS)["eval_rewards/margins"] == pytest.approx(0, abs=1e-5), "untrained"
    made.train()
    assert "eval_rewards/margins" not in made.evaluate(PAIRS) and "eval_logps/chosen" in made.evaluate(PAIRS)
    assert "pass these rows as eval_dataset" in caplog.text

    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(tiny_llama_path, tmp_path, scored_rows(16), PAIRS, objective="nll", peft_config=adapter)
    made.train()
    prepared, again = made.evaluate(), made.evaluate(PAIRS)
    assert again == pytest.approx(prepared, abs=1e-5) and abs(again["eval_rewards/margins"]) > 1e-3


@pytest.mark.parametrize(
    ("held_out", "settings"),
    [
        (scored_rows(12), {}),
        (PAIRS, {}),
        ([{"prompt": "Hi."}, *scored_rows(2)], {}),
        ([row | {"reward": 1.0} for row in scored_rows(4)], {}),
        ([{"prompt": "Hi."}, {"prompt": "Ho."}], {"reward_funcs": score}),
        ([{"prompt": "Hi."}], {"reward_funcs": score}),
        (PAIRS, {"reward_funcs": score, "eval_decoding": "greedy"}),
    ],
)
def test_what_an_evaluation_gives_is_known_before(
    held_out: Any, settings: dict, tiny_llama_path: str, tmp_path: Path
) -> None:
    made = trainer(tiny_llama_path, tmp_path, scored_rows(16), held_out, objective="nll", **settings)
    made.train()
    given = {name.removeprefix("eval_") for name, value in made.evaluate().items() if not math.isnan(value)}
    assert given - {"epoch"} == set(metric_names(made.eval_dataset, made.reward_func, made.args))


def test_several_evaluation_sets_have_names(tiny_llama_path: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Hi.", "completion": " Hello."}\n')
    sets = {"scored": scored_rows(8), "pairs": PAIRS, "file": path}
    made = trainer(
        tiny_llama_path, tmp_path, scored_rows(16), sets, objective="nll", load_best_model_at_end=True,
        metric_for_best_model="eval_pairs_nll", **EVERY_STEP,
    )  # fmt: skip
    made.train()
    found = made.evaluate()
    assert {"eval_scored_nll", "eval_pairs_rewards/margins", "eval_file_perplexity"} <= found.keys()
    assert made.evaluate("pairs")["eval_nll"] == made.evaluate()["eval_pairs_nll"]
    values = [entry["eval_pairs_nll"] for entry in made.state.log_history if "eval_pairs_nll" in entry]
    assert made.state.best_metric == min(values), "the lower, the better"


@pytest.mark.parametrize(
    ("asked", "chosen_by", "best"),
    [
        (None, "eval_logratio/rank_correlation", max),
        ("eval_nll", "eval_nll", min),
        ("rank_correlation", "eval_logratio/rank_correlation", max),
        ("perplexity", "eval_perplexity", min),
    ],
)
def test_the_checkpoint_is_chosen_without_a_reward_function(
    asked: str | None, chosen_by: str, best: Any, tiny_llama_path: str, tmp_path: Path
) -> None:
    made = trainer(
        tiny_llama_path, tmp_path, scored_rows(24), scored_rows(8, seed=1), max_steps=3, learning_rate=0.1,
        objective="nll", load_best_model_at_end=True, metric_for_best_model=asked, **EVERY_STEP,
    )  # fmt: skip
    made.train()
    values = [entry[chosen_by] for entry in made.state.log_history if chosen_by in entry]
    assert len(values) == 3 and made.state.best_metric == best(values)
    assert made.evaluate()[chosen_by] == pytest.approx(best(values), abs=1e-5), "its weights are the model's"


@pytest.mark.parametrize(
    ("metric", "held_out", "told"),
    [
        ("eval_loss", scored_rows(8), "eval_nll, eval_perplexity, eval_logratio/rank_correlation"),
        ("reward/mean", scored_rows(8), "gives no 'reward/mean'"),
        ("rank_correlation", [row | {"reward": 1.0} for row in scored_rows(8)], "it gives eval_nll, eval_perplexity"),
        ("nll", [{"prompt": "Hi."}], "it gives none"),
        ("nl", {"one": PAIRS}, "eval_one_nll"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_before_the_reference_reads_a_row(
    metric: str, held_out: Any, told: str, tiny_llama_path: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("leftover.training.trainer.prepare_rows", lambda *_: pytest.fail("training rows were read"))
    with pytest.raises(UserError) as refused:
        trainer(tiny_llama_path, tmp_path, scored_rows(8), held_out, metric_for_best_model=metric, **EVERY_STEP)
    assert str(refused.value).startswith("metric_for_best_model") and told in str(refused.value)


def test_the_online_trainer_is_asked_for_what_it_measures(tiny_llama_path: str, tmp_path: Path) -> None:
    args = PPOConfig(output_dir=str(tmp_path), max_completion_length=8, metric_for_best_model="eval_loss", **EVERY_STEP)
    with pytest.raises(UserError, match="eval_reward/mean"):
        PPOTrainer(tiny_llama_path, args, PAIRS, PAIRS, score)


def test_evaluations_need_rows(tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass eval_dataset"):
        trainer(tiny_llama_path, tmp_path, scored_rows(8), **EVERY_STEP)


def test_short_names_and_the_better_side() -> None:
    names = ["nll", "rewards/chosen", "logps/chosen", "logratio/rank_correlation", "kl"]
    assert produced_metric("eval_rank_correlation", names) == "logratio/rank_correlation"
    with pytest.raises(UserError, match="'chosen'"):
        produced_metric("chosen", names)  # two have it
    better = {name: higher_is_better(name) for name in ("eval_nll", "eval_mine_nll", "kl", "margins", "mine", "loss")}
    assert better == {
        "eval_nll": False, "eval_mine_nll": False, "kl": False, "margins": True, "mine": None, "loss": None,
    }  # fmt: skip


def test_a_recipe_that_names_a_metric_chooses_by_its_better_side(tiny_recipe: Any, tmp_path: Path) -> None:
    from leftover.runs.claim import open_run

    recipe = tiny_recipe(tmp_path)
    recipe["train"]["metric_for_best_model"] = "nll"
    args = training_args(open_run(make_recipe(recipe)), "a_lol_seq", 0)
    assert (args.metric_for_best_model, args.greater_is_better) == ("nll", False)
    assert reference_args(make_recipe(recipe), tmp_path).greater_is_better is False
    recipe["train"]["metric_for_best_model"] = "loss"
    with pytest.raises(UserError, match=r"'train\.metric_for_best_model': .*eval_nll"):
        make_recipe(recipe)
    with pytest.raises(UserError, match=r"'train\.labels'.* data\.labels"):
        make_recipe(recipe | {"train": {"labels": {"good": 1}}})


def test_rows_of_tokens_train_and_are_evaluated_as_their_texts(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Ready tokens get the constants that texts get."""
    texts = [row | {"reward": abs(row["reward"])} for row in scored_rows(16)]
    by_text = trainer(tiny_llama_path, tmp_path, texts, texts[:6], objective="r_lol")
    prepared = [(row["prompt_ids"], row["completion_ids"]) for row in by_text.train_dataset]
    tokens = [
        {"input_ids": p + c, "labels": [-100] * len(p) + c, "reward": row["reward"]}
        for row, (p, c) in zip(texts, prepared, strict=True)
    ]
    by_token = trainer(tiny_llama_path, tmp_path, tokens, tokens[:6], objective="r_lol", processing_class=tokenizer)
    for name in ("completion_ids", "reward", "reference_logprobs"):
        assert by_token.train_dataset[name][:] == by_text.train_dataset[name][:], name
    for made in (by_text, by_token):
        made.train()
    assert by_token.evaluate() == by_text.evaluate()
    ours, theirs = (torch.cat([p.flatten() for p in made.model.parameters()]) for made in (by_token, by_text))
    assert torch.equal(ours, theirs)
