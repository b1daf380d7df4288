"""The numbers of a result row: what tables call each, which way is better, how it is printed and what it means."""

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from leftover.runs.records import IntervalRecord, ResultRow

MISSING = "–"
FEW_PAIRS = 20


def number(value: float | None, form: str) -> str:
    """`value` under a format specification; a dash if it was not measured or is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = format(value, form)
    return text if set(text) & set("123456789") else format(abs(value) * 0, form)  # no "-0.00"


def bounds(value: IntervalRecord, form: str = ".3f") -> str:
    """`[low, high]`, with the number of prompts if they are not all; of too few families with a word that says so."""
    ends = f"[{number(value['low'], form)}, {number(value['high'], form)}]"
    ends += f" of {value['prompts']:,} prompts" if "prompts" in value else ""
    count = value.get("families")
    if count is None:
        return ends
    said = f"(too few to tell: {count} {'family' if count == 1 else 'families'})"
    return said if count == 1 else f"{ends} {said}"


def excludes_zero(value: IntervalRecord) -> bool:
    """Whether the interval lies on one side of 0, and is of enough families to say so."""
    return "families" not in value and (value["low"] > 0 or value["high"] < 0)


def interval(value: IntervalRecord | None, form: str = ".3f") -> str:
    """`mean [low, high]`; a dash if nothing was measured."""
    mean = MISSING if value is None else number(value["mean"], form)
    return mean if value is None or mean == MISSING else f"{mean} {bounds(value, form)}"


@dataclass(frozen=True)
class Measure:
    """One number of a result row, or a column made of several."""

    name: str  # its key in results.json, comparison.json and comparison.csv
    heading: str
    form: str = ",.2f"  # format specification
    better: Literal["higher", "lower", ""] = ""  # empty if neither is
    meaning: str = ""  # what the glossary says after the heading
    _: KW_ONLY
    column: Literal["all", "comparison", "none"] = "all"  # which result tables show it
    with_interval: bool = False  # whether they show its 95 % interval, too
    text: Callable[[ResultRow], str] | None = None  # row -> cell, in place of `form`

    def value(self, row: ResultRow) -> float | None:
        """The number in a row (of an interval its mean), or None if it was not measured."""
        found = row.get(self.name)
        return found["mean"] if isinstance(found, dict) else found

    def cell(self, row: ResultRow) -> str:
        """The number as tables print it."""
        if self.text is not None:
            return self.text(row)
        found = row.get(self.name)  # of some measures earlier versions wrote no interval
        with_interval = self.with_interval and (found is None or isinstance(found, dict))
        return interval(found, self.form) if with_interval else number(self.value(row), self.form)


def _rate_of_pairs(row: ResultRow) -> str:
    """The rate with the number of its pairs; a dash if they are too few to say anything."""
    pairs = row.get("pairs_of_equal_length") or 0
    return MISSING if pairs < FEW_PAIRS else f"{row['win_rate_at_equal_length']:.2f} ({pairs:,})"


def _range(row: ResultRow) -> str:
    rewards = (row.get("reward_by_seed") or {}).values()
    return f"{min(rewards):.3f} to {max(rewards):.3f}" if len(rewards) > 1 else MISSING


def _distinct(row: ResultRow) -> str:
    return "/".join(number(row.get(f"distinct_{n}"), ".3f") for n in (1, 2, 3))


# In the order of columns, and of comparison.csv.
_MEASURES = (
    Measure("reward", "reward [95 %]", ".3f", "higher", "mean over prompts", with_interval=True),
    Measure("raw_reward", "raw reward [95 %]", ".3f", meaning="before length was taken out", with_interval=True),
    Measure("range", "range over seeds", meaning="lowest and highest mean reward of a seed", text=_range),
    Measure(
        "difference_from_reference",
        "− reference [95 %]",
        "+.3f",
        meaning="paired by prompt: its reward minus the reference's",
        with_interval=True,
    ),
    Measure("difference_from_data", "− data [95 %]", "+.3f", column="none", with_interval=True),
    Measure("prompts", "prompts", ",d", column="none"),
    Measure("win_rate", "win rate", ".2f", "higher", "by reward against the reference's completion, a tie one half"),
    Measure(
        "win_rate_at_equal_length",
        "win rate, equal length",
        meaning="over the pairs of all seeds whose lengths differ by at most a tenth, in brackets how many (a dash for "
        f"fewer than {FEW_PAIRS})",
        text=_rate_of_pairs,
    ),
    Measure("pairs_of_equal_length", "pairs of equal length", ",d", column="none"),
    Measure("win_rate_against_data", "win rate, data", meaning="against the data's completions", column="comparison"),
    Measure("length", "length", ",.1f", meaning="mean tokens of a completion"),
    Measure("length_ratio", "length, × reference", meaning="its mean length over the reference's"),
    Measure(
        "unended",
        "cut at the limit",
        meaning="share of completions that ran into the limit before they ended",
        text=lambda r: number(r.get("unended") or None, ".0%"),
    ),
    Measure(
        "distinct", "distinct-1/2/3", meaning="distinct n-grams over all n-grams of the completions", text=_distinct
    ),
    *(Measure(f"distinct_{n}", f"distinct-{n}", ".3f", column="none") for n in (1, 2, 3)),
    Measure("distinct_2_relative", "distinct-2, × reference", meaning="both cut to the shorter text for every prompt"),
    Measure("own_perplexity_under_base", "perplexity of its own, base", meaning="of its completions under the base"),
    Measure(
        "own_perplexity_under_reference",
        "perplexity of its own, reference",
        meaning="of its completions under the reference",
    ),
    Measure("perplexity_of_test_completions", "perplexity of test rows", ",.2f", "lower", "of the data's completions"),
    Measure(
        "kl",
        "KL",
        meaning="policy to reference, in nats a completion, on the policy's samples and at their temperature; an "
        "estimate, which may come out slightly below 0",
    ),
    Measure("kl_to_origin", "KL to the origin", meaning="the same to the model of reference.origin"),
    Measure(
        "logratio/rank_correlation",
        "rank correlation",
        ".3f",
        "higher",
        "of log-ratio and recorded reward on test rows",
        with_interval=True,
    ),
    Measure(
        "logratio/pair_accuracy",
        "pair accuracy",
        ".3f",
        "higher",
        "of the log-ratio on test rows of one prompt",
        with_interval=True,
    ),
)
MEASURES = {measure.name: measure for measure in _MEASURES}


def columns(of: Literal["run", "comparison"]) -> list[Measure]:
    """The columns of the result table of a run or of a comparison."""
    return [m for m in _MEASURES if m.column == "all" or m.column == of]


def glossary(measures: Iterable[Measure]) -> str:
    """What the columns of a table mean, as one paragraph."""
    said = ["Intervals: 95 %, bootstrap by prompt family (below 30 families Student's)."]
    for measure in measures:
        better = f" ({measure.better} is better)" if measure.better else ""
        said += [f"{measure.heading}{better}: {measure.meaning}."] if measure.meaning else []
    return " ".join(said)


def part_names(row: Iterable[str], *kinds: str) -> list[str]:
    """The keys of a row or record that are components of the reward or judges (default: both)."""
    return [name for name in row if name.startswith(kinds or ("reward/", "judge/"))]


def part(name: str, heading: str = "") -> Measure:
    """The measure of one component of the reward, or of one judge."""
    return Measure(name, heading or name, ".3f", "higher", with_interval=True)
