"""A reward of your own scores the rows, and what the model writes: `python examples/custom_reward.py`.

A recipe names the same function, which it looks up from the folder that the command runs in:

    reward:
      functions: [{type: python, function: "examples.custom_reward:names_the_product"}]
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from leftover import LoLConfig, LoLTrainer


def names_the_product(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for an answer with the word that follows "my" in the question, less a hundredth for each of its words."""
    products = [prompt.partition(" my ")[2].split(" ")[0] for prompt in prompts]
    return [
        float(product in answer) - len(answer.split()) / 100
        for product, answer in zip(products, completions, strict=True)
    ]


def main() -> None:
    with Path("examples/rows.csv").open(encoding="utf-8") as file:  # the score of its rows is left alone
        rows = [{"prompt": row["question"], "completion": f" {row['answer']}"} for row in csv.DictReader(file)]
    products = ("kettle", "lamp", "radio", "drone", "camera", "toaster")
    trainer = LoLTrainer(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        LoLConfig(
            output_dir="runs/custom_reward", max_steps=15, per_device_train_batch_size=4, max_completion_length=40
        ),
        train_dataset=rows,
        eval_dataset=[{"prompt": f"Ada writes: my {product} is broken. What can I do?"} for product in products],
        reward_funcs=names_the_product,
    )
    before = trainer.evaluate()["eval_reward/mean"]
    trainer.train()
    print(f"reward of new answers: {before:.2f} before, {trainer.evaluate()['eval_reward/mean']:.2f} after")


if __name__ == "__main__":
    main()
