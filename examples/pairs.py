"""Preference pairs, by DPO and by A-LoL: `python examples/pairs.py`.

A-LoL reads a pair as two rows of one prompt, of reward 1 and 0 where the pairs have no scores.
"""

import csv
from itertools import groupby
from pathlib import Path

from leftover import LoLConfig, LoLTrainer


def best_and_worst(path: str) -> list[dict[str, str]]:
    """A pair of every question whose answers differ in score."""
    pairs = []
    with Path(path).open(encoding="utf-8") as file:
        for question, rows in groupby(csv.DictReader(file), key=lambda row: row["question"]):
            worst, *_, best = sorted(rows, key=lambda row: float(row["score"]))
            if worst["score"] != best["score"]:
                pairs.append({"prompt": question, "chosen": f" {best['answer']}", "rejected": f" {worst['answer']}"})
    return pairs


pairs = best_and_worst("examples/rows.csv")
for objective in ("dpo", "a_lol_seq"):
    trainer = LoLTrainer(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        LoLConfig(
            output_dir=f"runs/pairs/{objective}", objective=objective, max_steps=8, per_device_train_batch_size=4
        ),
        train_dataset=pairs[8:],
        eval_dataset=pairs[:8],
    )
    trainer.train()
    found = trainer.evaluate()
    print(f"{objective}: prefers the better answer in {found['eval_rewards/accuracies']:.0%} of held-out pairs")
