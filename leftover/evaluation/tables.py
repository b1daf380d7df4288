"""The table of results: its columns and how a number is written."""

from typing import Any


def interval(value: dict[str, float] | None, sign: str = "") -> str:
    """`mean [low, high]`, or a dash where nothing was measured."""
    return "–" if value is None else f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


_COLUMNS: dict[str, Any] = {
    "policy": lambda name, row: name,
    "reward [95 %]": lambda name, row: interval(row.get("reward")),
    "range over seeds": lambda name, row: _range(row.get("reward_by_seed")),
    "win rate": lambda name, row: _number(row.get("win_rate"), 2),
    "win rate, equal length": lambda name, row: rate_of_pairs(row),
    "length": lambda name, row: _number(row["length"], 1),
    "distinct-1/2/3": lambda name, row: "/".join(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)),
    "distinct-2, × reference": lambda name, row: _number(row.get("distinct_2_relative"), 2),
    "perplexity of its own, base": lambda name, row: _number(row.get("own_perplexity_under_base"), 2),
    "perplexity of its own, reference": lambda name, row: _number(row.get("own_perplexity_under_reference"), 2),
    "perplexity of test rows": lambda name, row: _number(row.get("perplexity_of_test_completions"), 2),
    "KL": lambda name, row: _number((row.get("kl") or {}).get("mean"), 2),
    "rank correlation": lambda name, row: _number(row.get("logratio/rank_correlation"), 3),
    "pair accuracy": lambda name, row: _number(row.get("logratio/pair_accuracy"), 3),
}


GLOSSARY = (
    "Intervals: 95 %, bootstrap by prompt family. Win rate: by reward against the reference's completion of the same "
    "prompt, a tie one half; at equal length: over the pairs of all seeds whose lengths differ by a tenth at most (in "
    "brackets how many; a dash for fewer than 20). Length: tokens. distinct-n: distinct n-grams over all n-grams of "
    "the completions; distinct-2, × reference: over the reference's, both cut to the shorter of the two for every "
    "prompt. Perplexity of its own: of its completions under the "
    "untouched base or the reference; of test rows: of the data's completions under the policy. KL: nats a completion, "
    "policy to reference, on the policy's samples. Rank correlation, pair accuracy: of the log-ratio policy over "
    "reference against the recorded rewards of test rows."
)


_SHORT = ("policy", "reward [95 %]", "length", "distinct-1/2/3", "win rate", "KL")


# What stands for the reward where new completions could not be scored.
_SHORT_RECORDED = ("policy", "rank correlation", "pair accuracy", "length", "distinct-1/2/3", "KL")


def result_cells(results: dict[str, Any], decoding: str, *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the result table; columns in which nothing was measured are left out."""
    names = tuple(_COLUMNS)
    if short:
        names = _SHORT if results["can_score_new_completions"] else _SHORT_RECORDED
    table = results[decoding]["table"]
    cells = [[_COLUMNS[n](policy, row) for n in names] for policy, row in table.items()]
    judges = sorted({k for row in table.values() for k in row if k.startswith("judge/")})
    header = list(names) + judges
    cells = [line + [interval(row.get(j)) for j in judges] for line, row in zip(cells, table.values(), strict=True)]
    return measured(header, cells)


def measured(header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells without the columns that hold dashes alone."""
    used = [i for i in range(len(header)) if any(set(line[i]) - set("–/") for line in cells)]
    return [header[i] for i in used], [[line[i] for i in used] for line in cells]


_FEW_PAIRS = 20


def rate_of_pairs(row: dict[str, Any]) -> str:
    """The win rate at equal length with the number of its pairs; a dash where they are too few to say anything."""
    pairs = row.get("pairs_of_equal_length") or 0
    return "–" if pairs < _FEW_PAIRS else f"{row['win_rate_at_equal_length']:.2f} ({pairs:,})"


def _range(by_seed: dict | None) -> str:
    if not by_seed or len(by_seed) < 2:
        return "–"
    return f"{min(by_seed.values()):.3f} to {max(by_seed.values()):.3f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"
