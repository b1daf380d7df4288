"""What a card cites: the paper of A-LoL, and that of the objective where it is another's (see docs/paper.md)."""

from typing import NamedTuple


class Paper(NamedTuple):
    """A paper by its title and its number on arXiv."""

    title: str
    arxiv: str


A_LOL = Paper("Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models", "2305.14718")

# Objectives of other papers; all that are not here are A-LoL's own, or its controls.
OTHERS: dict[str, Paper] = {
    "r_gold": Paper("Text Generation by Learning from Demonstrations", "2009.07839"),
    "dpo": Paper("Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290"),
    "pro": Paper("Preference Ranking Optimization for Human Alignment", "2306.17492"),
    "ppo": Paper("Proximal Policy Optimization Algorithms", "1707.06347"),
    "grpo_offline": Paper(
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300"
    ),
    "awr": Paper("Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning", "1910.00177"),
    "kto": Paper("KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306"),
    "dro": Paper("Offline Regularised Reinforcement Learning for Large Language Models Alignment", "2405.19107"),
    "qrpo": Paper(
        "Quantile Reward Policy Optimization: Alignment with Pointwise Regression and Exact Partition Functions",
        "2507.08068",
    ),
    "var": Paper("RLHF in an SFT Way: From Optimal Solution to Reward-Weighted Alignment", "2502.11026"),
}


def papers(objective: str) -> list[Paper]:
    """What to cite for a policy of this objective, its own paper first."""
    return [*([OTHERS[objective]] if objective in OTHERS else []), A_LOL]
