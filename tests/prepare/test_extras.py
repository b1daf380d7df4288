"""Row constants that only single objectives read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover import pipeline
from leftover.prepare.constants import Reference
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run


def test_every_shard_of_reward_quantiles_has_seeds_of_its_own(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is computed again gets the same samples, and no two shards share a seed."""
    monkeypatch.setattr("leftover.store.table.SHARD_ROWS", 25)
    original, seeds = Reference.sampled_rewards, list[int]()

    def spy(self: Reference, rows: Any, chosen: Any, reward_func: Any, settings: Any, seed: int | None = None) -> Any:
        if seed is not None:
            seeds.extend(seed + repeat for repeat in range(settings.samples_per_prompt))
        return original(self, rows, chosen, reward_func, settings, seed)

    monkeypatch.setattr(Reference, "sampled_rewards", spy)
    policies = {"qrpo": {"objective": "qrpo", "reference_samples": 2}}
    run = open_run(make_recipe(tiny_recipe(tmp_path, policies=policies, seed=5)))
    pipeline.prepare(run)
    assert len(run.table.open("quantile")) == 60 and seeds == [5, 6, 55, 56, 105, 106]
