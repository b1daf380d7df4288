"""One process of `test_ppo_recipe.py`: two PPO steps, and what every rank ends with.

torchrun --nproc_per_node N ppo_process.py MODEL OUTPUT
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leftover import PPOConfig, PPOTrainer
from tests.conftest import scored_rows
from tests.training.ppo.test_trainer import count_letter

model, output = sys.argv[1:]
args = PPOConfig(
    output_dir=output,
    use_cpu=True,
    total_episodes=32,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_mini_batches=2,
    ppo_epochs=2,
    max_completion_length=10,
    learning_rate=3e-3,
    whiten_rewards=True,
    save_strategy="no",
    disable_tqdm=True,
)
# accelerate can start independent one-process jobs, which would agree with each other and prove nothing.
assert args.world_size == 2
trainer = PPOTrainer(
    AutoModelForCausalLM.from_pretrained(model),
    args,
    [{"prompt": row["prompt"]} for row in scored_rows(20)],
    reward_funcs=count_letter,
    processing_class=AutoTokenizer.from_pretrained(model),
)
own: list[dict] = []
complete = trainer.rollout
trainer.rollout = lambda number: own.append((made := complete(number))[0]) or made  # type: ignore[method-assign]
trainer.train()
result = {
    "weights": trainer.model.state_dict(),
    "scores": [rollouts.scores for rollouts in own],
    "log": [entry for entry in trainer.state.log_history if "kl" in entry],
    "facts": trainer.facts(),
}
torch.save(result, f"{output}/rank-{args.process_index}.pt")
