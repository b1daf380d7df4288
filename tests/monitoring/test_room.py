"""Out of memory: the batch is tried in halves, the results are the same, and what was found out is remembered."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from leftover.errors import UserError
from leftover.models import generate as writing
from leftover.models import reference as reading
from leftover.models.load import load_model
from leftover.monitoring import room
from leftover.training import trainer as training
from leftover.training.trainer import LoLConfig, LoLTrainer
from tests.conftest import scored_rows


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    room.forget()
    yield
    room.forget()


def small(function: Callable, most: int, size: Callable[..., int]) -> Callable:
    """A stand-in for a device that has room for `most`."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        if size(*args, **kwargs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*args, **kwargs)

    return limited


def train(path: str, folder: Path, **settings: Any) -> LoLTrainer:
    args = LoLConfig(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-2, seed=1,
        eval_strategy="no", save_strategy="no", report_to="none", logging_steps=1, gradient_accumulation_steps=2,
        value_targets="recorded", **settings,
    )  # fmt: skip
    trainer = LoLTrainer(path, args, scored_rows(40))
    trainer.train()
    return trainer


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_a_step_without_room_is_taken_in_parts_and_changes_no_weight(
    first: int, tiny_llama_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(tiny_llama_path, tmp_path / "whole")
    calls = list[int]()

    def rows(model: Any, batch: dict, **_: Any) -> int:
        calls.append(len(batch["group"]))
        # The first without room: a whole micro-batch, or one whose first part has added its gradient.
        return len(batch["group"]) if len(calls) > first else 0

    monkeypatch.setattr(training, "completion_logprobs", small(training.completion_logprobs, 2, rows))
    with caplog.at_level(logging.WARNING, "leftover"):
        parted = train(tiny_llama_path, tmp_path / "parted")
    assert [name for name, weights in whole.model.state_dict().items()
            if not torch.allclose(weights, parted.model.state_dict()[name], atol=1e-6)] == []  # fmt: skip
    assert caplog.text.count("training: out of memory with") == 2, "8 rows, 4, and then no more"
    assert max(calls[first + 3 :]) <= 2
    logs = [[{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in
             trainer.state.log_history] for trainer in (whole, parted)]  # fmt: skip
    for ours, theirs in zip(logs[0], logs[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_row_that_does_not_fit_alone_and_groups_end_in_a_line(
    tiny_llama_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = small(training.completion_logprobs, 0, lambda model, batch, **_: len(batch["group"]))
    monkeypatch.setattr(training, "completion_logprobs", nothing)
    with pytest.raises(UserError, match=r"training: out of memory with a single row of \d+ tokens: lower"):
        train(tiny_llama_path, tmp_path)
    with pytest.raises(UserError, match="training: out of memory: lower per_device_train_batch_size"):
        train(tiny_llama_path, tmp_path, released_code=True)


def test_rows_are_read_in_smaller_batches_with_the_same_numbers(
    tiny_llama_path: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_llama_path)
    rows = [{"prompt_ids": [5, 6, 7][: 1 + i % 3], "completion_ids": list(range(8, 10 + i % 5))} for i in range(40)]
    expected, features = reading.reference_pass(model, tokenizer, rows)
    sizes = list[int]()

    def size(model: Any, batch: dict, **_: Any) -> int:
        sizes.append(len(batch["prompt_ids"]))
        return sizes[-1]

    monkeypatch.setattr(reading, "completion_logprobs", small(reading.completion_logprobs, 10, size))
    found, pooled = reading.reference_pass(model, tokenizer, rows)
    assert all(ours == pytest.approx(theirs, abs=1e-5) for ours, theirs in zip(found, expected, strict=True))
    assert pooled == pytest.approx(features, abs=1e-5)
    sizes.clear()
    reading.reference_pass(model, tokenizer, rows)
    assert max(sizes) <= 10, "it is remembered"


def test_completions_are_written_in_smaller_batches_and_are_the_same(
    tiny_llama_path: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_llama_path)
    prompts = [[5, 6 + i, 7][: 1 + i % 3] for i in range(24)]

    def written() -> list[list[int]]:
        return writing.generate(model, tokenizer, prompts, max_new_tokens=12, sample=True, seed=3).ids

    expected = written()
    sizes = list[int]()

    def size(model: Any, pad_id: int, begun: list, *_: Any) -> int:
        sizes.append(len(begun))
        return len(begun)

    monkeypatch.setattr(writing, "_continue", small(writing._continue, 7, size))
    assert written() == expected
    sizes.clear()
    assert written() == expected and max(sizes) <= 7
