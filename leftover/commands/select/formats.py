"""Selected rows -> rows of other trainers, in TRL's columns; a stream."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from leftover.data.records import Row, unfilled
from leftover.data.rows import as_prompt
from leftover.objectives.advantage import advantage as beyond
from leftover.report.analysis.rows import ScoredRows
from leftover.store.table import SHARD_ROWS, read_rows

_TEXTS = ["prompt", "conversational", "completion", "tools"]


@dataclass
class Selected:
    """N rows with what is selected of them; arrays [N]."""

    rows: ScoredRows
    reward: np.ndarray  # NaN where a row has none, or is held out
    selected: np.ndarray  # bool
    weights: np.ndarray
    left_out: Counter[str] = field(default_factory=Counter)  # by reason; complete after the stream

    @cached_property
    def has_tools(self) -> bool:
        return "tools" in self.rows.stored.column_names and self.rows.stored.data.column("tools").null_count < len(
            self.rows.stored.data
        )

    def examples(self, places: np.ndarray) -> Iterator[tuple[int, Row]]:
        """These rows, in this order, read a part at a time: prompt, completion and tools, if any row has some."""
        for start in range(0, len(places), SHARD_ROWS):
            part = places[start : start + SHARD_ROWS]
            texts = read_rows(self.rows.stored, [n for n in _TEXTS if n in self.rows.stored.column_names], part)
            for i, place in enumerate(part.tolist()):
                talk = texts["conversational"][i]
                row = {"prompt": as_prompt(texts["prompt"][i], talk), "completion": texts["completion"][i]}
                if talk:
                    row["completion"] = [{"role": "assistant", "content": row["completion"]}]
                yield place, row | ({"tools": texts["tools"][i]} if self.has_tools else {})

    def numbers(self, place: int) -> dict[str, float]:
        found = {"weight": self.weights[place], "advantage": self.rows.advantage[place]}
        numbers = {name: float(f"{number:.6g}") for name, number in found.items()}
        return numbers | {"reward": float(f"{self.reward[place]:.12g}")}


def prompt_completion(found: Selected) -> Iterator[Row]:
    """`prompt` and `completion`, both texts or both messages."""
    for place, row in found.examples(np.flatnonzero(found.selected)):
        yield row | found.numbers(place)


def messages(found: Selected) -> Iterator[Row]:
    """`messages` that end in the completion; a text becomes a user's turn and its answer."""
    for place, row in found.examples(np.flatnonzero(found.selected)):
        prompt, completion = row.pop("prompt"), row.pop("completion")
        if isinstance(prompt, str):
            columns = found.rows.columns  # whose templates are another way to write turns
            prompt = [{"role": "user", "content": unfilled(columns.prompt, prompt).strip()}]
            completion = [{"role": "assistant", "content": unfilled(columns.completion, completion).strip()}]
        yield {"messages": prompt + completion} | row | found.numbers(place)


def pairs(found: Selected) -> Iterator[Row]:
    """Of every prompt its best selected completion, `chosen`, and the worst of all its rows, `rejected`."""
    scored = np.flatnonzero(np.isfinite(found.reward))
    best = _first_of_groups(found, np.flatnonzero(found.selected), -found.reward)
    worst = _first_of_groups(found, scored, found.reward)
    groups = np.array([group for group in best if group in worst], np.int64)
    both = np.array([[best[group], worst[group]] for group in groups], np.int64).reshape(-1, 2)
    margins = beyond(found.reward[both[:, 0]], found.reward[both[:, 1]])
    found.left_out["prompts without two completions of different reward"] += int((margins <= 0).sum())
    rows = found.examples(both[margins > 0].ravel())
    for (i, chosen), (j, rejected) in zip(rows, rows, strict=True):
        if chosen["completion"] == rejected["completion"]:
            found.left_out["prompts whose best and worst completion are the same text"] += 1
            continue
        rest = {"tools": chosen["tools"]} if found.has_tools else {}
        yield {
            "prompt": chosen["prompt"],
            "chosen": chosen["completion"],
            "rejected": rejected["completion"],
            "margin": float(f"{found.reward[i] - found.reward[j]:.6g}"),
            "chosen_reward": float(found.reward[i]),
            "rejected_reward": float(found.reward[j]),
        } | rest


def kto(found: Selected) -> Iterator[Row]:
    """All scored rows, each with `label`: whether it is selected, and so desirable."""
    for place, row in found.examples(np.flatnonzero(np.isfinite(found.reward))):
        numbers = found.numbers(place)
        yield row | {"label": bool(found.selected[place])} | {n: numbers[n] for n in ("reward", "advantage")}


def groups(found: Selected) -> Iterator[Row]:
    """Of every prompt its selected `completions`, with `rewards` and `advantages` as long."""
    places = np.flatnonzero(found.selected)
    _, first, of = np.unique(found.rows.group[places], return_index=True, return_inverse=True)
    ordered = places[np.argsort(first[of], kind="stable")]  # prompts in the order of their first rows
    for _, members in itertools.groupby(found.examples(ordered), key=lambda member: found.rows.group[member[0]]):
        inside = list(members)
        numbers = [found.numbers(place) for place, _ in inside]
        rest = {"tools": inside[0][1]["tools"]} if found.has_tools else {}
        yield {
            "prompt": inside[0][1]["prompt"],
            "completions": [row["completion"] for _, row in inside],
            "rewards": [number["reward"] for number in numbers],
            "advantages": [number["advantage"] for number in numbers],
        } | rest


def _first_of_groups(found: Selected, places: np.ndarray, key: np.ndarray) -> dict[int, int]:
    """Group -> of these rows of it the one of the smallest key, the earliest of equal ones; groups in row order."""
    ranked = places[np.argsort(key[places], kind="stable")]
    group, index = np.unique(found.rows.group[ranked], return_index=True)
    first = ranked[index]
    order = np.argsort(first)
    return dict(zip(group[order].tolist(), first[order].tolist(), strict=True))


FORMATS: dict[str, Callable[[Selected], Iterator[Row]]] = {
    "prompt-completion": prompt_completion,
    "messages": messages,
    "pairs": pairs,
    "kto": kto,
    "groups": groups,
}
