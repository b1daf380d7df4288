"""The files that later rounds read: the first round's rows, and what the policy of every round writes."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leftover.commands.generate.inputs import Prompt, Source
from leftover.commands.generate.rows import Decoding
from leftover.commands.generate.rows_file import RowsFile
from leftover.commands.generate.run import log_counts, write_samples
from leftover.data.labels import AS_REWARD
from leftover.data.records import GENERATED
from leftover.data.rows import as_prompt
from leftover.recipe.sections import Recipe
from leftover.rounds.recipes import COLUMNS, FIRST_ROWS, HELD_OUT, rounds_of, trains_on
from leftover.runs.names import policy_folder
from leftover.runs.run import Run
from leftover.store.files import write_lines
from leftover.store.table import column, equals


def training_prompts(first: Run) -> list[Prompt]:
    """The unique prompts of the training split."""
    table = first.table.open("rows", "split")
    training = np.flatnonzero(equals(table, "split", "train"))
    _, places = np.unique(column(table, "group")[training], return_index=True)
    return [Prompt.of(row, "train") for row in table.select(training[np.sort(places)])]


def write_first_rows(first: Run) -> None:
    """The rows that the first round kept, in the form that any round reads: all of them, and those that are held out.

    They come in the order of their prompts there. Tables number prompts as they come, and draw held-out ones by these
    numbers: so all rounds draw the same, also where a prompt is on both sides of the split.
    """
    table = first.table.open("rows", "split", "tokens")
    trains, kept = equals(table, "split", "train"), equals(table, "kept", True)
    chosen = trains & equals(table, "is_chosen", True) if trains_on(first.recipe) == "chosen" else trains
    order = np.argsort(column(table, "group"), kind="stable")
    for name, rows in ((FIRST_ROWS, (chosen | ~trains) & kept), (HELD_OUT, ~trains & kept)):
        found = table.select_columns(_COPIED).select(order[rows[order]])
        write_lines(first.folder / name, _rows(found))


_COPIED = [
    "prompt", "completion", "conversational", "recorded_reward", "answer", "tools", "family", "split", "is_chosen",
    "label", "ended", "source",
]  # fmt: skip


def _rows(rows: Any) -> Iterator[dict[str, Any]]:
    """Rows under the columns' own names, without what is empty."""
    for row in rows:
        written = {name: row[name] for name in ("completion", "answer", "family", "split", "is_chosen", "source")}
        written |= {"reward": row["recorded_reward"], "tools": row["tools"], AS_REWARD: row["label"]}
        written = {name: value for name, value in written.items() if value is not None}
        # That a completion has no end is believed of generated rows alone.
        ended = {"ended": False, GENERATED: None} if row["ended"] is False else {}
        yield {"prompt": as_prompt(row["prompt"], row["conversational"])} | written | ended


def artifact(policy: str) -> str:
    """The name of a policy's samples in the manifest of the round that trained it."""
    return f"samples of {policy}"


def samples_path(run: Run, policy: str) -> Path:
    """The file of these samples."""
    return run.folder / f"samples-{policy}.jsonl"


def sample(recipe: Recipe, run: Run, policy: str, number: int, prompts: list[Prompt]) -> Path:
    """`completions_per_prompt` completions of a policy of round `number`, unscored; returns the file.

    A killed process continues it; a new policy or another setting begins it anew.
    """
    rounds, data = rounds_of(recipe), run.recipe.data
    # Seeds of their own: V of the next round is fitted to completions that are not its rows.
    seed = int(np.random.SeedSequence([recipe.seed, number]).generate_state(1)[0])
    decoding = Decoding(
        n=rounds.completions_per_prompt,
        max_new_tokens=recipe.max_new_tokens,
        max_prompt_tokens=data.max_prompt_tokens,
        sample=True,
        temperature=1.0,
        batch_size=recipe.evaluate.batch_size,
        seed=seed,
        max_prompts=None,
        unfinished=rounds.unfinished,
    )
    read_as = run.recipe.model_copy(update={"data": data.model_copy(update={"columns": COLUMNS})})
    source = Source(
        path=str(policy_folder(run.folder, policy, recipe.seeds[0])),
        recipe=read_as,
        tokenizer=run.models.tokenizer,
        prompts=prompts,
        reward=None,  # the next round scores its rows
        compute_dtype=run.recipe.compute_dtype,
        hashes=run.hashes,
    )
    path, key = samples_path(run, policy), source.identity() | {"decoding": asdict(decoding)}

    def discard() -> None:
        for file in (path, path.with_name(path.name + ".state.json")):
            file.unlink(missing_ok=True)

    if run.manifest.begin(artifact(policy), key, discard).finished:
        return path
    file = RowsFile(path, key, overwrite=False)
    if not file.complete:
        write_samples(source, decoding, list(enumerate(prompts)), file)
    log_counts(file, len(prompts), decoding, scored_later=True)
    run.manifest.finish(artifact(policy), wrote=[path], **file.counts)
    return path
