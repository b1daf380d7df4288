"""The trainer against a plain loop, under every split of a batch, and for raw rows without a recipe."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from leftover import LoLConfig, LoLTrainer
from leftover.data.collate import Collator
from leftover.demo.grammar import score_answers
from leftover.errors import UserError
from leftover.models.logprobs import completion_logprobs
from leftover.models.reference import reference_pass
from leftover.objectives import OBJECTIVES
from leftover.training import trainer as trainer_module
from leftover.training.draws import draw_batches
from tests.conftest import scored_rows

ROWS = 24


def prepared_rows(path: str, tokenizer: Any) -> datasets.Dataset:
    """Rows with every constant, lengths uneven; half of them left over."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt_ids": rng.integers(3, 200, rng.integers(2, 20)).tolist(),
            "completion_ids": [*rng.integers(3, 200, rng.integers(1, 15)).tolist(), 2],
        }
        for _ in range(ROWS)
    ]
    logprobs, _ = reference_pass(AutoModelForCausalLM.from_pretrained(path), tokenizer, rows)
    reward = rng.uniform(0, 1, ROWS)
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [row["prompt_ids"] for row in rows],
            "completion_ids": [row["completion_ids"] for row in rows],
            "reference_logprobs": logprobs,
            "group": list(range(ROWS)),
            "reward": reward,
            "value": np.full(ROWS, 0.5),
            "advantage": reward - 0.5,
        }
    )


