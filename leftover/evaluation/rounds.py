"""The table of a run's rounds, and what they came to in a sentence, from rounds.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leftover.evaluation.measures import MEASURES, Measure, interval, part, part_names
from leftover.evaluation.tables import Grid, grid
from leftover.runs.records import ResultRow


def rounds_sentence(rounds: Mapping[str, Any]) -> str:
    """What the first policy came to, and how far it is above its controls."""
    main = rounds["main"]
    own = [row for row in rounds["rows"] if row["policy"] == main]
    gains = [f"{row['difference_from_reference']['mean']:+.3f}" for row in own]
    against = {name: found for name, found in rounds["main_against"].items() if found}
    less = [f"{name} {interval(found['difference'], '+.3f')}" for name, found in against.items()]
    return (
        f"{main} over the first reference, round by round: {', '.join(gains)}; after the last {own[-1]['prompts']} "
        f"prompts give {interval(own[-1]['difference_from_reference'], '+.3f')}."
        + (f" The last round less the last of its controls: {', '.join(less)}." if less else "")
    )


def rounds_grid(rounds: Mapping[str, Any]) -> Grid:
    """A line for every policy and round."""
    rows = {_called(row): row for row in rounds["rows"]}
    judges = sorted({name for row in rows.values() for name in part_names(row, "judge/")})
    measures = [
        MEASURES["reward"],
        replace(MEASURES["difference_from_reference"], heading="− first reference [95 %]"),
        *map(part, judges),
        Measure("kl_to_origin", "KL to the first reference"),
        Measure("kl", "KL to its reference"),
        MEASURES["length"],
        MEASURES["unended"],
        MEASURES["distinct_2_relative"],
        Measure("generated_tokens", "generated tokens", ",d"),
        Measure("seconds", "seconds", ",.0f"),
    ]
    return grid(rows, measures)


def _called(row: ResultRow) -> str:
    return row["policy"] + (f", round {row['round']}" if "round" in row else "")
