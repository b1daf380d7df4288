"""Which method is marked best, and which second best: only where the paired interval says so."""

from collections.abc import Callable
from itertools import pairwise

from leftover.runs.records import Difference

RULE = (
    "**Bold**: the highest, where the 95 % interval of its paired difference to the next highest excludes 0 and every "
    "seed agrees. <u>Underlined</u>: the second highest, where the first is bold and the same holds of it and the "
    "third. Otherwise nothing is marked: the rows do not tell the methods apart. Differences are of the same prompts, "
    "averaged over the seeds that both have, resampled by prompt family: intervals speak of other prompts, the range "
    "over seeds of other runs."
)


def marks(means: dict[str, float], difference: Callable[[str, str], Difference | None]) -> dict[str, str]:
    """`best` and `second` by name, after RULE.

    Args:
        means: name -> mean; higher is better.
        difference: (name, other) -> `statistics.compare` of the two: the paired interval of name minus other, and
            the differences by seed; None where they were not compared, which marks nothing.
    """
    ranked = sorted(means, key=lambda name: -means[name])
    found: dict[str, str] = {}
    for mark, (name, after) in zip(("best", "second"), pairwise(ranked), strict=False):
        compared = difference(name, after)
        if compared is None or not min(compared["difference"]["low"], *compared["by_seed"].values()) > 0:
            break
        found[name] = mark
    return found