def train(path: str, tokenizer: Any, dataset: Any, folder: Path, **settings: Any) -> LoLTrainer:
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = LoLConfig(output_dir=str(folder), **(defaults | settings))
    trainer = LoLTrainer(AutoModelForCausalLM.from_pretrained(path), args, dataset, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


def oracle(path: str, tokenizer: Any, rows: Any, objective: str, steps: int, order: Any) -> Any:
    """The whole method in plain PyTorch: AdamW on the mean loss of each drawn batch, gradients clipped at 1."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    epsilon = 0.9
    for step in range(steps):
        losses = []
        for i in order.batch(step):
            row = rows[int(i)]
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            start = len(row["prompt_ids"])
            logits = model(ids).logits[0, start - 1 : -1]
            lp = logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1)
            lq = torch.tensor(row["reference_logprobs"])
            advantage = max(row["advantage"], 0.0)
            if objective == "nll":
                losses.append(-lp.sum())
            elif objective == "a_lol":
                weight = (lp.sum() - lq.sum()).exp().clamp(1 - epsilon, 1 + epsilon).detach()
                losses.append(-advantage * weight * lp.sum())
            else:
                weight = (lp - lq).exp().clamp(1 - epsilon, 1 + epsilon).detach()
                losses.append(-advantage * (weight * lp).sum())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("objective", ["nll", "a_lol", "a_lol_seq"])
@pytest.mark.parametrize("model", ["tiny_llama_path", "tiny_gpt2_path"])
def test_trainer_equals_a_plain_loop_after_8_steps(
    objective: str, model: str, request: Any, tokenizer: Any, tmp_path: Path
) -> None:
    path = request.getfixturevalue(model)
    rows = prepared_rows(path, tokenizer)
    trainer = train(path, tokenizer, rows, tmp_path, objective=objective)
    expected = oracle(path, tokenizer, rows, objective, 8, trainer.draw_order)
    before = parameters(AutoModelForCausalLM.from_pretrained(path))
    assert (parameters(trainer.model) - before).abs().max() > 1e-2
    torch.testing.assert_close(parameters(trainer.model), parameters(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},  # uneven: the last holds 2
    ],
)
def test_gradient_is_the_same_under_any_split_into_micro_batches(
    split: dict, tiny_llama_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from leftover.training import trainer as module
    from leftover.training.draws import DrawOrder

    rows = prepared_rows(tiny_llama_path, tokenizer)
    indices = np.arange(8)
    size = split["per_device_train_batch_size"]
    offsets = np.unique([*range(0, 8, size), 8])
    monkeypatch.setattr(module, "run_order", lambda *_: (DrawOrder(indices, offsets), 1))
    trainer = train(tiny_llama_path, tokenizer, rows, tmp_path, max_steps=1, optim="sgd", max_grad_norm=0, **split)
    step = (parameters(AutoModelForCausalLM.from_pretrained(tiny_llama_path)) - parameters(trainer.model)) / 1e-2

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    batch = Collator(0)([rows[i] for i in range(8)])
    loss = OBJECTIVES["a_lol_seq"].loss(
        trainer.completion_batch(completion_logprobs(model, batch), batch), trainer.settings
    )
    loss.mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(step, expected, atol=2e-5, rtol=1e-3)


def test_on_a_cpu_a_large_batch_passes_in_parts_of_the_same_gradient(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    whole = train(tiny_llama_path, tokenizer, rows, tmp_path / "a", max_steps=3, learning_rate=1e-4)
    monkeypatch.setattr(trainer_module, "_PART_BYTES", 0)  # a row at a time
    passes, forward = [], LlamaForCausalLM.forward
    monkeypatch.setattr(
        LlamaForCausalLM, "forward", lambda self, *a, **k: passes.append(len(k["input_ids"])) or forward(self, *a, **k)
    )
    parted = train(tiny_llama_path, tokenizer, rows, tmp_path / "b", max_steps=3, learning_rate=1e-4)
    assert passes.count(1) >= 12, "four rows in each of three steps"
    torch.testing.assert_close(parameters(parted.model), parameters(whole.model), atol=1e-5, rtol=1e-4)
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, parted)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_part_holds_no_more_than_a_pass_may(tmp_path: Path) -> None:
    """30 layers of 576: 16 numbers of 4 bytes a token, layer and hidden unit; 728 tokens are 3/4 GiB."""
    args = LoLConfig(output_dir=str(tmp_path), objective="nll", use_cpu=True)
    assert [trainer_module.part_size(args, 8, tokens, 30, 576) for tokens in (91, 92, 256, 1000)] == [8, 4, 2, 1]
    pairs = LoLConfig(output_dir=str(tmp_path), objective="dpo", use_cpu=True)
    assert trainer_module.part_size(pairs, 8, 1000, 30, 576) == 8, "groups are not parted"


def test_batches_by_token_budget_divide_by_the_units_that_a_step_holds_on_average(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    trainer = train(
        tiny_llama_path, tokenizer, rows, tmp_path, max_tokens_per_batch=60, gradient_accumulation_steps=2, max_steps=4
    )
    order = trainer.draw_order
    lengths = np.array([len(r["prompt_ids"]) + len(r["completion_ids"]) for r in rows])
    sizes = np.diff(order.offsets)
    assert order.num_batches == 8 and len(set(sizes)) > 1
    assert all(len(order.batch(i)) * lengths[order.batch(i)].max() <= 60 or sizes[i] == 1 for i in range(8))
    batches = [{"group": torch.arange(size)} for size in sizes[:2]]
    assert float(trainer._get_num_items_in_batch(batches, torch.device("cpu"))) == 2 * sizes.mean()


@pytest.mark.parametrize("model", ["tiny_llama_path", "tiny_gpt2_path"])
def test_logprobs_do_not_depend_on_padding(model: str, request: Any, tokenizer: Any) -> None:
    """Defect 1 and the missing position_ids: a row scores the same alone and beside longer rows."""
    path = request.getfixturevalue(model)
    policy = AutoModelForCausalLM.from_pretrained(path).eval()
    rows = [
        {"prompt_ids": [5, 6], "completion_ids": [7, 2]},
        {"prompt_ids": list(range(3, 40)), "completion_ids": list(range(50, 80))},
    ]
    together = completion_logprobs(policy, Collator(0)(rows))
    for i, row in enumerate(rows):
        alone = completion_logprobs(policy, Collator(0)([row]))[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=0)
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        plain = policy(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        torch.testing.assert_close(alone, plain[len(row["prompt_ids"]) - 1 :], atol=1e-5, rtol=0)


def test_dropout_is_off_so_that_importance_weights_are_one_at_step_0(
    tiny_gpt2_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    """Defect 7: GPT-2 has dropout 0.1 in residuals, embeddings and attention."""
    rows = prepared_rows(tiny_gpt2_path, tokenizer)
    trainer = train(tiny_gpt2_path, tokenizer, rows, tmp_path, max_steps=1, logging_steps=1)
    first = next(e for e in trainer.state.log_history if "importance_weight/mean" in e)
    assert first["importance_weight/min"] == pytest.approx(1, abs=1e-4)
    assert first["importance_weight/max"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="step 0"):
        train(tiny_gpt2_path, tokenizer, rows, tmp_path, max_steps=1, disable_dropout=False)


def test_reference_logprobs_of_another_model_stop_the_run(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    wrong = [(np.array(lp) - 0.5).tolist() for lp in rows["reference_logprobs"]]
    rows = rows.remove_columns("reference_logprobs").add_column("reference_logprobs", wrong)
    with pytest.raises(UserError, match="max_initial_logratio"):
        train(tiny_llama_path, tokenizer, rows, tmp_path)


def test_draw_order_follows_the_seed_and_the_batch_size(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    """Defect 3: the released sampling ignores both."""
    rows = prepared_rows(tiny_llama_path, tokenizer)

    def order(**settings: Any) -> Any:
        args = LoLConfig(output_dir=str(tmp_path), max_steps=3, **settings)
        model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
        return LoLTrainer(model, args, rows, processing_class=tokenizer).draw_order

    one, again, other = (order(per_device_train_batch_size=6, seed=s) for s in (1, 1, 2))
    assert (one.indices == again.indices).all() and (one.indices != other.indices).any()
    assert set(np.diff(one.offsets)) == {6}
    assert set(one.indices) <= set(np.flatnonzero(np.array(rows["advantage"]) > 0))


def test_an_epoch_of_leftover_rows_has_fewer_steps_than_one_of_all(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    num_leftover = int((np.array(rows["advantage"]) > 0).sum())
    settings = {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 2, "length_bucketing": False}
    assert train(tiny_llama_path, tokenizer, rows, tmp_path, **settings).state.global_step == -(-num_leftover // 2)
    nll = train(tiny_llama_path, tokenizer, rows, tmp_path, objective="nll", **settings)
    assert nll.state.global_step == ROWS // 2
    assert sorted(nll.draw_order.indices) == list(range(ROWS))


def test_logged_metrics_have_the_fields_names(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    trainer = train(tiny_llama_path, tokenizer, rows, tmp_path, logging_steps=1, max_steps=2)
    entry = trainer.state.log_history[0]
    for name in (
        "reward/mean", "advantage/mean", "advantage/frac_positive", "logratio/mean", "logps/policy", "num_tokens",
        "importance_weight/mean", "importance_weight/min", "importance_weight/max", "importance_weight/clipped_frac",
    ):  # fmt: skip
        assert name in entry, name
    drawn = trainer.draw_order.batch(0)
    assert entry["reward/mean"] == pytest.approx(np.array(rows["reward"])[drawn].mean(), abs=1e-6)
    assert entry["advantage/frac_positive"] == 1.0


def test_priority_unweighted_draws_by_advantage_and_drops_the_factor(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = prepared_rows(tiny_llama_path, tokenizer)
    trainer = train(tiny_llama_path, tokenizer, rows, tmp_path, draw="priority_unweighted", max_steps=1)
    batch = Collator(0)([rows[0], rows[1]])
    assert trainer.completion_batch(torch.zeros(batch["completion_ids"].shape), batch).advantage.tolist() == [1, 1]
    weights = np.clip(rows["advantage"], 0, None)
    expected = draw_batches(weights, 4, batch_size=4, lengths=np.ones(ROWS), seed=42)
    assert sorted(trainer.draw_order.indices) == sorted(expected.indices)


def test_raw_rows_without_prompts_of_several_completions_are_refused(tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'dpo' .*20 training rows.* give several completions"):
        standalone(tiny_llama_path, tmp_path, scored_rows(20), objective="dpo")


def test_raw_rows_without_a_function_that_scores_samples_are_refused(tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'qrpo' .*pass reward_funcs"):
        standalone(tiny_llama_path, tmp_path, scored_rows(20), objective="qrpo")


def test_evaluate_generates_and_returns_the_reward(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = scored_rows(30)
    args = LoLConfig(output_dir=str(tmp_path), max_steps=1, max_completion_length=60, disable_tqdm=True)
    trainer = LoLTrainer(
        tiny_llama_path, args, rows, [{"prompt": r["prompt"]} for r in rows[:5]],
        reward_funcs=[lambda prompts, completions: [1.0] * len(completions), lambda p, c: [0.5] * len(c)],
        processing_class=tokenizer,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics["eval_reward/mean"] == 1.5
    assert 1 <= metrics["eval_completions/mean_length"] <= 60


def test_peft_config_trains_an_adapter_and_saves_no_base(tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    args = LoLConfig(output_dir=str(tmp_path), max_steps=2, save_steps=1, learning_rate=1e-2, disable_tqdm=True)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = LoLTrainer(tiny_llama_path, args, scored_rows(30), processing_class=tokenizer, peft_config=config)
    trainer.train()
    saved = tmp_path / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "a_lol_sec"}, "did you mean 'a_lol_seq'"),
        ({"rows": "worst"}, "rows: 'worst'"),
        ({"objective": "nll", "objective_settings": {"clip": 1}}, "no setting 'clip'"),
    ],
)
def test_wrong_settings_are_named(
    settings: dict, message: str, tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_llama_path, tokenizer, prepared_rows(tiny_llama_path, tokenizer), tmp_path, **settings)


def test_config_serialises_for_trackers(tmp_path: Path) -> None:
    assert json.loads(LoLConfig(output_dir=str(tmp_path)).to_json_string())["objective"] == "a_lol_seq"


def standalone(model: str, tmp_path: Path, rows: Any, **more: Any) -> LoLTrainer:
    """A trainer of raw rows; `more` is for its configuration or for itself."""
    settings = {name: more.pop(name) for name in more.keys() & LoLConfig.__dataclass_fields__.keys()}
    defaults: dict[str, Any] = {"max_steps": 1, "max_completion_length": 64, "use_cpu": True}
    return LoLTrainer(model, LoLConfig(output_dir=str(tmp_path / "run"), **(defaults | settings)), rows, **more)


def test_value_and_reward_are_on_one_scale_whatever_the_functions_give(
    tiny_llama_path: str, tmp_path: Path, caplog: Any
) -> None:
    """Recorded rewards and a function of another scale: V must not come from the function then."""
    rows = scored_rows(40)
    trainer = standalone(
        tiny_llama_path, tmp_path, rows, reward_funcs=lambda prompts, completions: [1e6] * len(prompts)
    )
    assert "value_targets: recorded" in caplog.text
    assert max(trainer.train_dataset["value"]) < 100
    caplog.clear()
    trainer = standalone(tiny_llama_path, tmp_path, rows, reward_funcs=score_answers)
    assert "value_targets" not in caplog.text


@pytest.mark.parametrize(
    "function",
    [
        lambda completions, prompts: [len(c) for c in completions],
        lambda p, c: [len(text) for text in c],
        lambda completions, **rest: [len(c) for c in completions],
    ],
    ids=["by name", "in order", "any keyword"],
)
def test_reward_functions_get_prompts_and_completions_by_name_or_in_order(
    function: Any, tiny_llama_path: str, tmp_path: Path
) -> None:
    rows = [{k: row[k] for k in ("prompt", "completion")} for row in scored_rows(20)]
    trainer = standalone(tiny_llama_path, tmp_path, rows, reward_funcs=function, objective="nll")
    expected = {row["prompt"]: len(row["completion"]) for row in rows}
    prepared = trainer.train_dataset
    assert [expected[prompt] for prompt in prepared["prompt"]] == list(prepared["reward"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 scores for"),
        (None, "must return one number"),
        ("many", "must return one number"),
        (float("nan"), "gave nan for the completion"),
    ],
)
def test_what_a_reward_function_returns_is_checked(
    returned: Any, message: str, tiny_llama_path: str, tmp_path: Path
) -> None:
    def judge(prompts: list, completions: list) -> Any:
        return [returned] * len(completions) if isinstance(returned, float) else returned

    for rows in (scored_rows(20), [{k: r[k] for k in ("prompt", "completion")} for r in scored_rows(20)]):
        with pytest.raises(UserError, match=message):
            standalone(tiny_llama_path, tmp_path, rows, reward_funcs=judge)


def test_rows_without_a_reward_among_others_are_said(tiny_llama_path: str, tmp_path: Path, caplog: Any) -> None:
    rows = scored_rows(40)
    for row in rows[:10]:
        row["reward"] = None
    standalone(tiny_llama_path, tmp_path, rows)
    assert "10 of 40 rows have no reward" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_dataset holds no row"),
        ("rows.csv", r"train_dataset: no data file at 'rows\.csv'"),
        (7, r"train_dataset is a int.*datasets\.Dataset"),
        (["a text"], "train_dataset is a list of str"),
        ({"train": [], "test": []}, "dictionary of train, test: choose one split"),
    ],
)
def test_what_is_no_data_set_is_named(rows: Any, message: str, tiny_llama_path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        standalone(tiny_llama_path, tmp_path, rows)


RECIPE_KEY = re.compile(r"\b(data|model|value|reward|reference|evaluate|train)\.[a-z_]+|recipe|leftover [a-z]")
USER, CHATML = {"role": "user", "content": "Hi."}, "{% for m in messages %}{{ m.content }}<eot>{% endfor %}"
ONE_PROMPT = [{"prompt": "Hi.", "completion": f" {i}.", "reward": i} for i in range(4)]
CHAT = [{"prompt": [USER], "completion": "Hello."}]


@pytest.mark.parametrize(
    ("rows", "settings", "remedies"),
    [
        ([{"question": "Hi.", "completion": " Hello."}], {}, ["no column 'prompt'", "rename_column"]),
        ([{"prompt": "Hi.", "answer": " Hello."}], {}, ["no column 'completion'", "rename_column"]),
        ([{"prompt": "Hi.", "completion": 3}], {}, ["'completion'", "Fix or drop"]),
        ([{"prompt": "Hi.", "completion": " A.", "reward": "good"}], {}, ["'reward'", "give classes numbers"]),
        ([{"prompt": "Hi.", "chosen": " A.", "rejected": " A."}], {}, ["train_dataset holds no row", "1 whose chosen"]),
        (datasets.Dataset.from_dict({"prompt": [], "completion": []}), {}, ["train_dataset holds no row"]),
        (ONE_PROMPT, {"max_completion_length": 1}, ["max_completion_length=1 ", "raise"]),
        (ONE_PROMPT, {"value_targets": "recorded"}, ["value_targets", "group_loo"]),
        (scored_rows(8), {"value_targets": "group_loo"}, ["value_targets", "several scored completions"]),
        (ONE_PROMPT[:1] * 2, {"value_targets": "group_loo"}, ["no training row has a positive advantage"]),
        ([row | {"reward": -1.0} for row in ONE_PROMPT], {"objective": "wbc"}, ["'wbc' needs rewards >= 0", "shift"]),
        (ONE_PROMPT, {"end_tokens": ["<stop>"]}, ["end_tokens: '<stop>'"]),
        (CHAT, {}, ["set the tokenizer's chat_template", "processing_class"]),
        (CHAT, {"template": CHATML, "chat_template_kwargs": {"x": 1}}, ["chat_template_kwargs: .* no option 'x'"]),
        (
            CHAT,
            {"template": "{{ raise_exception('No.') }}"},
            ["No.; fix its turns, or set the tokenizer's chat_template"],
        ),
        (CHAT, {"template": "{% for %}"}, ["the tokenizer's chat_template is not valid Jinja"]),
        (
            CHAT,
            {"template": CHATML.replace("m.content", "m.content[:1]")},
            ["take out .* the tokenizer's chat_template"],
        ),
        ([row | {"reward": None} for row in ONE_PROMPT], {"reward_funcs": lambda p, c: [None] * 4}, ["needs a score"]),
    ],
)
def test_remedies_are_those_of_python_where_there_is_no_recipe(
    rows: Any, settings: dict, remedies: list[str], tiny_llama_path: str, tmp_path: Path
) -> None:
    own = AutoTokenizer.from_pretrained(tiny_llama_path)
    own.chat_template = settings.pop("template", None)
    with pytest.raises(UserError) as error:
        standalone(tiny_llama_path, tmp_path, rows, processing_class=own, **settings)
    assert all(re.search(remedy, str(error.value)) for remedy in remedies), error.value
    assert not RECIPE_KEY.search(str(error.value)), error.value


def test_warnings_about_a_chat_template_name_fields_of_the_configuration(
    tiny_llama_path: str, tmp_path: Path, caplog: Any
) -> None:
    own = AutoTokenizer.from_pretrained(tiny_llama_path)
    opened = CHATML.replace("{{", "{{ 'So: ' if m.role == 'assistant' }}{{ strftime_now('%d') if loop.first }}{{")
    own.chat_template = opened
    standalone(tiny_llama_path, tmp_path, [CHAT[0] | {"tools": [{"name": "x"}]}], objective="nll", processing_class=own)
    told = "\n".join(caplog.messages)
    assert "set the tokenizer's chat_template" in told and "today's date" in told
    assert "set that in chat_template_kwargs" in told and not RECIPE_KEY.search(told)


def test_a_model_without_a_tokenizer_needs_a_processing_class(tiny_llama_path: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama_path).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"no tokenizer at .*pass one as processing_class"):
        standalone(str(tmp_path / "model"), tmp_path, scored_rows(4))


def test_a_column_that_names_splits_does_not_matter_without_a_recipe(tiny_llama_path: str, tmp_path: Path) -> None:
    rows = [row | {"split": "autumn"} for row in ONE_PROMPT]
    assert len(standalone(tiny_llama_path, tmp_path, rows, objective="nll").train_dataset) == 4


def test_evaluate_on_recorded_rewards_tells_the_log_ratio(tiny_llama_path: str, tmp_path: Path) -> None:
    rows = scored_rows(40)
    trainer = standalone(tiny_llama_path, tmp_path, rows[:30], eval_dataset=rows[30:])
    trainer.train()
    assert -1 <= trainer.evaluate()["eval_logratio/rank_correlation"] <= 1
    assert "eval_nll" in trainer.evaluate(rows[:5]), "raw rows are prepared here too"
    trainer.eval_dataset = None
    with pytest.raises(UserError, match="pass eval_dataset"):
        trainer.evaluate()


_FAULTS = """
import resource, leftover, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_on_a_cpu_lie_on_huge_pages() -> None:
    """64 MiB are 16,384 pages of memory, and 32 huge ones."""
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not huge.is_file() or "[never]" in huge.read_text():
        pytest.skip("this system has none")
    usual = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}  # set by `leftover`

    def faults(**wish: str) -> int:
        command = [sys.executable, "-c", _FAULTS]
        return int(subprocess.run(command, env=usual | wish, capture_output=True, check=True).stdout)

    assert faults() < 4_000
    assert faults(THP_MEM_ALLOC_ENABLE="0") > 10_000, "the user's own choice is left"


