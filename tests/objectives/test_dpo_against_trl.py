"""`dpo` beside TRL's DPOTrainer on the same rows and weights: one loss, one gradient."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from leftover import LoLConfig, LoLTrainer
from leftover.models.reference import reference_pass
from tests.conftest import scored_rows

NUM_PAIRS = 6


def moved(path: str) -> Any:
    """The model with weights some way from the reference's, so that log-ratios are not 0."""
    model = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_loss_and_gradient_are_those_of_trl(beta: float, tiny_llama_path: str, tokenizer: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    rows = scored_rows(NUM_PAIRS)
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": rows[i - 1]["completion"]}
        for i, row in enumerate(rows)
    ]
    theirs = trl.DPOTrainer(
        model=moved(tiny_llama_path),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval(),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=beta, per_device_train_batch_size=NUM_PAIRS, use_cpu=True,
            bf16=False, gradient_checkpointing=False, disable_dropout=True, report_to="none", max_length=None,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
    )  # fmt: skip
    tokens = list(theirs.train_dataset)
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(tokens))
    expected_gradient = gradient(theirs.model, expected)

    ours_rows = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[f"{side}_ids"],
            "group": i,
            "is_chosen": side == "chosen",
        }
        for i, row in enumerate(tokens)
        for side in ("rejected", "chosen")
    ]
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    logprobs, _ = reference_pass(reference, tokenizer, ours_rows, features=False)
    made = [row | {"reference_logprobs": lp, "reward": 0.5} for row, lp in zip(ours_rows, logprobs, strict=True)]
    args = LoLConfig(
        output_dir=str(tmp_path / "ours"), objective="dpo", objective_settings={"beta": beta}, use_cpu=True, max_steps=1
    )
    ours = LoLTrainer(moved(tiny_llama_path), args, datasets.Dataset.from_list(made), processing_class=tokenizer)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(2 * NUM_PAIRS)])
    ours.model.eval()
    loss = ours.compute_loss(ours.model, batch)
    assert abs(loss.item() - expected.item()) < 1e-5 and abs(loss.item() - 0.6931) > 1e-3
    difference = (gradient(ours.model, loss) - expected_gradient).abs().max()
    assert difference < 1e-5 and expected_gradient.abs().max() > 1e-2, difference
