"""Rows of your own to a better model, in ten lines: `python examples/ten_lines.py`.

The table has a question, an answer and a score in each row; yours may have other columns (docs/data.md).
"""

from leftover import LoLConfig, LoLTrainer

config = LoLConfig(
    output_dir="runs/ten_lines",
    columns={"prompt": "question", "completion": " {answer}", "reward": "score"},
    max_steps=15,
    per_device_train_batch_size=4,
)
trainer = LoLTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", config, train_dataset="examples/rows.csv")
trainer.train()
trainer.save_model("runs/ten_lines/policy")  # for from_pretrained
