"""Facts about the components of a reward."""

import numpy as np

from leftover.rewards.facts import component_facts
from leftover.rewards.sum import SumReward


def test_components_that_do_not_vary_have_no_spread_share_or_correlation() -> None:
    reward = SumReward([{"type": "text", "function": name} for name in ("vader", "length")])
    scores = {"vader": np.full(1000, 0.3), "length": np.full(1000, 0.1)}  # whose deviations are rounding, not 0
    facts = component_facts(reward, scores, reward.total(scores))
    assert [of["sd"] for of in facts["components"].values()] == [0.0, 0.0]
    assert [of["share_of_variance"] for of in facts["components"].values()] == [None, None]
    assert facts["correlation"] == {"vader | length": None}
