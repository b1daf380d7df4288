"""The dry run: no network, no run folder, the counts of a real run, and bytes of real tensors."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.models import training_flops
from leftover import cli
from leftover.commands.dry_run import memory, rows, sources
from leftover.commands.dry_run.estimate import Estimate, estimate_run
from leftover.commands.dry_run.published_sizes import CONFIGS
from leftover.commands.dry_run.rows import Lengths
from leftover.commands.dry_run.shape import Shape, find_config, measure
from leftover.commands.dry_run.show import dry_run, show
from leftover.commands.dry_run.trace import Traced, skeleton
from leftover.commands.dry_run.work import Amount
from leftover.errors import UserError
from leftover.monitoring.terminal import console
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import LoraSection, ModelSection
from leftover.runs.claim import open_run
from leftover.store.table import column, list_lengths
from tests.conftest import scored_rows

SIZES = {
    "llama": {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip


@pytest.fixture
def no_network(monkeypatch: Any, tmp_path: Path) -> None:
    """Whoever opens a socket fails; the cache is empty, and nothing but the dry run says that it is offline."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def untraced(monkeypatch: Any) -> None:
    """Memory and time are left out where a test is about something else: they take most of its time."""
    monkeypatch.setattr("leftover.commands.dry_run.memory.try_to_trace", lambda *args: None)
    monkeypatch.setattr("leftover.commands.dry_run.estimate.measured_pace", lambda *args, **options: None)


