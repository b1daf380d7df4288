"""Rewards: callables `(prompts, completions) -> floats`, made from a recipe's specification.

load_reward({"type": "text", "function": "vader"})
load_reward({"type": "sum", "functions": [{"type": "text", "function": "vader", "weight": 0.5}, ...]})
"""

from leftover.rewards.base import REWARDS, ColumnReward, FittedReward, Reward, learner, load_reward
from leftover.rewards.length import text_lengths
from leftover.rewards.sum import SumReward

__all__ = ["REWARDS", "ColumnReward", "FittedReward", "Reward", "SumReward", "learner", "load_reward", "text_lengths"]
