"""One process of `test_distributed.py`: train a few steps by each objective, and let rank 0 save the weights.

torchrun --nproc_per_node N two_processes.py MODEL ROWS OUTPUT ACCUMULATION WORLD_SIZE OBJECTIVE...

`OBJECTIVE:TOKENS` trains under a token budget.
"""

import sys

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover import LoLConfig, LoLTrainer

model, rows, output, accumulation, world_size, *objectives = sys.argv[1:]
results = {}
for name in objectives:
    objective, _, budget = name.partition(":")
    args = LoLConfig(
        output_dir=output,
        objective=objective,
        use_cpu=True,
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        max_tokens_per_batch=int(budget) if budget else None,
        gradient_accumulation_steps=int(accumulation),
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    # accelerate can start independent one-process jobs, which would agree with each other and prove nothing.
    assert args.world_size == int(world_size), f"world size {args.world_size}, not {world_size}"
    trainer = LoLTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args,
        datasets.load_from_disk(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    weights |= dict(trainer.trained_along.named_parameters())
    results[name] = {"weights": {n: p.detach() for n, p in weights.items()}, "log": trainer.state.log_history}
if args.process_index == 0:
    torch.save(results, f"{output}/result.pt")
