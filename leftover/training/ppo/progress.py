"""What an online run has done beside its optimizer steps, and carries over when it is resumed."""

from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from leftover.store.manifest import read_json, write_json

_HEAD_FILE, _PROGRESS_FILE = "value_head.safetensors", "ppo_progress.json"


@dataclass
class Progress:
    """Counts over all processes, and the penalty of the next PPO step."""

    kl_coef: float
    rollouts: int = 0  # completions
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0  # generating, scoring and judging them
    trained_tokens: int = 0

    def save(self, checkpoint: Path, value_head: nn.Module) -> None:
        """Write them, and the value head, beside the policy of a checkpoint."""
        save_file(value_head.state_dict(), checkpoint / _HEAD_FILE)
        write_json(checkpoint / _PROGRESS_FILE, asdict(self))

    @staticmethod
    def load(checkpoint: Path, value_head: nn.Module) -> "Progress":
        """What `save` wrote; the value head is filled."""
        value_head.load_state_dict(load_file(checkpoint / _HEAD_FILE))
        return Progress(**read_json(checkpoint / _PROGRESS_FILE))
