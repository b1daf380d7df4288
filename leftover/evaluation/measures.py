"""The numbers of a result row: what tables call each, which way is better, how it is printed and what it means."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from leftover.runs.records import IntervalRecord, ResultRow

MISSING = "–"
_FEW_PAIRS = 20


def number(value: float | None, form: str) -> str:
    """`value` under a format specification; a dash where it was not measured or is not a number."""
    return MISSING if value is None or value != value else format(value, form)


def bounds(value: IntervalRecord, form: str = ".3f") -> str:
    """`[low, high]`."""
    return f"[{value['low']:{form}}, {value['high']:{form}}]"


def interval(value: IntervalRecord | None, form: str = ".3f") -> str:
    """`mean [low, high]`; a dash where nothing was measured."""
    return MISSING if value is None else f"{value['mean']:{form}} {bounds(value, form)}"


@dataclass(frozen=True)
class Measure:
    """One number of a result row, or a column made of several.

    Args:
        name: its key in results.json, comparison.json and comparison.csv.
        heading: of its column in tables.
        title: its name where there is no table around it.
        better: which way is better; empty where neither is.
        form: format specification.
        with_interval: whether its column shows the 95 % interval, too.
        meaning: what the glossary says after its heading.
        text: row -> cell, in place of `form`.
    """

    name: str
    heading: str
    form: str = ",.2f"
    better: Literal["higher", "lower", ""] = ""
    meaning: str = ""
    title: str = ""
    with_interval: bool = False
    text: Callable[[ResultRow], str] | None = None

    def value(self, row: ResultRow) -> float | None:
        """The number in a row (of an interval its mean), or None where it was not measured."""
        found = row.get(self.name)
        return found["mean"] if isinstance(found, dict) else found

    def cell(self, row: ResultRow) -> str:
        """The number as tables print it."""
        if self.text is not None:
            return self.text(row)
        return interval(row.get(self.name), self.form) if self.with_interval else number(self.value(row), self.form)


def _rate_of_pairs(row: ResultRow) -> str:
    """The rate with the number of its pairs; a dash where they are too few to say anything."""
    pairs = row.get("pairs_of_equal_length") or 0
    return MISSING if pairs < _FEW_PAIRS else f"{row['win_rate_at_equal_length']:.2f} ({pairs:,})"


def _range(row: ResultRow) -> str:
    rewards = (row.get("reward_by_seed") or {}).values()
    return f"{min(rewards):.3f} to {max(rewards):.3f}" if len(rewards) > 1 else MISSING


# In the order of comparison.csv.
_STORED = (
    Measure(
        "reward", "reward [95 %]", ".3f", "higher", "the mean over prompts.", title="mean reward", with_interval=True
    ),
    Measure("difference_from_reference", "− reference [95 %]", "+.3f", "higher", with_interval=True),
    Measure("difference_from_data", "− data [95 %]", "+.3f", "higher", with_interval=True),
    Measure(
        "kl",
        "KL",
        meaning="policy to reference, in nats a completion, on the policy's samples.",
        title="KL to the reference, nats a completion",
    ),
    Measure("prompts", "prompts", ",d"),
    Measure(
        "win_rate",
        "win rate",
        ".2f",
        "higher",
        "by reward against the reference's completion of the same prompt; a tie counts one half.",
        "win rate by reward against the reference",
    ),
    Measure(
        "win_rate_at_equal_length",
        "win rate, equal length",
        ".2f",
        "higher",
        "the same over the pairs of all seeds whose lengths differ by at most a tenth; in brackets how many (a dash "
        f"for fewer than {_FEW_PAIRS}).",
        text=_rate_of_pairs,
    ),
    Measure("pairs_of_equal_length", "pairs of equal length", ",d"),
    Measure(
        "win_rate_against_data",
        "win rate, data",
        ".2f",
        "higher",
        "by reward against the data's own completions of the same prompt.",
    ),
    Measure("length", "length", ",.1f", meaning="in tokens."),
    Measure("unended", "cut at the limit", text=lambda row: number(row.get("unended") or None, ".0%")),
    *(Measure(f"distinct_{n}", f"distinct-{n}", ".3f", "higher", title=f"distinct-{n}") for n in (1, 2, 3)),
    Measure(
        "distinct_2_relative",
        "distinct-2, × reference",
        better="higher",
        meaning="over the reference's, both cut to the shorter of the two for every prompt.",
    ),
    Measure(
        "own_perplexity_under_base",
        "perplexity of its own, base",
        meaning="of its completions under the pretrained base.",
    ),
    Measure(
        "own_perplexity_under_reference",
        "perplexity of its own, reference",
        meaning="of its completions under the reference.",
    ),
    Measure(
        "perplexity_of_test_completions",
        "perplexity of test rows",
        better="lower",
        meaning="of the data's completions under the policy.",
        title="perplexity of the test completions",
    ),
    Measure(
        "logratio/rank_correlation",
        "rank correlation",
        ".3f",
        "higher",
        "of the log-ratio, policy over reference, and the recorded rewards of test rows.",
        "rank correlation of log-ratio and reward",
    ),
    Measure(
        "logratio/pair_accuracy",
        "pair accuracy",
        ".3f",
        "higher",
        "how often that log-ratio is the larger for the better of two test rows of one prompt.",
    ),
)
STORED = tuple(measure.name for measure in _STORED)
MEASURES = {measure.name: measure for measure in _STORED} | {
    "range": Measure("range", "range over seeds", text=_range),
    "distinct": Measure(
        "distinct",
        "distinct-1/2/3",
        better="higher",
        meaning="distinct n-grams over all n-grams of the completions.",
        text=lambda row: "/".join(number(row.get(f"distinct_{n}"), ".3f") for n in (1, 2, 3)),
    ),
}


def glossary(names: Iterable[str]) -> str:
    """What the columns of a table mean, as one paragraph."""
    said = []
    for measure in (MEASURES[name] for name in names):
        better = f" ({measure.better} is better)" if measure.better else ""
        said += [f"{measure.heading}{better}: {measure.meaning}"] if measure.meaning else []
    return " ".join(["Intervals: 95 %, bootstrap by prompt family.", *said])


def part_names(row: Iterable[str], kinds: tuple[str, ...] = ("reward/", "judge/")) -> list[str]:
    """Of the keys of a row or record those of the reward's components and of the judges."""
    return [name for name in row if name.startswith(kinds)]


def part(name: str, heading: str | None = None) -> Measure:
    """The measure of one component of the reward, or of one judge."""
    return Measure(name, heading or name, ".3f", "higher", with_interval=True)
