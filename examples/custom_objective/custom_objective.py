"""An objective in a package of its own: `pip install --no-deps examples/custom_objective` makes its name known.

Then it is one like the others, also in the processes of a comparison:

    leftover run recipe.yaml --set policies.above_bar.objective=above_bar
    leftover compare recipe.yaml --methods nll,above_bar --jobs 2

Python needs no package: `python examples/custom_objective/custom_objective.py` registers it and trains.
"""

import torch
from torch import Tensor

from leftover import OBJECTIVES, CompletionBatch, LoLConfig, LoLTrainer
from leftover.objectives import Objective
from leftover.objectives.batch import sequence_logprobs
from leftover.objectives.settings import CHECKED, dataclass


@dataclass(frozen=True, config=CHECKED)
class BarSettings:
    bar: float = 0.0  # the reward above which a row counts


def above_bar(batch: CompletionBatch, settings: BarSettings) -> Tensor:
    """The likelihood, weighted by how far the reward is above a bar.

    loss = -max(R - bar, 0) lp, [B]
    """
    weight = torch.clamp(batch.reward - settings.bar, min=0.0)
    return -weight * sequence_logprobs(batch.logprobs, batch.mask)


above_bar_objective = Objective(above_bar, BarSettings, requires=frozenset({"reward"}))


def main() -> None:
    OBJECTIVES["above_bar"] = above_bar_objective
    config = LoLConfig(
        output_dir="runs/custom_objective",
        objective="above_bar",
        objective_settings={"bar": 1.0},
        columns={"prompt": "question", "completion": " {answer}", "reward": "score"},
        max_steps=15,
        per_device_train_batch_size=4,
    )
    trainer = LoLTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", config, train_dataset="examples/rows.csv")
    trainer.train()
    trainer.save_model("runs/custom_objective/policy")


if __name__ == "__main__":
    main()