_GROWTH = """
from pathlib import Path

import leftover
import torch

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) // 256

weight = torch.zeros(1536, 576, dtype=torch.bfloat16)
before = held()
for rows in range(64, 464):
    torch.nn.functional.linear(torch.zeros(rows, 576, dtype=torch.bfloat16), weight)
print(held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_products_of_many_shapes_keep_no_buffers() -> None:
    """Rows have many lengths: oneDNN would keep a buffer for each of 400 shapes, .2 GB."""
    names = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}  # set by `leftover`
    usual = {name: value for name, value in os.environ.items() if name not in names}

    def mebibytes(**wish: str) -> int:
        command = [sys.executable, "-c", _GROWTH]
        return int(subprocess.run(command, env=usual | wish, capture_output=True, check=True).stdout)

    large = mebibytes(**dict.fromkeys(names, "1024"))
    if large < 60:
        pytest.skip("this processor multiplies bf16 without such buffers")
    assert mebibytes() < large / 2


def weights_of_rows(path: str, tokenizer: Any, rows: datasets.Dataset, folder: Path, monkeypatch: Any, **settings: Any):
    """How much each row's (or group's) loss weighs in the gradient, summed over a run: [ids]."""
    total: Counter = Counter()

    def loss(batch: Any, _: Any) -> torch.Tensor:
        ids = batch.group.unique() if settings.get("objective") == "dpo" else batch.group
        losses = torch.zeros(len(ids), requires_grad=True) + 0.0 * batch.logprobs.sum()

        def add(weights: torch.Tensor) -> None:
            for i, weight in zip(ids.tolist(), weights.tolist(), strict=True):
                total[i] += weight

        losses.register_hook(add)
        return losses

    name = settings.get("objective", "nll")
    monkeypatch.setitem(OBJECTIVES, name, replace(OBJECTIVES[name], loss=loss, metrics=None))
    trainer = train(path, tokenizer, rows, folder, **({"objective": name, "max_initial_logratio": 1e9} | settings))
    return total, trainer


def rows_of_two_lengths(per_length: int = 60, copies: int = 1) -> datasets.Dataset:
    """Even groups have 4 tokens a row, odd ones 40."""
    groups = np.repeat(np.arange(2 * per_length), copies)
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [[5, 6]] * len(groups),
            "completion_ids": [[7] * (38 if group % 2 else 2) for group in groups],
            "reference_logprobs": [[-1.0] * (38 if group % 2 else 2) for group in groups],
            "group": groups,
            "reward": np.tile(np.arange(copies) / copies, 2 * per_length),
        }
    )


def test_rows_of_whole_groups_weigh_alike_whatever_their_number(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    rows = rows_of_two_lengths(8, 4).filter(lambda row, i: row["group"] % 2 == 0 or i % 4 == 0, with_indices=True)
    settings = {"whole_groups": True, "max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1}
    weights, trainer = weights_of_rows(tiny_llama_path, tokenizer, rows, tmp_path, monkeypatch, **settings)
    mean = len(rows) / trainer.draw_order.num_batches
    assert [weights[i] for i in range(16)] == pytest.approx([4 / mean, 1 / mean] * 8)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("objective", "copies", "whole"), [("nll", 1, False), ("nll", 2, True), ("dpo", 2, False)])
def test_under_a_token_budget_every_row_weighs_alike_whatever_its_length(
    objective: str,
    copies: int,
    whole: bool,
    accumulation: int,
    tiny_llama_path: str,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    # Three epochs without the last step, a partial one; each draw weighs 1 over the mean number of rows in a step.
    settings = {"objective": objective, "whole_groups": whole, "max_steps": -1, "num_train_epochs": 3}
    settings |= {"max_tokens_per_batch": 160 * copies, "gradient_accumulation_steps": accumulation}
    rows = rows_of_two_lengths(30, copies)
    weights, trainer = weights_of_rows(tiny_llama_path, tokenizer, rows, tmp_path, monkeypatch, **settings)
    order = trainer.draw_order
    assert len(set(np.diff(order.offsets))) > 1 and order.num_batches % accumulation == 0
    most = 3 * (copies if whole else 1)  # draws of a row (dpo: a group)
    draws = np.array(list(weights.values())) * trainer.expected_units
    assert len(weights) == 60
    assert draws == pytest.approx(draws.round(), abs=1e-4) and draws.max() == pytest.approx(most)
    assert draws.sum() == pytest.approx(len(order.indices) / (copies if objective == "dpo" else 1))
    assert draws.sum() > (0.999 if accumulation == 1 else 0.9) * 60 * most


def test_a_resumed_run_under_a_token_budget_weighs_rows_as_a_whole_one(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "max_tokens_per_batch": 160, "save_strategy": "steps", "save_steps": 3}
    options = (tiny_llama_path, tokenizer, rows_of_two_lengths(30), tmp_path, monkeypatch)
    whole, trainer = weights_of_rows(*options, **settings)
    resumed, _ = weights_of_rows(*options, **settings, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    order = trainer.draw_order
    later = Counter(order.indices[order.offsets[3] :].tolist())
    each = 6 / len(order.indices)
    assert resumed == pytest.approx({row: count * each for row, count in later.items()})
    assert whole == pytest.approx({row: count * each for row, count in Counter(order.indices.tolist()).items()})


def test_the_normaliser_of_var_under_a_token_budget_is_that_of_the_run(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    # Alone in its step, a row's weight exp(R) / Z would be 1 whatever its reward.
    args = LoLConfig(
        output_dir=str(tmp_path), objective="var", max_steps=20, max_tokens_per_batch=50, disable_tqdm=True
    )
    rows = rows_of_two_lengths(30, copies=2)
    trainer = LoLTrainer(AutoModelForCausalLM.from_pretrained(tiny_llama_path), args, rows, processing_class=tokenizer)
    inputs = trainer.data_collator([rows[3]])
    batch = trainer.completion_batch(completion_logprobs(trainer.model, inputs), inputs)
    drawn = np.array(rows["reward"])[trainer.draw_order.indices]
    found = trainer.with_extras(trainer.model, inputs, batch).extras["log_normaliser"]
    assert float(found) == pytest.approx(np.log(np.exp(drawn).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"columns": {"prompt": "q"}},
            r"LoLTrainer has no argument 'columns': it belongs in args, LoLConfig\(columns=",
        ),
        ({"callback": None}, "no argument 'callback'; did you mean 'callbacks'"),
        ({"nonsense": 3}, "no argument 'nonsense'$"),
    ],
)
def test_an_unknown_argument_is_refused_before_anything_is_loaded(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        LoLTrainer("no/model", train_dataset=[], **given)
