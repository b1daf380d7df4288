"""The same seed gives the same run on one process and on two."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover import LoLConfig, LoLTrainer
from tests.forked import as_ranks
from tests.training.test_methods import complete_rows

# Groups; a value trained along, of whose gradients the Trainer knows nothing; numbers of the whole step; token budgets.
OBJECTIVES = ("a_lol_seq", "dpo", "dro", "kto", "var", "nll:60", "pro:120")


def train(model: str, rows: Dataset, output: Path, accumulation: int, world_size: int) -> None:
    """A few steps by each objective, under a token budget where it is `OBJECTIVE:TOKENS`; rank 0 saves the weights."""
    results = {}
    for name in OBJECTIVES:
        objective, _, budget = name.partition(":")
        args = LoLConfig(
            output_dir=str(output),
            objective=objective,
            use_cpu=True,
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            max_tokens_per_batch=int(budget) if budget else None,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        )
        # accelerate can start independent one-process jobs, which would agree with each other and prove nothing.
        assert args.world_size == world_size, f"world size {args.world_size}, not {world_size}"
        tokenizer = AutoTokenizer.from_pretrained(model)
        trainer = LoLTrainer(AutoModelForCausalLM.from_pretrained(model), args, rows, processing_class=tokenizer)
        trainer.train()
        weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
        weights |= dict(trainer.trained_along.named_parameters())
        results[name] = {"weights": {n: p.detach() for n, p in weights.items()}, "log": trainer.state.log_history}
    if args.process_index == 0:
        torch.save(results, output / "result.pt")


def launch(model: str, rows: Dataset, output: Path, processes: int, accumulation: int) -> dict:
    output.mkdir()
    as_ranks(processes, train, model, rows, output, accumulation, processes)
    return torch.load(output / "result.pt", weights_only=True)


def test_two_processes_train_the_weights_that_one_with_twice_the_accumulation_trains(
    tiny_llama_path: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = complete_rows(tiny_llama_path, tokenizer)
    one = launch(tiny_llama_path, rows, tmp_path / "one", processes=1, accumulation=4)
    two = launch(tiny_llama_path, rows, tmp_path / "two", processes=2, accumulation=2)
    for objective in OBJECTIVES:
        for name, weight in one[objective]["weights"].items():
            torch.testing.assert_close(two[objective]["weights"][name], weight, atol=2e-4, rtol=0, msg=objective)
        for a, b in zip(one[objective]["log"], two[objective]["log"], strict=True):
            for name in ("loss", "reward/mean", "num_tokens", "importance_weight/max", "kto/kl", "dro/value"):
                if name in a:
                    assert abs(a[name] - b[name]) < 1e-3 * max(1, abs(a[name])), (objective, name)