def write_recipe(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def shape_of(kind: str, lora: LoraSection | None = None, quantised: bool = False) -> tuple[Any, Shape]:
    config = AutoConfig.for_model(kind, **SIZES[kind])
    model = skeleton(config, lora, torch.float32)
    return model, measure(model, config, quantised)


# What it must not do.


@pytest.mark.parametrize("verb", ["run", "prepare", "train", "evaluate"])
def test_it_opens_no_socket_and_makes_no_run_folder(
    verb: str, tmp_path: Path, tiny_recipe: Callable, no_network: None, capsys: Any
) -> None:
    cli.main([verb, write_recipe(tmp_path, tiny_recipe(tmp_path)), "--dry-run"])
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    assert "Needed" in said and "Training" in said
    assert ("train policies" in said) == (verb != "prepare")
    assert ("test: completions" in said) == (verb in ("run", "evaluate"))


def test_what_is_on_the_hub_is_named_and_neither_asked_for_nor_loaded(
    tmp_path: Path, tiny_recipe: Callable, no_network: None, untraced: None, capsys: Any, monkeypatch: Any
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a reward was loaded")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)
    content = tiny_recipe(tmp_path, model={"path": "microsoft/DialoGPT-medium"})
    content["reward"] = {"functions": [{"type": "classifier", "model": "textattack/roberta-base-CoLA"}]}
    content["data"]["path"] = "Anthropic/hh-rlhf"
    cli.main(["run", write_recipe(tmp_path, content), "--dry-run"])
    said = capsys.readouterr().out
    assert said.count("to download") == 3
    assert "train 160,800" in said and "354,823,168 (from published sizes)" in said
    assert f"{4 * 124_647_170 / 2**20:.0f} MiB" in said  # the classifier's own size


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train": {"max_steps": 4, "learning_rat": 1}}, "learning_rat"),
        ({"train": {"max_steps": 4, "optim": "adamw_torched"}}, "adamw_torch"),
        ({"reward": {"functions": [{"type": "clasifier"}]}}, "classifier"),
        ({"policies": {"p": {"objective": "a_lol", "objective_settings": {"u": 1}}}}, "no setting 'u'"),
        ({"data": {"max_prompt_tokens": 127}}, "128 positions"),
        ({"model": {"chat_template": "missing.jinja"}}, "missing.jinja"),
    ],
)
def test_a_recipe_error_exits_with_2(
    change: dict, complaint: str, tmp_path: Path, tiny_recipe: Callable, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", write_recipe(tmp_path, tiny_recipe(tmp_path, **change)), "--dry-run"])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "compare"])
@pytest.mark.parametrize(
    "data", [{"path": "rows/missing.jsonl"}, {"format": "hh", "drop_listed": "missing.json"}], ids=["rows", "list"]
)
def test_a_missing_local_file_is_refused_as_by_the_run_after_the_costs(
    verb: str, data: dict, tmp_path: Path, tiny_recipe: Callable, untraced: None, capsys: Any
) -> None:
    content = tiny_recipe(tmp_path)
    content["data"] |= data
    path, said = write_recipe(tmp_path, content), []
    for options in (["--dry-run"], []):
        with pytest.raises(SystemExit) as stopped:
            cli.main([verb, path, *options])
        assert stopped.value.code == 2
        said.append(capsys.readouterr())
    refusals = [captured.err.splitlines()[-1] for captured in said]
    assert refusals[0] == refusals[1] and "missing.json" in refusals[0]
    assert "train policies" in said[0].out


@pytest.mark.parametrize("path", ["rows.txt", "a/folder/here"])
def test_what_can_be_no_hub_id_is_a_missing_file(
    path: str, tmp_path: Path, tiny_recipe: Callable, no_network: None, untraced: None
) -> None:
    with pytest.raises(UserError, match=r"no data file.*data\.path"):
        dry_run(make_recipe(tiny_recipe(tmp_path, data={"path": path})), "prepare")


def test_a_faulty_row_is_refused_as_by_the_run(tmp_path: Path, tiny_recipe: Callable, untraced: None) -> None:
    faulty: list[Any] = [*scored_rows(20), {"prompt": "no completion"}]
    with pytest.raises(UserError, match="1 of 21 rows"):
        estimate_run(make_recipe(tiny_recipe(tmp_path, faulty)))
    estimate = estimate_run(make_recipe(tiny_recipe(tmp_path, faulty, data={"on_bad_row": "skip"})), "prepare")
    assert isinstance(estimate.rows, rows.Rows) and estimate.rows.dropped == {"rejected": 1}
    with pytest.raises(UserError, match=r"no usable row in .*1 read, all rejected\)"):
        estimate_run(make_recipe(tiny_recipe(tmp_path, faulty[-1:], data={"on_bad_row": "skip"})))


# Counts, against a real run.


def epochs_recipe(tmp_path: Path, tiny_recipe: Callable) -> Any:
    """Steps that follow the rows, in batches that do not divide them."""
    content = tiny_recipe(
        tmp_path,
        policies={"nll": {"objective": "nll", "num_train_epochs": 2}, "top": {"objective": "nll", "rows": "top"}},
        reference={"train": {"num_train_epochs": 1, "per_device_train_batch_size": 7}},
        data={"max_completion_tokens": 24},
        evaluate={"max_selection_prompts": 1, "max_new_tokens": 2},
    )
    content["train"] = {"num_train_epochs": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    return make_recipe(content)


def test_rows_tokens_and_steps_are_those_of_the_run(tmp_path: Path, tiny_recipe: Callable, untraced: None) -> None:
    recipe = epochs_recipe(tmp_path, tiny_recipe)
    estimate = estimate_run(recipe)
    run(recipe, until="train")
    done = open_run(recipe)
    table = done.table.open("split", "tokens")
    assert isinstance(estimate.rows, rows.Rows) and estimate.rows.lengths is not None
    assert estimate.rows.split.tolist() == list(table["split"])
    assert estimate.rows.group.tolist() == column(table, "group").tolist()
    kept = np.array(table["kept"])
    assert 0 < estimate.rows.lengths.kept_share < 1 and estimate.rows.lengths.kept.tolist() == kept.tolist()
    assert estimate.rows.lengths.total(estimate.rows.lengths.prompts) == (
        list_lengths(table, "prompt_ids")[kept].sum(),
        0,
    )
    by_name = {training.name: training for training in estimate.trainings}
    for name, artifact in {
        "reference": "reference", "nll": "policy nll, seed 0", "top": "policy top, seed 0",
    }.items():  # fmt: skip
        facts = done.manifest.facts(artifact)
        assert by_name[name].qualifier == ""
        assert (by_name[name].steps, by_name[name].evaluations) == (facts["steps"], len(facts["evaluations"]))


def test_steps_of_the_leftover_are_a_bound_and_max_steps_are_not(
    tmp_path: Path, tiny_recipe: Callable, untraced: None
) -> None:
    policies = {"bound": {"objective": "a_lol"}, "told": {"objective": "a_lol", "max_steps": 5}}
    content = tiny_recipe(tmp_path, policies=policies, seeds=[0, 1])
    content["train"] = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
    estimate = estimate_run(make_recipe(content))
    bound, told = estimate.trainings[1:]
    assert isinstance(estimate.rows, rows.Rows)
    training_rows = int(estimate.rows.where("train").sum())
    assert (bound.qualifier, bound.steps, bound.runs) == ("at most", -(-training_rows // 4), 2)
    assert (told.qualifier, told.steps) == ("", 5)
    assert any("positive advantage" in note for note in estimate.notes)


def test_without_the_rows_costs_are_bounds_or_unknown(tmp_path: Path, tiny_recipe: Callable, untraced: None) -> None:
    content = tiny_recipe(tmp_path, data={"path": "somebody/rows"}, policies={"nll": {"objective": "nll"}})
    content["train"] = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
    unknown = estimate_run(make_recipe(content))
    assert isinstance(unknown.rows, str) and "on the Hub" in unknown.rows
    assert unknown.trainings[1].steps is None
    assert {line.what: line.operations for line in unknown.work}["train policies"] is None
    bounded = estimate_run(make_recipe(content | {"data": content["data"] | {"max_rows": 100}}))
    assert (bounded.trainings[1].qualifier, bounded.trainings[1].steps) == ("at most", 25)
    # 4 rows of 48 + 64 - 1 fed tokens a step.
    assert bounded.trainings[1].seen is not None and bounded.trainings[1].seen.tokens == 100 * 111


def test_generations_are_counted_by_prompt_model_and_decoding(
    tmp_path: Path, tiny_recipe: Callable, untraced: None
) -> None:
    content = tiny_recipe(tmp_path, policies={"a": {"objective": "a_lol"}, "b": {"objective": "nll"}}, seeds=[0, 1])
    lines = {line.what: line.amount for line in estimate_run(make_recipe(content)).work}
    # 4 steps are evaluated 4 times a run; 2 policies with 2 seeds; 60 prompts, a tenth of them held out each.
    assert lines["validation: completions"] == "16 x 4 completions of at most 8 tokens"
    assert lines["test: completions"] == "5 x 6 completions of at most 8 tokens"
    assert lines["value: samples of the reference"] == "24 completions of at most 8 tokens"
    recorded = estimate_run(make_recipe(content | {"reward": {"functions": [{"type": "column"}]}}))
    assert not any("validation: completions" in line.what for line in recorded.work)


def test_many_rows_are_sampled_and_the_error_is_told(
    tmp_path: Path, tiny_recipe: Callable, untraced: None, monkeypatch: Any
) -> None:
    recipe = make_recipe(tiny_recipe(tmp_path, scored_rows(150)))
    whole = estimate_run(recipe, "prepare").rows
    monkeypatch.setattr(rows, "SAMPLE_ROWS", 100)
    sampled = estimate_run(recipe, "prepare")
    assert isinstance(whole, rows.Rows) and isinstance(sampled.rows, rows.Rows)
    assert whole.lengths is not None and sampled.rows.lengths is not None
    assert sampled.rows.group.tolist() == whole.group.tolist()
    truth, _ = whole.lengths.total(whole.lengths.completions)
    estimate, error = sampled.rows.lengths.total(sampled.rows.lengths.completions)
    assert 0 < error < 0.25 * truth and abs(estimate - truth) < 2 * error
    assert sampled.trainings[0].steps == 4  # max_steps


def test_the_interval_of_a_total() -> None:
    """Two of four rows: total 4 x 2, standard error 4 sqrt(2) sqrt((1 - 1/2) / 2) = 2 sqrt(2)."""
    lengths = Lengths(np.array([1, 3]), np.array([1, 1]), np.array([True, True]), num_rows=4)
    total, error = lengths.total(lengths.prompts)
    assert (total, error) == (8, pytest.approx(1.96 * 2 * 2**0.5))
    exact = Lengths(lengths.prompts, lengths.completions, np.array([True, False]), num_rows=2)
    assert exact.total(exact.prompts) == (1, 0)  # the other row is dropped


# What is here.


def test_files_hub_ids_and_the_cache_are_told_apart(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--somebody--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    states = {
        name: sources._locate("model", name) for name in ("somebody/model", "somebody/other", "a/b/c", str(tmp_path))
    }
    assert states["somebody/model"].state == sources.DOWNLOAD  # its config alone
    (snapshot / "model.safetensors").write_bytes(b"12345")
    cached = sources._locate("model", "somebody/model")
    assert (cached.state, cached.size) == (sources.CACHED, 5)
    assert states["somebody/other"].state == sources.DOWNLOAD
    assert states["a/b/c"].state == sources.MISSING and states[str(tmp_path)].state == sources.LOCAL
    assert sources._locate("data", "folder/rows.jsonl").state == sources.MISSING
    assert sources._locate("data", "somebody/rows").state == sources.DOWNLOAD


# The model.


@pytest.mark.parametrize("name", ["tiny_llama_path", "tiny_gpt2_path"])
def test_parameters_are_those_of_the_model(name: str, request: Any) -> None:
    path = request.getfixturevalue(name)
    config, where = find_config(ModelSection(path=path))
    shape = measure(skeleton(config, None, torch.float32), config, quantised=False)
    model = AutoModelForCausalLM.from_pretrained(path)
    number = sum(p.numel() for p in model.parameters())
    assert where == "its config"
    assert (shape.parameters, shape.trainable, shape.weight_bytes) == (number, number, 4 * number)
    assert shape.head == model.get_output_embeddings().weight.numel()


def test_an_adapter_is_counted_as_peft_makes_it() -> None:
    """r (inputs + outputs) a layer: q, o 32 + 32; k, v 32 + 16; gate, up 32 + 64; down 64 + 32; twice."""
    _, shape = shape_of("llama", LoraSection(r=4))
    assert shape.trainable == 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    _, plain = shape_of("llama")
    assert shape.parameters == plain.parameters + shape.trainable and shape.trunk == plain.trunk


def test_4_bit_weights_are_those_of_the_layers_alone() -> None:
    """q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 64; in two layers. 4 bits and 8 / 64 + 32 / (64 x 256) more."""
    _, shape = shape_of("llama", LoraSection(r=4), quantised=True)
    packed = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    rest = shape.parameters - packed
    assert shape.weight_bytes == round(packed * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 4 * rest)
    assert shape.unpacked_bytes == 2 * 32 * 64


def test_published_sizes_give_the_published_numbers() -> None:
    counts = {"huggyllama/llama-7b": 6_738_415_616, "microsoft/DialoGPT-medium": 354_823_168}
    for name, number in (counts | {"comet-distill": 1_557_611_200}).items():
        config, where = find_config(ModelSection(path=name if "/" in name else f"not/here/{name}"))
        assert where == "published sizes"
        assert measure(skeleton(config, None, torch.bfloat16), config, quantised=False).parameters == number
    assert set(counts) < set(CONFIGS)


def test_operations_are_those_of_the_benchmarks_formula() -> None:
    """Theirs counts a triangle of L (L + 1) / 2 pairs where ours takes half a square; ours the norms with the trunk."""
    _, shape = shape_of("llama")
    lengths = [(20, 10), (40, 30)]
    theirs = training_flops(lengths, 300, hidden=32, layers=2, feed_forward=64, key_value=16) / 3
    fed = np.array([prompt + completion - 1.0 for prompt, completion in lengths])
    assert Amount(2, fed.sum(), (fed**2).sum(), 40).operations(shape) == pytest.approx(theirs, rel=0.01)


# Memory, against real tensors.


def both(model_of: Callable[[], Any], **step: Any) -> tuple[int, int]:
    """The peak of a step on tensors without data, and on real ones."""
    planned = Traced(model_of()).training_step(**step)
    real = Traced(model_of())
    real.mode = contextlib.nullcontext()  # type: ignore[assignment]
    for module in real.model.modules():  # out of the fake mode
        module._parameters = {n: _real(p) for n, p in module._parameters.items()}
        module._buffers = {n: _real(b) for n, b in module._buffers.items()}
    _tie(real.model)
    return planned, real.training_step(**step)


def _real(tensor: Any) -> Any:
    if tensor is None:
        return None
    zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.nn.Parameter(zeros, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else zeros


def _tie(model: Any) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.get_output_embeddings().weight = base.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [None, LoraSection(r=4)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compute_dtype", [None, "bfloat16"])
def test_a_training_step_holds_what_it_holds_with_real_tensors(
    kind: str, lora: Any, checkpointing: bool, compute_dtype: str | None
) -> None:
    planned, real = both(
        lambda: shape_of(kind, lora)[0],
        rows=3, tokens=40, completion_tokens=10, checkpointing=checkpointing, compute_dtype=compute_dtype,
    )  # fmt: skip
    assert planned == pytest.approx(real, rel=0.02)


def test_what_lowers_and_what_raises_the_peak() -> None:
    model, shape = shape_of("llama")
    traced = Traced(model)
    step: dict[str, Any] = {"rows": 8, "tokens": 64, "completion_tokens": 8}
    plain = traced.training_step(**step)
    assert traced.training_step(**step, checkpointing=True) < 0.7 * plain
    assert traced.training_step(**step) == plain  # checkpointing is off again
    assert traced.training_step(**step, accumulated=True) == pytest.approx(plain + shape.trainable_bytes, rel=1e-3)
    assert traced.training_step(**step | {"rows": 16}) > 1.8 * plain
    assert traced.forward(8, 64, 8) < 0.3 * plain


def test_optimizer_states_are_those_that_adamw_keeps() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SIZES["gpt2"]))
    _, shape = shape_of("gpt2")
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert memory.optimizer_bytes(shape, "adamw_torch") == sum(value.nbytes for value in states)
    assert memory.optimizer_bytes(shape, "paged_adamw_8bit") == 2 * shape.trainable


def test_a_model_that_cannot_be_traced_leaves_its_memory_unknown(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any
) -> None:
    def data_dependent(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a value is asked for")

    monkeypatch.setattr(Traced, "_logprobs", data_dependent)
    estimate = estimate_run(make_recipe(tiny_recipe(tmp_path)))
    assert estimate.memory[0].passing is None and estimate.memory[0].total is None
    assert isinstance(estimate, Estimate)
    show(estimate, console())


def test_random_weights_have_the_vocabulary_of_the_tokenizer_that_the_run_will_train(
    tmp_path: Path, tiny_recipe: Callable, untraced: None
) -> None:
    content = tiny_recipe(tmp_path)
    content["model"] = {"config": SIZES["gpt2"] | {"model_type": "gpt2"}, "tokenizer": {"vocab_size": 300}}
    del content["model"]["config"]["vocab_size"]
    estimate = estimate_run(make_recipe(content))
    assert estimate.rows is not None
    assert find_config(make_recipe(content).model)[0].vocab_size == 300


def test_the_dry_run_counts_what_single_objectives_compute(
    tmp_path: Path, tiny_recipe: Callable, untraced: None
) -> None:
    rows_of_pairs = [row | {"completion": row["completion"] + end} for row in scored_rows(30) for end in ("", " Yes.")]
    policies = {
        "q": {"objective": "qrpo", "reference_samples": 3},
        "k": {"objective": "kto", "objective_settings": {"threshold": 0.0}},
        "d": {"objective": "dpo"},
        "n": {"objective": "nll"},
    }
    estimate = estimate_run(make_recipe(tiny_recipe(tmp_path, rows=rows_of_pairs, policies=policies)))
    lines = {work.what: work.amount for work in estimate.work}
    assert lines["reward quantiles: samples of the reference"].startswith("3 x 24 completions")
    assert lines["mismatched log-probabilities"] == "48 rows"
    by_name = {training.name: training for training in estimate.trainings}
    assert by_name["d"].selected == "prompts with several rows" and by_name["k"].further_passes == 1
    assert estimate.shape is not None
    kto, nll = (by_name[name].operations(estimate.shape) / by_name[name].seen.tokens for name in ("k", "n"))
    assert kto / nll == pytest.approx(4 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("objective", "message"),
    [("qrpo", r"reward\.functions"), ("pro", "several completions a prompt")],
)
def test_the_dry_run_refuses_an_objective_that_the_recipe_cannot_serve(
    objective: str, message: str, tmp_path: Path, tiny_recipe: Callable, untraced: None
) -> None:
    recorded = {"reward": {"functions": [{"type": "column"}]}}
    with pytest.raises(UserError, match=message):
        estimate_run(make_recipe(tiny_recipe(tmp_path, policies={"p": {"objective": objective}}, **recorded)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"path": "./no/model"}}, "no model at './no/model'"),
        ({"model": {"path": "/no/such/model"}}, "no model at '/no/such/model'"),
        ({"reference": {"source": "path", "path": "./reference", "train": {}}}, "no reference at './reference'"),
        (
            {"reward": {"functions": [{"type": "linear", "fit": {"path": "labels.jsonl"}}]}},
            "no data file at 'labels.jsonl' (key fit.path)",
        ),
        ({"reward": {"functions": [{"type": "linear", "path": "./fitted"}]}}, "no fitted reward at"),
        ({"evaluate": {"judges": [{"type": "classifier", "model": "./judge"}]}}, "no judge at './judge'"),
    ],
)
def test_what_is_missing_here_ends_a_dry_run_after_its_tables(
    change: dict[str, Any], named: str, tmp_path: Path, tiny_recipe: Callable, untraced: None, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", write_recipe(tmp_path, tiny_recipe(tmp_path, **change)), "--dry-run"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and named in said.err, said.err
    assert "looked for in" in said.err or "there is no folder" in said.err
    assert "Disk" in said.out or "Training" in said.out


def test_a_hub_id_that_is_not_cached_is_to_be_downloaded(
    tmp_path: Path, tiny_recipe: Callable, untraced: None, capsys: Any
) -> None:
    cli.main(
        ["run", write_recipe(tmp_path, tiny_recipe(tmp_path, model={"path": "some-owner/some-model"})), "--dry-run"]
    )
    assert "to download" in capsys.readouterr().out


def test_a_run_refuses_missing_rows_of_a_fitted_reward_before_it_reads_its_own(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    content = tiny_recipe(tmp_path, reward={"functions": [{"type": "linear", "fit": {"path": "labels.jsonl"}}]})
    with pytest.raises(UserError, match=r"labels\.jsonl.*fit\.path"):
        open_run(make_recipe(content))
    assert not (tmp_path / "run" / "table").exists()


def test_all_checkpoints_count_if_none_is_removed(tmp_path: Path, tiny_recipe: Callable, untraced: None) -> None:
    def checkpoints(**train: Any) -> float:
        settings = {"max_steps": 20, "per_device_train_batch_size": 4} | train
        found = estimate_run(make_recipe(tiny_recipe(tmp_path, train=settings))).disk
        return next(size for name, size in found if name.startswith("checkpoints")) or 0.0

    few = checkpoints()  # the best, the last and a new one
    assert checkpoints(save_total_limit=None) == pytest.approx(few * 5 / 3)
    assert checkpoints(save_total_limit=None, eval_steps=2) == pytest.approx(few * 10 / 3)
    assert checkpoints(save_total_limit=6) == pytest.approx(few * 7 / 3)
